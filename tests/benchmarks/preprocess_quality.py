"""What the stage preprocess finds of changed copies, and what decoding JPEG files smaller changes.

Each archive's first pictures are prepared as the stage does, at 64 px; then changed and prepared again; and
JPEG files large enough for it are decoded at a half, quarter or eighth of their size, then resized to what
leaves so many times the resolution, 16 px or more.

    python tests/benchmarks/preprocess_quality.py ../shared/data/{celeba5k,anime6k,flowers1k,cat450}.zip
"""

import argparse
import zipfile
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from ganpipe.preprocess import decode as images
from ganpipe.preprocess.crop import Target
from ganpipe.preprocess.decode import DRAFT, difference_hash, prepare
from ganpipe.preprocess.duplicates import _correlations, originals

CHANGED, DIFFERENT, LARGE, SMALLEST, LEFT = 200, 1000, 192, 16, (1.5, 2.0, 2.5, 3.0)
TARGET = Target("square", None, None, 0.0, 8, 64, 3, (255, 255, 255))


def saved(image: Image.Image, kind: str = "PNG", **options: int) -> bytes:
    """Return a picture as a file's bytes."""
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


CHANGES: dict[str, Callable[[Image.Image], bytes]] = {
    "JPEG of quality 60": lambda image: saved(image, "JPEG", quality=60),
    "JPEG of quality 30": lambda image: saved(image, "JPEG", quality=30),
    "half the size": lambda image: saved(image.resize((image.width // 2, image.height // 2))),
    "15 % brighter": lambda image: saved(ImageEnhance.Brightness(image).enhance(1.15)),
    "2 % cut off at two sides": lambda image: saved(
        image.crop((image.width // 50, image.height // 50, image.width, image.height))
    ),
}


def packed(files: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Return the difference hashes and the training images."""
    made = [prepare(data, TARGET) for data in files]
    hashes = np.array([difference_hash(each.image) for each in made], np.uint64)
    return hashes, np.stack([each.pixels for each in made])


def found_of(files: list[bytes], change: Callable[[Image.Image], bytes]) -> float:
    """Return the share of changed copies that are found to be the pictures that they were made of."""
    copies = [change(Image.open(BytesIO(data)).convert("RGB")) for data in files]
    hashes, pixels = packed(files + copies)
    first = originals([str(row) for row in range(len(hashes))], hashes, pixels)
    return float((first[len(files) :] == np.arange(len(files))).mean())


def nearest(files: list[bytes]) -> tuple[int, float]:
    """Return how many different pictures are taken for copies, and the largest correlation of any two."""
    hashes, pixels = packed(files)
    copies = originals([str(row) for row in range(len(hashes))], hashes, pixels)
    rows = np.arange(len(pixels))
    most = max(
        float(_correlations(pixels, np.full(row, row), rows[:row]).max()) for row in range(1, len(pixels))
    )
    return int((copies != rows).sum()), most


def draft(files: list[bytes], factor: int, left: float) -> list[float]:
    """Return each picture's mean change in grey levels if 1/factor is decoded, `left` times the result."""
    changes = []
    for data in files:
        side = min(Image.open(BytesIO(data)).size)
        target = replace(TARGET, resolution=int(side / factor / left))
        if target.resolution < SMALLEST:
            continue
        images.DRAFT = left
        small = prepare(data, target).pixels.astype(int)
        images.DRAFT = 1e9
        changes.append(float(np.abs(small - prepare(data, target).pixels).mean()))
    images.DRAFT = DRAFT
    return changes


def main() -> None:
    """Print the tables of docs/data.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("archives", type=Path, nargs="+", help="zip files of pictures")
    large = []
    for path in parser.parse_args().archives:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.lower().endswith((".jpg", ".jpeg", ".png"))]
            files = [archive.read(name) for name in names[:DIFFERENT]]
        large += [data for data in files if min(Image.open(BytesIO(data)).size) >= LARGE][:40]
        print(path.name)
        for name, change in CHANGES.items():
            print(f"  {name:25} {found_of(files[:CHANGED], change):6.1%} found", flush=True)
        taken, most = nearest(files)
        print(f"  of {len(files)} different ones {taken} taken for copies; largest correlation {most:.2f}")
    print(f"decoded smaller: {len(large)} pictures of {LARGE} px and more, grey levels")
    for left in LEFT:
        changes = {factor: draft(large, factor, left) for factor in (2, 4, 8)}
        parts = [f"1/{f} {np.mean(each):.2f} (largest {np.max(each):.2f})" for f, each in changes.items()]
        print(f"  {left:g} times the resolution left: {', '.join(parts)}", flush=True)


if __name__ == "__main__":
    main()
