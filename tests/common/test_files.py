"""Files that are whole or absent."""

import hashlib
from pathlib import Path

import pytest

from ganpipe.common import files


def test_an_exception_leaves_the_old_file(tmp_path: Path) -> None:
    """A failure means that a full disk or a kill destroys what was there before."""
    path = tmp_path / "deep" / "file.txt"
    with files.whole(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(OSError, match="full"), files.whole(path) as temporary:
        temporary.write_text("ne")
        raise OSError("full")
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    """Without the file's name a user does not know which disk is full."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with (
        pytest.raises(OSError, match="No space left") as caught,
        files.whole(tmp_path / "images.npy"),
        open("/dev/full", "wb", buffering=0) as full,
    ):
        full.write(b"x")
    assert caught.value.filename == str(tmp_path / "images.npy")


def test_sha256(tmp_path: Path) -> None:
    """A wrong digest would let damaged files pass."""
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
