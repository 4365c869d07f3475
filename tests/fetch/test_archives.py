"""Listing folders and archives: completely, under clean names, and without harm from an archive."""

import gzip
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import LISTED, make_folder, make_tar, make_zip

from ganpipe.common.errors import UserError
from ganpipe.fetch import archives
from ganpipe.fetch.archives import clean_name, listing


def listed(path: Path) -> dict[str, bytes]:
    """Read all files of a folder or archive."""
    with listing(path) as files:
        content = {}
        for name, opener in files:
            with opener() as stream:
                content[name] = stream.read()
        assert len(content) == len(files)
    return content


def refusal(path: Path) -> str:
    """Return the one-line error about a path."""
    with pytest.raises(UserError) as caught:
        listed(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["folder", "zip", "", "gz", "bz2", "xz"])
def test_folder_and_archives_give_the_same_files(tmp_path: Path, kind: str) -> None:
    """A folder and the archive packed from it would be different data sets."""
    path = tmp_path / "pictures"
    if kind == "folder":
        make_folder(path)
    elif kind == "zip":
        make_zip(path)
    else:
        make_tar(path, kind)
    assert listed(path) == LISTED


def test_links_in_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """DVC's link caches and subset folders contain links to files; a link to a folder can be a loop."""
    folder = make_folder(tmp_path / "pictures")
    (tmp_path / "outside.png").write_bytes(b"outside")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "broken.png").symlink_to(tmp_path / "missing.png")
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe.png")
    assert listed(folder) == {**LISTED, "link.png": b"outside"}
    assert capsys.readouterr().err.endswith(": broken.png, loop, pipe.png\n")


def test_a_full_place_for_temporary_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compressed tar is unpacked to TMPDIR: the message would name no place, or blame the archive."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    monkeypatch.setattr(archives.tempfile, "TemporaryFile", lambda: open("/dev/full", "r+b"))
    with pytest.raises(UserError, match=f"{tempfile.gettempdir()}: No space .* set TMPDIR to another folder"):
        listed(make_tar(tmp_path / "a.tgz", "gz"))


def test_a_name_that_is_no_text_is_still_a_file(tmp_path: Path) -> None:
    """Old archives contain names in old encodings; the stage would end in a traceback."""
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")).write_bytes(b"1")
    assert list(listed(tmp_path)) == ["caf\N{REPLACEMENT CHARACTER}.png"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("../../etc/passwd", "etc/passwd"),
        ("/abs/a.png", "abs/a.png"),
        ("C:\\pictures\\a.png", "pictures/a.png"),
        ("..\\..\\a.png", "a.png"),
        ("a/./b//c.png", "a/b/c.png"),
        ("line\nbreak\x7f.png", "line_break_.png"),
        ("..", "unnamed"),
    ],
)
def test_names_are_cleaned(name: str, expected: str) -> None:
    """A user who unpacks images.zip would write a file outside of the folder."""
    assert "/".join(clean_name(name)) == expected


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_equal_names_all_stay(tmp_path: Path) -> None:
    """One of two pictures with the same name would be lost without a message."""
    path = make_zip(
        tmp_path / "a.zip", [("a.png", b"1"), ("x/../a.png", b"2"), ("a-2.png", b"3"), ("a.png", b"4")]
    )
    assert listed(path) == {"a.png": b"1", "x/a.png": b"2", "a-2.png": b"3", "a-3.png": b"4"}


def test_many_equal_names_take_no_time() -> None:
    """Listing a small archive with a million equal names would take a day."""
    named = archives._cleaned([("a.png", make_folder)] * 50_000)  # type: ignore[list-item]
    assert [name for name, _ in named[:3]] == ["a.png", "a-2.png", "a-3.png"]
    assert len({name for name, _ in named}) == 50_000


def test_links_and_devices_in_archives_are_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A link in a downloaded archive would copy the user's private files into the data set."""
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo(f"member{kind.decode()}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    assert listed(tmp_path / "a.tar") == {}
    assert "left out 4" in capsys.readouterr().err
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        packed.writestr(link, "/etc/passwd")
    assert listed(tmp_path / "a.zip") == {}


def damaged_archives(folder: Path) -> Iterator[Path]:
    """Yield archives with one fault each."""
    noise = np.random.default_rng(0).bytes(20_000)
    for mode in ("", "gz", "bz2", "xz"):
        whole = make_tar(folder / f"whole.tar.{mode}", mode).read_bytes()
        (folder / f"cut.tar.{mode}").write_bytes(whole[: len(whole) // 2 if mode else 2000])
        yield folder / f"cut.tar.{mode}"
    header = bytearray(make_tar(folder / "whole.tar", "").read_bytes())
    header[1024 + 150] ^= 1
    (folder / "header.tar").write_bytes(header)
    yield folder / "header.tar"
    whole = make_zip(folder / "whole.zip", [("a.png", noise), ("b.png", noise)]).read_bytes()
    for name, data in {
        "cut.zip": whole[: len(whole) // 2],
        "flipped.zip": whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:],
        "head.zip": whole[3000:],
        "text.zip": b"this is a text",
        "empty.zip": b"",
        "noise.tar.gz": b"\x1f\x8b" + noise,
    }.items():
        (folder / name).write_bytes(data)
        yield folder / name


def test_a_damaged_archive_is_one_clear_line(tmp_path: Path) -> None:
    """Half a download would become half a data set without a message, or end in a traceback."""
    for path in damaged_archives(tmp_path):
        assert "damaged" in refusal(path), path


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    """Every picture in it would be rejected as damaged."""
    data = bytearray(make_zip(tmp_path / "a.zip", [("a.png", b"secret")]).read_bytes())
    data[6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    assert "encrypted" in refusal(tmp_path / "a.zip")


def test_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small archive would fill the disk."""
    monkeypatch.setattr(archives, "RATIO_FROM", 10**6)
    zeros = b"\0" * 3_000_000
    make_zip(tmp_path / "a.zip", [("a.png", zeros)])
    assert "bomb" in refusal(tmp_path / "a.zip")
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(zeros * 4))
    assert "bomb" in refusal(tmp_path / "a.tar.gz")
    monkeypatch.setattr(archives, "MAX_FILES", 2)
    make_tar(tmp_path / "b.tar", "")
    assert "more than 2 files" in refusal(tmp_path / "b.tar")
    make_zip(tmp_path / "b.zip")
    assert "more than 2 files" in refusal(tmp_path / "b.zip")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A file deleted while the folder is read would cause a traceback."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"1")
    with listing(tmp_path / "pictures") as ((_, opener),):
        (tmp_path / "pictures" / "a.png").unlink()
        with pytest.raises(UserError, match=r"a\.png: cannot be read"):
            opener()
