"""The import closure, against what Python really imports."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from ganpipe.common import code

# Each stage in a fork of a process that has imported what takes seconds and is not ganpipe.
PROGRAM = """
import importlib, os, sys
import pandas, torch
for name in sys.argv[1:]:
    if os.fork():
        assert os.wait()[1] == 0
        continue
    importlib.import_module(f"ganpipe.{name}.stage")
    if "ganpipe.models" in sys.modules:
        # Which build_generator imports.
        from ganpipe.models import celeba64, dcgan, residual, resize, upsample
    for key, module in sys.modules.items():
        if key.split(".")[0] == "ganpipe" and getattr(module, "__file__", None):
            print(name, module.__file__)
    break
"""
STAGES = ("fetch", "preprocess", "train", "sample", "evaluate")


@pytest.fixture(scope="module")
def files_of() -> dict[str, set[str]]:
    """Stage → the files of ganpipe that Python imports with it, relative to the checkout."""
    command = [sys.executable, "-c", PROGRAM, *STAGES]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files: dict[str, set[str]] = {stage: set() for stage in STAGES}
    for line in printed.splitlines():
        stage, _, path = line.partition(" ")
        files[stage].add(path.removeprefix(f"{ROOT}/"))
    return files


@pytest.mark.parametrize("stage", STAGES)
def test_closure_equals_what_python_imports(files_of: dict[str, set[str]], stage: str) -> None:
    """A file left out could be edited without its stage running again, or an old checkpoint being dropped."""
    imported = files_of[stage]
    empty = {
        path
        for path in imported
        if path.endswith("/__init__.py") and "import" not in (ROOT / path).read_text()
    }
    assert set(code.import_closure(f"ganpipe.{stage}.stage", ROOT)) == imported - code.NOT_COUNTED - empty


def test_code_digest_sees_every_byte(tmp_path: Path) -> None:
    """Edited code must never resume a training that older code began."""
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "b.py").write_text("y = 1\n")
    before = code.code_digest(["a.py", "b.py"], tmp_path)
    assert code.code_digest(["b.py", "a.py"], tmp_path) == before
    (tmp_path / "b.py").write_text("y = 2\n")
    assert code.code_digest(["a.py", "b.py"], tmp_path) != before
