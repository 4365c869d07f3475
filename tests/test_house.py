"""The layout of the package: who may import whom, and how large a file, a folder and a function may be."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

from ganpipe.common import code
from ganpipe.common.stages import STAGES

PACKAGE = ROOT / "ganpipe"
FILES = sorted(PACKAGE.rglob("*.py"))
# What each part may import besides itself: other parts, or single modules of them.
PARTS = (
    "common",
    "device",
    "params",
    "metrics",
    "models",
    *STAGES,
    "experiments",
    "tracking",
    "cluster",
    "commands",
    "cli",
)
BELOW_STAGES = {"common", "params", "device", "metrics", "models"}
BELOW_TRACKING = BELOW_STAGES | {"fetch.catalogue", "fetch.paths", "evaluate.card", "experiments"}
MAY_IMPORT: dict[str, set[str]] = {
    "common": set(),
    **dict.fromkeys(("params", "device", "metrics"), {"common"}),
    "models": {"common", "params"},
    **dict.fromkeys(STAGES, BELOW_STAGES),
    "experiments": BELOW_TRACKING,
    "tracking": BELOW_TRACKING,
    "cluster": BELOW_TRACKING | {"tracking"},
    "commands": set(PARTS) - {"cli"},
    "cli": set(PARTS),
}
# 11,000 lines in all until classes came, which touch every stage.
MAX_FILE_LINES, MAX_FOLDER_LINES, MAX_LINES = 300, 1800, 11_450
# Features that came when the whole had no room for them are counted apart, so that the rest cannot grow in
# their name; the bounds of files, folders and functions hold for them too.
LATER = {
    "the explorer": ("commands/explore.py", "commands/explore_page.py", "commands/picks.py"),
    "several machines": ("cluster/", "train/resume/copies.py"),
    "sets in shards": ("fetch/shards.py", "common/shards.py"),
    "classes": ("fetch/labels.py", "common/classes.py", "evaluate/classes.py"),
    "larger images": ("commands/upscale.py",),
    "the registry": ("tracking/register.py",),
    "further judges": ("evaluate/judges.py", "metrics/swd.py"),
}
MAX_LATER_LINES = 2400
MAX_FUNCTION_LINES, MAX_PARAMETERS = 60, 6


def lines_of(path: Path) -> int:
    """Count the lines of a file."""
    return len(path.read_text(encoding="utf-8").splitlines())


def functions_of(path: Path) -> Iterator[ast.FunctionDef]:
    """Yield every function and method of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            yield node


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_parts_import_only_what_is_below_them(path: Path) -> None:
    """Stages that import each other, or parts that import stages, would rerun everything for one edit."""
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in code.imports(path) if part in PARTS else ():
        other, *module = name.split(".")[1:3] or [part]
        if other in PARTS and other != part:
            package = not module and (PACKAGE / other).is_dir()
            assert package or {other, ".".join([other, *module])} & MAY_IMPORT[part], f"{path} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_stay_small(path: Path) -> None:
    """A file that takes an evening to read is changed by nobody but its author."""
    assert lines_of(path) <= MAX_FILE_LINES
    for function in functions_of(path):
        length = (function.end_lineno or 0) - function.lineno + 1
        assert length <= MAX_FUNCTION_LINES, f"{function.name} has {length} lines"
        # The commands of cli.py declare their options as parameters, as typer asks for.
        names = [a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
        count = len([name for name in names if name not in ("self", "cls")])
        assert count <= MAX_PARAMETERS or path.name == "cli.py", f"{function.name} has {count} parameters"


def test_the_package_and_its_folders_stay_small() -> None:
    """The whole package must be readable in a day, a stage in an hour."""
    for folder in {path.parent for path in FILES}:
        assert sum(map(lines_of, folder.glob("*.py"))) <= MAX_FOLDER_LINES, folder
    parts = tuple(str(PACKAGE / name) for names in LATER.values() for name in names)
    later = {path for path in FILES if str(path).startswith(parts)}
    assert all(any(str(path).startswith(part) for path in later) for part in parts)
    assert sum(map(lines_of, later)) <= MAX_LATER_LINES
    assert sum(map(lines_of, set(FILES) - later)) <= MAX_LINES
