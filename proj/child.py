"""A child process that does not outlive this one, not even when this one is killed with -9."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

# Linux only: the kernel sends SIGKILL when the parent's thread ends. A preexec_fn could ask for it as well, but
# Python warns of those in threaded programs; so a short-lived Python asks and then becomes the command.
TIED = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9, 0, 0, 0); "
    "os.getppid() == int(sys.argv[1]) or os._exit(1); os.execvp(sys.argv[2], sys.argv[2:])"
)


def start(command: Sequence[str], *, env: Mapping[str, str], folder: Path, output: Path) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own, so that a terminal's Ctrl+C does not reach it.

    Its output is appended to the file `output`. Raises OSError.
    """
    started: Future[subprocess.Popen[bytes]] = Future()
    # "Parent" means the thread: it must stay until the child has ended, and the caller's may not.
    threading.Thread(target=_stay, args=(started, command, env, folder, output), daemon=True).start()
    return started.result()


def _stay(
    started: Future[subprocess.Popen[bytes]],
    command: Sequence[str],
    env: Mapping[str, str],
    folder: Path,
    output: Path,
) -> None:
    try:
        with output.open("ab") as file:
            process = subprocess.Popen(
                _tied(command),
                env=dict(env),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except BaseException as error:
        started.set_exception(error)
        return
    started.set_result(process)
    process.wait()


def _tied(command: Sequence[str]) -> list[str]:
    if not sys.platform.startswith("linux"):
        return list(command)
    return [sys.executable, "-I", "-S", "-c", TIED, str(os.getpid()), *command]
