"""Hostile files: whatever a folder contains, the stage ends, reports on each file, and uses little memory."""

import csv
import importlib.util
import io
import json
import os
import threading
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL
import psutil
import pytest
from conftest import ROOT, updated
from PIL import Image

from ganpipe import params
from ganpipe.fetch.stage import fetch
from ganpipe.preprocess import stage as preprocess
from ganpipe.preprocess.workers import Limits

# As observed with Pillow 13; docs/data.md says why these differ from the manifest.
AVIF = {"exif/rot1mir0.avif", "exif/rot3mir0.avif", "exif/xmp_tags_orientation.avif", "odd/hopper.avif"}
DIFFERENT = AVIF | {"odd/transparency.avif"}
if importlib.util.find_spec("pillow_heif"):
    DIFFERENT |= {"odd/hopper.heif"}
if int(PIL.__version__.partition(".")[0]) < 13:  # with Gradio; it cannot decode two files that 13 can
    crashes = "0da013a13571cc8eb457a39fee8db18f8a3c7127", "74d2a78403a5a59db1fb0a2b8735ac068a75f6e3"
    DIFFERENT |= {f"pil_fuzz/crash-{name}.tif" for name in crashes}
GOOD: list[tuple[str, str, dict[str, Any]]] = [
    ("JPEG", "RGB", {}),
    ("JPEG", "RGB", {"progressive": True}),
    ("JPEG", "CMYK", {}),
    ("PNG", "RGBA", {}),
    ("PNG", "P", {}),
    ("PNG", "I;16", {}),
    ("GIF", "P", {"save_all": True, "append_images": [Image.new("P", (48, 40))]}),
    ("BMP", "RGB", {}),
    ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    ("TIFF", "L", {"compression": "tiff_adobe_deflate"}),
    ("TIFF", "RGB", {"compression": "jpeg"}),
    ("TIFF", "1", {"compression": "group4"}),
    ("WEBP", "RGB", {}),
    ("WEBP", "RGBA", {"lossless": True}),
    ("AVIF", "RGB", {"speed": 10}),
]


def good_files() -> list[bytes]:
    """Return one small sound file of each common kind."""
    pixels = np.random.default_rng(0).integers(0, 256, (10, 12, 3), np.uint8)
    picture = Image.fromarray(pixels).resize((48, 40), Image.Resampling.BICUBIC)
    files = []
    for kind, mode, options in GOOD:
        file = io.BytesIO()
        deep = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
        (deep if mode == "I;16" else picture.convert(mode)).save(file, kind, **options)
        files.append(file.getvalue())
    return files


