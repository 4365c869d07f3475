"""The programs of tests/benchmarks, whose figures stand in docs/."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

# Few pictures, where a program draws them before its stage runs in another process.
ARGUMENTS = {"preprocess_speed.py": ["--images", "20", "--workers", "1"]}


@pytest.mark.parametrize("program", sorted((ROOT / "tests/benchmarks").glob("*.py")), ids=lambda p: p.name)
def test_a_benchmark_measures_the_checkout_that_it_lies_in(program: Path, tmp_path: Path) -> None:
    """The figures of a change would be those of the installed package, which may be other code."""
    (tmp_path / "tests/benchmarks").mkdir(parents=True)
    copy = shutil.copy(program, tmp_path / "tests/benchmarks")
    (tmp_path / "ganpipe").mkdir()
    (tmp_path / "ganpipe/__init__.py").write_text("raise SystemExit('the code of this checkout')\n")
    command = [sys.executable, copy, *ARGUMENTS.get(program.name, [])]
    ended = subprocess.run(command, cwd=tmp_path / "ganpipe", capture_output=True, text=True)
    assert ended.stderr.strip() == "the code of this checkout"
