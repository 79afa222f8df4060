"""Remove each setting in turn and see the test fail that `docs/settings.md` names for it: `make settings`."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parent.parent
SETTINGS = "proj/celeryconfig.py"
NOT_COPIED = shutil.ignore_patterns(".*", "var", "*.svg", "__pycache__")
PASSED, NO_SUCH_TEST = 0, 5  # pytest's exit status; all others say that it failed, or that nothing can be imported
AT_ONCE = 2


def without(name: str, source: str) -> str:
    """Return the settings without the assignment of *name*."""
    assignment = next(node for node in ast.parse(source).body if ast.unparse(node).startswith(f"{name} = "))
    lines = source.splitlines(keepends=True)
    del lines[assignment.lineno - 1 : assignment.end_lineno]
    return "".join(lines)


def is_missed(name: str, test: str) -> bool:
    """True when *test* fails in a copy of the checkout whose settings lack *name*."""
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=NOT_COPIED)
        settings = copy / SETTINGS
        settings.write_text(without(name, settings.read_text()))
        files = [path for path in copy.glob("tests/**/test_*.py") if f"def {test}(" in path.read_text()]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-k", test, *map(str, files)]
        environment = {**os.environ, "PYTHONPATH": str(copy)}
        status = subprocess.run(command, cwd=copy, env=environment, capture_output=True).returncode
        return status not in (PASSED, NO_SUCH_TEST)


def rows() -> Iterator[tuple[str, str]]:
    """Return each setting and the test that needs it."""
    table = (ROOT / "docs/settings.md").read_text()
    yield from re.findall(r"^\| `([a-z_]+)` \|.*\| `(test_\w+)` \|$", table, re.M)


def main() -> int:
    pairs = list(rows())
    with ThreadPoolExecutor(AT_ONCE) as pool:
        missed = pool.map(is_missed, *zip(*pairs, strict=True))
        unmissed = 0
        for (name, test), fails in zip(pairs, missed, strict=True):
            unmissed += not fails
            print(f"{name}: {test} {'fails' if fails else 'PASSES'} without it", flush=True)  # noqa: T201
    print(f"{len(pairs)} settings, {unmissed} that no test needs")  # noqa: T201
    return int(unmissed > 0)


if __name__ == "__main__":
    sys.exit(main())
