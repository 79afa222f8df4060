"""Flower's options: Flower itself says nothing about one that is mistyped."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
from flower.options import default_options
from flower.views.tasks import TASK_COLUMNS

from proj.celery import app

FILE = Path(__file__).parent.parent / "proj/flowerconfig.py"
NO_OPTIONS = {"app", "error", "management_url", "os", "Path"}  # what else the file needs


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in default_options:
        monkeypatch.delenv(f"FLOWER_{name.upper().replace('-', '_')}", raising=False)


def read() -> dict[str, Any]:
    """The options as Flower takes them from the file."""
    names = runpy.run_path(str(FILE))
    return {name: value for name, value in names.items() if not name.startswith("_") and name not in NO_OPTIONS}


def unknown(options: dict[str, Any]) -> set[str]:
    return {name for name in options if name not in default_options}


def test_each_name_is_an_option_of_flower() -> None:
    assert unknown(read()) == set()


def test_mistyped_name_is_found() -> None:
    assert unknown({**read(), "purge_offline_worker": 600}) == {"purge_offline_worker"}


def test_each_value_has_the_type_of_its_option() -> None:
    types = {option.name.replace("-", "_"): option.type for option in default_options._options.values()}
    assert {name for name, value in read().items() if type(value) is not types[name]} == set()


def test_each_column_is_one_that_flower_can_show() -> None:
    assert set(read()["tasks_columns"].split(",")) <= set(TASK_COLUMNS)


def test_columns_show_what_the_message_is_and_who_has_it() -> None:
    assert {"args", "worker", "state"} <= set(read()["tasks_columns"].split(","))


def test_only_this_machine_sees_it() -> None:
    assert read()["address"] == "127.0.0.1"


def test_state_is_bounded_and_saved_on_the_way() -> None:
    options = read()
    assert options["persistent"] is True
    assert 0 < options["state_save_interval"] <= 60_000
    assert options["max_tasks"] < default_options.as_dict()["max_tasks"]
    assert Path(options["db"]).parent.is_dir()


@pytest.mark.parametrize("name", ["ADDRESS", "DB", "MAX_TASKS", "BROKER_API", "PERSISTENT"])
def test_environment_wins(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert name.lower() in read()
    monkeypatch.setenv(f"FLOWER_{name}", "whatever Flower made of it")
    assert name.lower() not in read()


@pytest.mark.parametrize(
    "url",
    ["http://u:p@host:15672", "http://u:p@host:15672/", "http://u:p@host:15672/api", "http://u:p@host:15672/api/"],
)
def test_broker_api_ends_with_a_slash(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(app.conf, "management_url", url)
    assert read()["broker_api"] == "http://u:p@host:15672/api/"


def test_folder_that_cannot_be_made_is_one_clear_sentence() -> None:
    Path("var").touch()
    with pytest.raises(
        SystemExit, match=r"cannot keep Flower's state in .*var/flower\.db \(File exists\): .*FLOWER_DB"
    ):
        read()
