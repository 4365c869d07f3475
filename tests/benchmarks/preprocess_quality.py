"""The share of changed copies that preprocess finds, and the error of decoding JPEG files at a smaller size.

The first pictures of each archive are prepared at 64 px as the stage does, then changed and prepared anew.
Large JPEG files are decoded at a half, quarter or eighth of their size, and resized to the resolution (16 px
or more) of which the decoded size is a given multiple.

    python tests/benchmarks/preprocess_quality.py ../shared/data/{celeba5k,anime6k,flowers1k,cat450}.zip
"""

import argparse
import sys
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout, not the installed package

from ganpipe import params  # noqa: E402
from ganpipe.preprocess import decode  # noqa: E402
from ganpipe.preprocess.duplicates import _correlations, originals  # noqa: E402
from ganpipe.preprocess.prepare import difference_hash, prepare  # noqa: E402

CHANGED, DIFFERENT, LARGE, SMALLEST, MULTIPLES = 200, 1000, 192, 16, (1.5, 2.0, 2.5, 3.0)
DRAFT = decode.DRAFT
PARAMS = params.load(Path(__file__).resolve().parents[2] / "params.yaml").preprocess.model_copy(
    update={"crop": "square", "crop_size": None, "crop_box": None, "resolution": 64, "channels": 3}
)


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


def prepared(files: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Return the difference hashes and the training images."""
    images = [prepare(data, PARAMS).image for data in files]
    hashes = np.array([difference_hash(image) for image in images], np.uint64)
    return hashes, np.stack([np.asarray(image) for image in images])


def share_found(files: list[bytes], change: Callable[[Image.Image], bytes]) -> float:
    """Return the share of changed copies whose originals are found."""
    copies = [change(Image.open(BytesIO(data)).convert("RGB")) for data in files]
    hashes, pixels = prepared(files + copies)
    first = originals([str(row) for row in range(len(hashes))], hashes, pixels)
    return float((first[len(files) :] == np.arange(len(files))).mean())


def nearest(files: list[bytes]) -> tuple[int, float]:
    """Return how many different pictures are mistaken for copies, and the largest correlation of two."""
    hashes, pixels = prepared(files)
    copies = originals([str(row) for row in range(len(hashes))], hashes, pixels)
    rows = np.arange(len(pixels))
    most = max(
        float(_correlations(pixels, np.full(row, row), rows[:row]).max()) for row in range(1, len(pixels))
    )
    return int((copies != rows).sum()), most


def draft(files: list[bytes], factor: int, multiple: float) -> list[float]:
    """Return each picture's mean change in grey levels if 1/factor is decoded, `multiple` times as large."""
    changes = []
    for data in files:
        side = min(Image.open(BytesIO(data)).size)
        target = PARAMS.model_copy(update={"resolution": int(side / factor / multiple)})
        if target.resolution < SMALLEST:
            continue
        decode.DRAFT = multiple
        small = np.asarray(prepare(data, target).image).astype(int)
        decode.DRAFT = 1e9
        changes.append(float(np.abs(small - np.asarray(prepare(data, target).image)).mean()))
    decode.DRAFT = DRAFT
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
            print(f"  {name:25} {share_found(files[:CHANGED], change):6.1%} found", flush=True)
        taken, most = nearest(files)
        print(f"  of {len(files)} different ones {taken} mistaken for copies; largest correlation {most:.2f}")
    print(f"decoded smaller: {len(large)} pictures of {LARGE} px and more, grey levels")
    for multiple in MULTIPLES:
        changes = {factor: draft(large, factor, multiple) for factor in (2, 4, 8)}
        parts = [
            f"1/{f} {np.mean(change):.2f} (largest {np.max(change):.2f})" for f, change in changes.items()
        ]
        print(f"  {multiple:g} times the resolution: {', '.join(parts)}", flush=True)


if __name__ == "__main__":
    main()
