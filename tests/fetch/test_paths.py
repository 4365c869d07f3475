"""fetch.path: what cannot be read is named in one line, with a remedy."""

import os
from pathlib import Path

import pytest

from ganpipe.fetch.paths import path_problem
from ganpipe.params import Fetch


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("/nowhere", "does not exist; check the path"),
        ("~nobody-here/pictures", "does not exist; write out the home folder"),
        ("pictures", "does not exist; run `dvc pull`"),
        ("pipe", "is neither a folder nor a file; name a folder, zip or tar"),
    ],
)
def test_a_wrong_path_is_one_line(path: str, problem: str, tmp_path: Path) -> None:
    """A home of nobody would end in a traceback, and reading a pipe would never end."""
    (tmp_path / "pictures.dvc").touch()
    os.mkfifo(tmp_path / "pipe")
    found = path_problem(Fetch(source="folder", path=path, url=None, sha256=None), tmp_path)
    assert found.startswith(f"fetch.path: {path} {problem}") and "\n" not in found
