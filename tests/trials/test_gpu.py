"""The GPU's trial in its smallest form, on the CPU: each part ends and finds what a CPU cannot fail."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

SHORT = "right,fast,memory"


@pytest.mark.parametrize(
    "parts", [SHORT, pytest.param("everything,algorithms,profile", marks=pytest.mark.long)]
)
def test_the_parts_run_without_a_gpu(parts: str, tmp_path: Path) -> None:
    """The rare minutes on a GPU would be spent on mistakes of the trial itself."""
    words = [
        sys.executable,
        "tests/trials/gpu.py",
        str(tmp_path),
        "--device",
        "cpu",
        "--tiny",
        "--parts",
        parts,
    ]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    figures = [json.loads(line) for line in (tmp_path / "figures.jsonl").read_text().splitlines()]
    assert [f["part"] for f in figures if f["name"] == "ended"] == parts.split(",")
    assert all(figure.get("ok", True) for figure in figures)
    same = [f for f in figures if "steps_1_5_20_differ_by" in f and "bfloat16 against" not in f["name"]]
    assert all(figure["steps_1_5_20_differ_by"] == [0, 0, 0] for figure in same) and (
        "right" not in parts or same
    )
