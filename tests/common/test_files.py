"""Atomic writes, numbered records and sha256."""

import hashlib
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ganpipe.common.errors import UserError
from ganpipe.common.files import claim, records, sha256, temporary_space, whole


def test_an_exception_leaves_the_old_file(tmp_path: Path) -> None:
    """A full disk or a kill would destroy the earlier file."""
    path = tmp_path / "deep" / "file.txt"
    with whole(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(OSError, match="full"), whole(path) as temporary:
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
        whole(tmp_path / "images.npy"),
        open("/dev/full", "wb", buffering=0) as full,
    ):
        full.write(b"x")
    assert caught.value.filename == str(tmp_path / "images.npy")


def test_a_full_place_for_temporary_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user would free space on the wrong disk; the error of another, named file must stay as it is."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    expected = f"{tmp_path}: No space left on device; free some space there, or set TMPDIR"
    with pytest.raises(UserError, match=re.escape(expected)), temporary_space():
        with open("/dev/full", "wb") as full:
            full.write(b"x")
    with pytest.raises(OSError, match="No space left") as caught, temporary_space(), whole(tmp_path / "out"):
        with open("/dev/full", "wb") as full:
            full.write(b"x")
    assert caught.value.filename == str(tmp_path / "out")


def test_sha256(tmp_path: Path) -> None:
    """A wrong digest would let damaged files pass."""
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


def test_no_two_attempts_get_one_number(tmp_path: Path) -> None:
    """Two machines would write into one record, and neither would see that the other has taken over."""
    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(lambda _: claim(tmp_path / "attempts"), range(40)))
    assert {int(path.stem) for path in claimed} == set(range(1, 41))
    (tmp_path / "attempts/3.json").unlink()
    assert claim(tmp_path / "attempts").name == "41.json"
    assert [int(path.stem) for path in records(tmp_path / "attempts")][:3] == [41, 40, 39]
    assert not records(tmp_path / "none")
