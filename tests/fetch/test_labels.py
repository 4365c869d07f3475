"""The classes of pictures: from folders, a user's table, and Oxford-102's own."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import make_zip
from scipy.io import savemat

from ganpipe.common.errors import UserError
from ganpipe.fetch.stage import fetch
from ganpipe.params import Fetch


def labels(source: str, path: Path) -> dict[str, str]:
    """Run the stage and return the class of each picture that has one."""
    fetch(Fetch(source=source, path=str(path), url=None, sha256=None), path.parent)  # type: ignore[arg-type]
    table = pd.read_csv(path.parent / "stages/fetch/labels.csv", dtype=str, keep_default_na=False)
    return dict(zip(table["name"], table["class"], strict=True))


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes files, each with its name as content, and returns their folder."""

    def write(*names: str, table: str = "") -> Path:
        for name in names:
            (tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "own" / name).write_text(name)
        if table:
            (tmp_path / "own/labels.csv").write_text(table, encoding="utf-8")
        return tmp_path / "own"

    return write


def test_a_folders_name_is_the_class(write: Callable[..., Path], tmp_path: Path) -> None:
    """A set sorted into folders would need a table, or train and test folders would become classes."""
    names = ["top.png", "cat/a.png", "train/null/b.png", "test/null/c.png"]
    expected = {"cat/a.png": "cat", "train/null/b.png": "null", "test/null/c.png": "null"}
    assert labels("folder", write(*names)) == expected
    make_zip(tmp_path / "own.zip", [(name, name.encode()) for name in names])
    assert labels("archive", tmp_path / "own.zip") == expected


@pytest.mark.parametrize("heading", ["", "file,class\n", "\ufeffFilename,Species\n"])
def test_a_table_takes_precedence(
    write: Callable[..., Path], heading: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Classes would be lost, or a misspelt name be left out in silence."""
    table = f'{heading}x/a.png,"Great Dane, old"\n\nb.png;001\nlost.png,cat\n'
    found = labels("folder", write("x/a.png", "x/c.png", "b.png", table=table))
    assert found == {"x/a.png": "Great Dane, old", "x/c.png": "x", "b.png": "001"}
    line = "left out the classes of 1 pictures that are missing, such as lost.png; correct the names"
    assert line in capsys.readouterr().err


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("a.png\n", r"labels\.csv: line 1: found 'a\.png', expected a picture's name and its class"),
        ("a.png,cat\n,dog\n", r"line 2: found ',dog'"),
        ("a.png,cat\na.png,dog\n", r"line 2: a\.png has the class 'dog', and 'cat' before"),
    ],
)
def test_a_table_that_cannot_be_read(write: Callable[..., Path], table: str, words: str) -> None:
    """A picture would silently train as another class, or with none."""
    with pytest.raises(UserError, match=words) as caught:
        labels("folder", write("a.png", table=table))
    assert "\n" not in str(caught.value)


def test_oxford_102_has_its_own(write: Callable[..., Path]) -> None:
    """The flowers' classes would have to be copied out of MATLAB by hand."""
    folder = write("jpg/image_00001.jpg", "jpg/image_00003.jpg", "imagelabels.mat")
    with pytest.raises(UserError, match=r"imagelabels\.mat: not the labels of Oxford-102 \(MatReadError"):
        labels("flowers102", folder)
    savemat(folder / "imagelabels.mat", {"labels": np.array([[77, 5, 102]], np.uint8)}, do_compression=True)
    assert labels("flowers102", folder) == {"image_00001.jpg": "77", "image_00003.jpg": "102"}
    savemat(folder / "imagelabels.mat", {"others": np.zeros(3)})
    with pytest.raises(UserError, match=r"not the labels of Oxford-102 \(KeyError"):
        labels("flowers102", folder)
