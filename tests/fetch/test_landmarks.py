"""Landmarks in the formats that are in use."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from ganpipe.common.errors import UserError
from ganpipe.fetch.catalogue import SOURCES
from ganpipe.fetch.landmarks import Points, read_cat, read_table

CELEBA = """2
lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y rightmouth_x rightmouth_y
000001.jpg 69  109  106  113   77  142   73  152  108  154
000002.jpg 69  110  107  112   81  135   70  151  108  153
"""


def opener(data: bytes) -> Callable[[], IO[bytes]]:
    """Return a function that opens bytes as a file."""
    return lambda: io.BytesIO(data)


def points(source: str, path: Path) -> Points:
    """Return the landmarks that a source reads."""
    with SOURCES[source].layout((path,)) as contents:
        return contents.points


def test_tables_in_the_forms_that_people_have() -> None:
    """A heading would be read as a point, or a picture without its row could not be cropped."""
    expected = {"a b.png": (1.0, 2.5, -3.0, 4.0), "sub/b.png": (5.0, 6.0, 7.0, 8.0)}
    for text in (
        'name,x1,y1,x2,y2\n"a b.png",1,2.5,-3,4\nsub\\\\b.png,5,6,7,8\n',
        "\ufeffa b.png;1;2.5;-3;4\r\n../sub/b.png;5;6;7;8e0\r\n\r\n",
        "image\tx\ty\tx\ty\na b.png\t1\t2.5\t-3\t4\nsub/b.png\t5\t6\t7\t8",
    ):
        assert read_table("t", opener(text.encode())) == expected
    assert read_table("t", opener(b"name,x,y\n")) == read_table("t", opener(b"")) == {}
    faces = read_table("t", opener(CELEBA.encode()))
    assert list(faces) == ["000001.jpg", "000002.jpg"] and faces["000001.jpg"][-2:] == (108.0, 154.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.png,1,2,3,4\nb.png,1,2,3\n", "line 2: found 'b.png,1,2,3'"),
        ("a.png,1,2,3,4\nb.png,1,2,3,nan\n", "line 2"),
        ("a.png,1,2,3,4\n,1,2,3,4\n", "line 2"),
        ("name\n\nname\na.png,1,2\n", "line 4"),
    ],
)
def test_a_bad_table_is_one_line(text: str, expected: str) -> None:
    """A damaged table would leave out pictures without a message."""
    with pytest.raises(UserError, match=expected) as caught:
        read_table("t.csv", opener(text.encode()))
    assert str(caught.value).startswith("t.csv: ") and "\n" not in str(caught.value)


def test_cats_files() -> None:
    """Wrong points from a damaged file would turn its cat by a random angle."""
    assert read_cat(opener(b"2 1 2 3 -4 ")) == (1.0, 2.0, 3.0, -4.0)
    for bad in (b"", b"3 1 2 3 4", b"2 1 2 3 x", b"1 1 2", b"\xff\x00", b"2 1 2 3 inf"):
        assert read_cat(opener(bad)) is None


def test_a_cat_whose_eyes_are_swapped_is_not_turned_upside_down() -> None:
    """The networks would be trained with a head that is upside down."""
    assert read_cat(opener(b"3 1 1 9 2 5 7")) == (1, 1, 9, 2, 5, 7)
    assert read_cat(opener(b"3 9 2 1 1 5 7")) == (1, 1, 9, 2, 5, 7)
    # The head is upside down in the picture, with the eyes in order: nothing to swap.
    assert read_cat(opener(b"3 9 7 1 7 5 1")) == (9, 7, 1, 7, 5, 1)


def test_each_source_finds_its_own(tmp_path: Path) -> None:
    """Landmarks would be stored under names that no picture has."""
    for name in ("CAT_00/00000001_000.jpg", "CAT_00/00000001_001.jpg", "faces/000001.jpg", "own/a/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    (tmp_path / "CAT_00/00000001_000.jpg.cat").write_text("2 1 2 3 4 ")
    (tmp_path / "CAT_00/00000001_001.jpg.cat").write_text("damaged")
    (tmp_path / "faces/list_landmarks_align_celeba.txt").write_text(CELEBA)
    (tmp_path / "own/a/landmarks.csv").write_text("b.png,1,2,3,4\n")
    assert points("cat", tmp_path / "CAT_00") == {"00000001_000.jpg": (1.0, 2.0, 3.0, 4.0)}
    assert points("celeba", tmp_path / "faces")["000001.jpg"][:2] == (69.0, 109.0)
    assert points("folder", tmp_path / "own") == {"a/b.png": (1.0, 2.0, 3.0, 4.0)}