def mutations(count: int, seed: int) -> Iterator[bytes]:
    """Yield sound files with flipped bits, cut off, with a piece of another inserted, or a piece removed."""
    rng, files = np.random.default_rng(seed), good_files()
    for _ in range(count):
        data = bytearray(files[rng.integers(len(files))])
        kind, at = rng.integers(4), int(rng.integers(len(data)))
        if kind == 0:
            # Half of them in headers, where one bit changes sizes, counts and offsets.
            most = min(len(data), 64) if rng.random() < 0.5 else len(data)
            for bit in rng.integers(0, 8 * most, int(2 ** rng.uniform(0, 6))):
                data[bit // 8] ^= 1 << (bit % 8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            other = files[rng.integers(len(files))]
            start, size = int(rng.integers(len(other))), int(2 ** rng.uniform(0, 10))
            data[at : at + size * int(rng.integers(2))] = other[start : start + size]
        else:
            del data[at : at + int(2 ** rng.uniform(0, 8))]
        yield bytes(data)


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a PNG chunk with a right checksum."""
    return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)


def png(width: int, height: int, *chunks: bytes, rows: int | None = None) -> bytes:
    """Return a grey PNG of zeros, with other chunks before its pixels, and fewer rows than it declares."""
    header = width.to_bytes(4) + height.to_bytes(4) + b"\x08\0\0\0\0"
    pixels = zlib.compress(bytes((width + 1) * (height if rows is None else rows)), 1)
    parts = (chunk(b"IHDR", header), *chunks, chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


UNKNOWN = "not a picture of a known format"


def crafted() -> dict[str, tuple[bytes, str | None]]:
    """Map names to files made to do harm, and the reason of their rejection; None: accepted."""
    bomb = zlib.compress(bytes(100 << 20), 1)
    tiff = b"II*\0\x08\0\0\0\x01\0\0\1\3\0\xff\xff\xff\x7f\x08\0\0\0\x08\0\0\0"
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="/etc/passwd"/></svg>'
    return {
        "bomb in a text.png": (png(20, 20, chunk(b"zTXt", b"comment\0\0" + bomb)), "damaged (ValueError)"),
        "bomb in a profile.png": (png(20, 20, chunk(b"iCCP", b"name\0\0" + bomb)), "damaged (ValueError)"),
        "40000x40000.png": (png(40_000, 40_000, rows=1), "more than 100 megapixels"),
        "large and empty.png": (png(6_000, 6_000), "takes more than 32 MB of memory to read"),
        "line.png": (png(60_000, 1), "smaller than preprocess.min_side (8 px) in a side"),
        "loop.tif": (tiff, UNKNOWN),
        "page.jpg": (b"<html><script>alert(1)</script></html>", UNKNOWN),
        "drawing.svg": (svg, UNKNOWN),
        "script.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/tmp/x) (w) file\n", UNKNOWN),
        "program.png": (b"\x7fELF" + bytes(99), UNKNOWN),
        "polyglot.png": (png(20, 20) + b"PK\x05\x06" + bytes(18), None),
        "wrong name.jpg": (png(20, 20), None),
        "empty.png": (b"", "empty file"),
        "$(touch owned) `touch owned`; touch owned &.png": (png(20, 21), None),
        "-rf *.png": (png(21, 20), None),
        '\'; DROP TABLE "images" --.png': (png(22, 20), None),
        "<img src=x onerror=alert(1)>.png": (png(23, 20), None),
        "سلام 猫 🐈.png": (png(24, 20), None),
    }


def stage(root: Path, workers: int, **changes: Any) -> tuple[dict[str, str | None], dict[str, Any]]:
    """Run the stage on what was fetched; return name → reason (None: accepted), and its report."""
    values = updated(params.load(ROOT / "params.yaml"), preprocess__max_rejected=1.0, **changes)
    preprocess.preprocess(values.preprocess, root, workers)
    out = root / "stages/preprocess"
    index, rejected = (
        pd.read_csv(out / name, dtype=str, keep_default_na=False) for name in ("index.csv", "rejected.csv")
    )
    reasons = dict(zip(rejected["name"], rejected["reason"], strict=True)) | dict.fromkeys(index["name"])
    assert len(reasons) == len(index) + len(rejected)
    return reasons, json.loads((out / "report.json").read_text())


def test_crafted_and_mutated_files_end_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger's file would end the stage, fill the memory, or be executed."""
    monkeypatch.chdir(tmp_path)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    files = {name: data for name, (data, _) in crafted().items()}
    files |= {f"mutation {i:04d}": data for i, data in enumerate(mutations(300, seed=1))}
    for name, data in files.items():
        (pictures / name).write_bytes(data)
    fetch(params.Fetch(source="folder", path=str(pictures), url=None, sha256=None), tmp_path)
    monkeypatch.setattr(preprocess, "LIMITS", Limits(seconds=30, memory=32 << 20))
    reasons, report = stage(tmp_path, workers=2)
    # fetch replaces characters that reverse the direction of names by "_".
    expected = {name.replace("\u202e", "_"): why for name, (_, why) in crafted().items()}
    assert len(reasons) == len(files) and {name: reasons.get(name, "lost") for name in expected} == expected
    lost = [why for why in reasons.values() if why and ("crashes" in why or "takes" in why)]
    assert lost == ["takes more than 32 MB of memory to read"]
    mutated = [name for name in files if name.startswith("mutation")]
    assert 0.2 < np.mean([reasons[name] is None for name in mutated]) < 0.8, Counter(reasons.values())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pictures", "stages"]


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Yield a list whose one number becomes the largest sum of the child processes' peak memory, in MB."""
    peak, over = [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            total = 0
            for child in psutil.Process().children(recursive=True):
                try:
                    status = Path(f"/proc/{child.pid}/status").read_text()
                except OSError:
                    continue
                total += sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
            peak[0] = max(peak[0], total / 1024)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


@pytest.mark.long
def test_ten_thousand_mutations_neither_crash_nor_hang(tmp_path: Path) -> None:
    """The decoders are C code that is often attacked; a crash in them must not stop hours of work."""
    (tmp_path / "stages/fetch").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for i, data in enumerate(mutations(10_000, seed=0)):
            archive.writestr(f"{i:05d}", data)
    fetch(params.Fetch(source="folder", path=str(tmp_path / "pictures.zip"), url=None, sha256=None), tmp_path)
    started = time.monotonic()
    with peak_memory() as peak:
        reasons, report = stage(tmp_path, workers=2)
    print(
        f"{time.monotonic() - started:.1f} s, peak {peak[0]:.0f} MB", json.dumps(report["rejected_by_reason"])
    )
    assert len(reasons) == 10_000
    assert not [why for why in reasons.values() if why and ("crashes" in why or "takes" in why)]
    assert peak[0] < 1000


@pytest.mark.long
def test_bad_images_end_as_a_strict_policy_says(tmp_path: Path) -> None:
    """228 files on which decoders have crashed; GANPIPE_BADIMAGES names the zip, with its manifest.csv."""
    path = os.environ.get("GANPIPE_BADIMAGES")
    if not path:
        pytest.skip("GANPIPE_BADIMAGES does not name badimages.zip")
    with zipfile.ZipFile(path) as archive:
        rows = list(csv.DictReader(archive.read("manifest.csv").decode().splitlines()))
    fetch(params.Fetch(source="folder", path=path, url=None, sha256=None), tmp_path)
    started = time.monotonic()
    with peak_memory() as peak:
        reasons, report = stage(tmp_path, workers=2)
    print(
        f"{time.monotonic() - started:.1f} s, peak {peak[0]:.0f} MB", json.dumps(report["rejected_by_reason"])
    )
    assert len(rows) == 228 and {row["file"] for row in rows} <= reasons.keys()
    accepted = {row["file"]: row["strict_policy_13"].startswith("accept") for row in rows}
    assert {name for name, right in accepted.items() if (reasons[name] is None) != right} == DIFFERENT
    assert not [why for why in reasons.values() if why and ("crashes" in why or "takes" in why)]
    assert peak[0] < 1000
