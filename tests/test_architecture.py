"""The application imports no tool, and a command imports nothing before it runs."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJ = Path(__file__).parent.parent / "proj"
APPLICATION = {
    *("__init__", "celery", "celeryconfig", "tasks", "publish", "publisher", "bounded", "results"),
    *("consume", "delivery", "dead_letters", "letter", "parking", "idle"),
    *("worker", "health"),
}
ALLOWED_IN_TASKS = {"proj.celery"}


def imports(path: Path, *, top_level: bool = False) -> Iterator[str]:
    """The modules that a file imports; those of `if TYPE_CHECKING:` cost nothing and do not count."""
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = f"proj.{node.module or ''}".rstrip(".") if node.level else str(node.module)
            yield from (f"{base}.{alias.name}" if base == "proj" else base for alias in node.names)


def application() -> list[Path]:
    return [path for path in sorted(PROJ.glob("*.py")) if path.stem in APPLICATION]


@pytest.mark.parametrize("path", application(), ids=lambda path: path.stem)
def test_the_application_imports_no_tool(path: Path) -> None:
    ours = {name.split(".")[1] for name in imports(path) if name.startswith("proj.")}
    assert ours <= APPLICATION, f"{path.name} imports {sorted(ours - APPLICATION)}"


def test_the_tasks_import_nothing_of_ours_but_the_app() -> None:
    assert {name for name in imports(PROJ / "tasks.py") if name.startswith("proj")} == ALLOWED_IN_TASKS


@pytest.mark.parametrize("path", sorted((PROJ / "cli").glob("*.py")), ids=lambda path: path.stem)
def test_a_command_imports_only_click_before_it_runs(path: Path) -> None:
    # They are imported at every `celery` call, whatever its command.
    outside = {"__future__", "click", "collections.abc", "contextlib", "pathlib", "sys", "typing"}
    assert set(imports(path, top_level=True)) <= outside


@pytest.mark.parametrize("path", sorted(PROJ.rglob("*.py")), ids=lambda path: str(path.relative_to(PROJ)))
def test_every_module_says_what_it_is(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring, f"{path} opens without a line that says what it is"
