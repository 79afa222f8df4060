"""Where RabbitMQ is on this machine; `python -m proj.installation` gets it where it is missing."""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "PROJ_RABBITMQ"
OLDEST = (3, 10)  # quorum as a virtual host's default queue type and at-least-once dead-lettering begin here

# Where the server's scripts lie below a named folder: in itself, in an upstream release, in an unpacked package of
# Debian's or of Red Hat's. The packages' wrappers in sbin insist on the user rabbitmq, so they are never used.
LAYOUTS = (".", "sbin", "rabbitmq_server-*/sbin", "usr/lib/rabbitmq/bin", "usr/lib/rabbitmq/lib/*/sbin")
SYSTEM = tuple(Path(name) for name in ("/", "/opt/homebrew/opt/rabbitmq", "/usr/local/opt/rabbitmq"))
SYSTEM_ERLANG = tuple(
    Path(name) for name in ("/usr/lib/erlang/bin", "/opt/homebrew/opt/erlang/bin", "/usr/local/opt/erlang/bin")
)


class NotInstalled(Exception):
    """There is no usable RabbitMQ where it was looked for; the message names the remedy."""


@dataclass(frozen=True)
class Installation:
    """A RabbitMQ on this machine: folder of its server scripts, Erlang's bin folder, version as X.Y.Z."""

    scripts: Path
    erlang: Path
    version: str

    @property
    def server(self) -> Path:
        """The script that starts a node as whoever calls it."""
        return self.scripts / "rabbitmq-server"

    @property
    def epmd(self) -> Path:
        """Erlang's port mapper, without which no node starts."""
        return self.erlang / "epmd"

    @property
    def release(self) -> tuple[int, int]:
        """Major and minor version, for comparisons."""
        major, minor = self.version.split(".")[:2]
        return int(major), int(minor)


def find(folder: Path | None = None) -> Installation:
    """Return the RabbitMQ in `folder`, else in $PROJ_RABBITMQ, else the system's, else one that we unpacked.

    Raises NotInstalled: none found, a named folder without one, one without Erlang or older than 3.10.
    """
    if folder is None and os.environ.get(VARIABLE):
        folder = Path(os.environ[VARIABLE])
    if folder is not None:
        return _named(folder.expanduser())
    for candidate in _candidates():
        if found := read(candidate):
            return found
    raise NotInstalled(f"RabbitMQ is not installed: {_remedy()}; or run everything by `docker compose up`")


def fetch(suite: str | None = None, say: Callable[[str], object] = print) -> Installation:
    """Return RabbitMQ, getting it first where it is missing: by apt, or unpacked into a folder of the user's.

    With `suite` (bookworm, trixie, sid, ...) always the release of that suite of the distribution, unpacked.
    Raises NotInstalled.
    """
    if suite is None:
        try:
            return find()
        except NotInstalled:
            if os.environ.get(VARIABLE):
                raise
    elif found := read(cache() / suite):
        return found
    if not shutil.which("apt-get"):
        raise NotInstalled(f"cannot fetch RabbitMQ here: {_remedy()}; or run everything by `docker compose up`")
    from . import apt

    try:
        if suite is None and apt.install(say):
            return find()
        apt.unpack(suite or own_suite(), cache() / (suite or own_suite()), say)
        return _named(cache() / (suite or own_suite()))
    except (apt.AptFailed, OSError) as error:
        raise NotInstalled(
            f"could not fetch RabbitMQ ({error}): {_remedy()}; or run everything by `docker compose up`"
        ) from error


def cache() -> Path:
    """The folder of the releases that we unpacked: one folder for each suite of the distribution."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "proj" / "rabbitmq"


def own_suite() -> str:
    """The code name of this Debian or Ubuntu, e.g. bookworm; "stable" where it has none."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return "stable"
    # Those that build upon Ubuntu have code names of their own, which no mirror knows.
    return release.get("UBUNTU_CODENAME") or release.get("VERSION_CODENAME") or "stable"


def read(folder: Path) -> Installation | None:
    """Return the RabbitMQ in a folder, None without one. Raises NotInstalled when it is of no use."""
    for scripts in _script_folders(folder.absolute()):
        if version := _version(scripts):
            found = Installation(scripts, _erlang(scripts), version)
            if found.release < OLDEST:
                raise NotInstalled(f"expected RabbitMQ 3.10 or newer, got {version} in {scripts}: {_remedy()}")
            return found
    return None


def _named(folder: Path) -> Installation:
    if found := read(folder):
        return found
    raise NotInstalled(
        f"no RabbitMQ in {folder}: expected sbin/rabbitmq-server (a release) or usr/lib/rabbitmq (a package) there"
    )


def _candidates() -> Iterator[Path]:
    if on_path := shutil.which("rabbitmq-server"):
        yield Path(on_path).resolve().parent
    yield from SYSTEM
    yield cache() / own_suite()
    yield from sorted(cache().glob("[a-z]*"))


def _script_folders(folder: Path) -> Iterator[Path]:
    for layout in LAYOUTS:
        for scripts in [folder] if layout == "." else sorted(folder.glob(layout)):
            if os.access(scripts / "rabbitmq-server", os.X_OK) and (scripts / "rabbitmq-env").exists():
                yield scripts


def _version(scripts: Path) -> str | None:
    # Debian's bin folder holds links into lib/rabbitmq_server-X.Y.Z in one suite and copies beside it in another.
    home = (scripts / "rabbitmq-env").resolve().parent.parent
    for pattern in ("plugins/rabbit-[0-9]*", "lib/rabbitmq_server-[0-9]*/plugins/rabbit-[0-9]*"):
        for path in sorted(home.glob(pattern)):
            if match := re.search(r"^rabbit-(\d+\.\d+\.\d+)", path.name):
                return match[1]
    return None


def _erlang(scripts: Path) -> Path:
    """The bin folder of Erlang: an unpacked package has its own beside it, the rest use the system's."""
    places = [parent / "usr/lib/erlang/bin" for parent in scripts.parents if parent != Path("/")]
    if on_path := shutil.which("erl"):
        places.append(Path(on_path).resolve().parent)
    for place in [*places, *SYSTEM_ERLANG]:
        if os.access(place / "erl", os.X_OK) and os.access(place / "epmd", os.X_OK):
            return place
    raise NotInstalled(f"no Erlang for the RabbitMQ in {scripts}: put `erl` and `epmd` on PATH, or {_remedy()}")


def _remedy() -> str:
    if platform.system() == "Darwin":
        return "type `brew install rabbitmq`"
    return "install your distribution's package rabbitmq-server, or type `make` on Debian or Ubuntu"


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m proj.installation", description=fetch.__doc__)
    parser.add_argument("--suite", help="unpack the RabbitMQ of this suite of the distribution, e.g. trixie or sid")
    parser.add_argument("--print-folder", action="store_true", help=f"print the folder, for {VARIABLE}")
    options = parser.parse_args()
    try:
        found = fetch(options.suite, say=lambda line: sys.stderr.write(f"{line}\n"))
    except NotInstalled as error:
        raise SystemExit(str(error)) from None
    except KeyboardInterrupt:
        raise SystemExit("interrupted: what was fetched so far is thrown away") from None
    line = str(found.scripts) if options.print_folder else f"RabbitMQ {found.version} in {found.scripts}"
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    _main()
