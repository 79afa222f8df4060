"""Where RabbitMQ is looked for, and how it is fetched."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from proj import apt
from proj.installation import NotInstalled, cache, fetch, find, read


def executable(path: Path, text: str = "#!/bin/sh\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def release(folder: Path, version: str = "4.1.2") -> Path:
    """A folder laid out as upstream's release for all Unixes."""
    for script in ("rabbitmq-server", "rabbitmq-env"):
        executable(folder / "sbin" / script)
    (folder / "plugins" / f"rabbit-{version}").mkdir(parents=True)
    (folder / "plugins" / "rabbit_common-9.9.9").mkdir()
    return folder


def package(folder: Path, version: str = "4.1.2") -> Path:
    """A folder laid out as Debian's packages, Erlang included."""
    home = release(folder / "usr/lib/rabbitmq/lib" / f"rabbitmq_server-{version}", version)
    scripts = folder / "usr/lib/rabbitmq/bin"
    scripts.mkdir()
    for script in ("rabbitmq-server", "rabbitmq-env"):
        (scripts / script).symlink_to(home / "sbin" / script)
    for program in ("erl", "epmd"):
        executable(folder / "usr/lib/erlang/bin" / program)
    return folder


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without RabbitMQ, with `bin` the only folder on PATH and a cache of its own."""
    monkeypatch.delenv("PROJ_RABBITMQ", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("proj.installation.SYSTEM", ())
    monkeypatch.setattr("proj.installation.SYSTEM_ERLANG", ())
    return tmp_path


def with_erlang(folder: Path) -> None:
    for program in ("erl", "epmd"):
        executable(folder / "bin" / program)


def test_an_unpacked_release_uses_the_erlang_on_path(bare: Path) -> None:
    with_erlang(bare)
    found = find(release(bare / "rabbitmq_server-4.1.2"))
    assert found.version == "4.1.2"
    assert found.release == (4, 1)
    assert found.server == bare / "rabbitmq_server-4.1.2/sbin/rabbitmq-server"
    assert found.erlang == bare / "bin"


@pytest.mark.parametrize("named", [".", "usr/lib/rabbitmq/bin"])
def test_an_unpacked_package_brings_its_erlang(bare: Path, named: str) -> None:
    with_erlang(bare)
    tree = package(bare / "tree")
    found = find(tree / named)
    assert found.version == "4.1.2"
    assert found.erlang == tree / "usr/lib/erlang/bin"
    assert found.epmd.exists()


def test_order_named_then_environment_then_path_then_cache(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_erlang(bare)
    package(cache() / "sid", "4.3.6")
    assert find().version == "4.3.6"
    linked = release(bare / "linked", "4.2.0") / "sbin/rabbitmq-server"
    (bare / "bin/rabbitmq-server").symlink_to(linked)
    assert find().version == "4.2.0"
    monkeypatch.setenv("PROJ_RABBITMQ", str(release(bare / "environment", "4.0.5")))
    assert find().version == "4.0.5"
    assert find(release(bare / "named", "3.13.7")).version == "3.13.7"


def test_nothing_installed_names_both_remedies(bare: Path) -> None:
    with pytest.raises(NotInstalled, match=r"RabbitMQ is not installed: .*install.*`docker compose up`$"):
        find()


def test_a_mac_is_told_about_homebrew(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    with pytest.raises(NotInstalled, match=r"cannot fetch RabbitMQ here: type `brew install rabbitmq`"):
        fetch()


def test_a_named_folder_without_rabbitmq(bare: Path) -> None:
    with pytest.raises(NotInstalled, match=f"no RabbitMQ in {bare}: expected"):
        find(bare)


def test_a_wrapper_alone_is_no_installation(bare: Path) -> None:
    executable(bare / "sbin/rabbitmq-server")
    assert read(bare) is None


def test_a_release_that_is_too_old(bare: Path) -> None:
    with pytest.raises(NotInstalled, match=r"expected RabbitMQ 3.10 or newer, got 3.9.27 in "):
        find(package(bare / "old", "3.9.27"))


def test_a_release_without_an_erlang(bare: Path) -> None:
    with pytest.raises(NotInstalled, match=r"no Erlang for the RabbitMQ in .*: put `erl` and `epmd` on PATH"):
        find(release(bare / "lonely"))


def test_what_is_there_is_not_fetched_again(bare: Path) -> None:
    package(cache() / "sid", "4.3.6")
    said: list[str] = []
    assert fetch("sid", said.append).version == "4.3.6"
    assert fetch(None, said.append).version == "4.3.6"
    assert said == []


def test_a_failed_download_is_one_sentence_and_leaves_nothing(bare: Path) -> None:
    executable(bare / "bin/apt-get", "#!/bin/sh\necho 'E: no network' >&2; exit 100\n")
    with pytest.raises(NotInstalled, match=r"could not fetch RabbitMQ \(apt-get failed with 100: E: no network\)"):
        fetch("sid", lambda _: None)
    assert [path.name for path in cache().iterdir()] == ["lock"]


def test_a_cache_with_a_space_is_refused(bare: Path) -> None:
    with pytest.raises(apt.AptFailed, match="has a space in it"):
        apt.unpack("sid", bare / "my cache" / "sid", lambda _: None)


def test_the_command_answers_at_once_when_it_is_there(bare: Path) -> None:
    package(cache() / "sid", "4.3.6")
    command = [sys.executable, "-m", "proj.installation", "--suite", "sid", "--print-folder"]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    took = time.monotonic() - started
    assert done.stdout == f"{cache()}/sid/usr/lib/rabbitmq/bin\n"
    assert done.stderr == ""
    # 0.15 s here; ten times that is still far below a look at the package lists.
    assert took < 1.5


def test_the_command_without_a_way_is_one_sentence(bare: Path) -> None:
    command = [sys.executable, "-m", "proj.installation", "--suite", "sid"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("cannot fetch RabbitMQ here: ")
    assert len(done.stderr.splitlines()) == 1
