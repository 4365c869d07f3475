"""The import closure, against what Python really imports."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from ganpipe.common import code

PROGRAM = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
if "ganpipe.models" in sys.modules:
    from ganpipe.models import celeba64, dcgan, residual, resize, upsample  # which build_generator imports
for name, module in sys.modules.items():
    if name.split(".")[0] == "ganpipe" and getattr(module, "__file__", None):
        print(module.__file__)
"""


@pytest.mark.parametrize("stage", ["fetch", "preprocess", "train", "sample", "evaluate"])
def test_closure_equals_what_python_imports(stage: str) -> None:
    """A file left out could be edited without its stage running again, or an old checkpoint being dropped."""
    command = [sys.executable, "-c", PROGRAM, f"ganpipe.{stage}.stage"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    imported = {line.removeprefix(f"{ROOT}/") for line in printed.splitlines()}
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
