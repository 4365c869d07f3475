"""The last stage: how close the generated images are to the training images, in numbers and for the eye."""

import csv
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ganpipe import files, lite0, metrics, packed, pictures, rng
from ganpipe.errors import UserError
from ganpipe.kid import kid
from ganpipe.params import Evaluate
from ganpipe.progress import Progress

# Pixels that the network sees at once. 16 images at 128 px are quickest on the CPU; it bounds the memory too.
BATCH_PIXELS = 16 * 128**2
# Pixels in width that one half of real_fake.png may take.
HALF_WIDTH = 540
# Columns of intervals.csv after the factor.
JUDGED = ("kid_lite0", "kid_lite0_sd", "precision", "recall", "coverage")

Metrics = dict[str, float | int | str | None]


def evaluate(params: Evaluate, root: Path, device: str) -> Metrics:
    """Compare N generated with N training images, and as many of each interval of z; print a summary.

    Writes metrics.json, real_fake.png, and intervals.csv and intervals.png, without rows where there are no
    intervals. N is the number of generated or of training images, whichever is smaller. The floor is the same
    comparison with N held-out images in the generated ones' place: what a perfect generator would score.

    Args:
        params: the section `evaluate`.
        root: the checkout; reads stages/preprocess and stages/sample, writes stages/evaluate.
        device: where the features are computed, such as "cpu" or "cuda".

    Returns:
        What metrics.json holds.

    Raises:
        UserError: a file of an earlier stage is missing or does not fit, or there are too few images.
    """
    data = packed.load(root / "stages/preprocess")
    generated = _samples(root / "stages/sample/samples.npy", data.images.shape[1:])
    intervals = _intervals(root / "stages/sample", generated.shape)
    n = min(len(generated), len(data.train_rows))
    real_rows = _choose(data.train_rows, n, params.seed, "train")
    fake_rows = _choose(np.arange(len(generated)), n, params.seed, "generated")
    held_out_rows = _choose(data.held_out_rows, n, params.seed, "held_out")
    has_floor = len(held_out_rows) == n

    extractor = lite0.Lite0(params.feature_resolution)
    batch_size = max(1, BATCH_PIXELS // params.feature_resolution**2)
    with Progress("evaluate", n * (2 + has_floor + len(intervals))) as progress:
        real = lite0.extract(extractor, data.images, batch_size, device, progress, real_rows)
        fake = lite0.extract(extractor, generated, batch_size, device, progress, fake_rows)
        held_out = (
            lite0.extract(extractor, data.images, batch_size, device, progress, held_out_rows)
            if has_floor
            else None
        )
        # The same rows as of the samples, so that rows of the table differ in nothing but the interval.
        compared = [
            _judged(real, lite0.extract(extractor, images, batch_size, device, progress, fake_rows), params)
            for _, _, images in intervals
        ]

    subset_size = min(n, params.kid_subset_size)
    judged = _judged(real, fake, params)
    kid_floor = fd_floor = None
    if held_out is not None:
        kid_floor = kid(real, held_out, params.kid_subsets, subset_size, params.seed)[0]
        fd_floor = metrics.fd(real, held_out)
    result: Metrics = {
        "kid_lite0": judged["kid_lite0"],
        "kid_lite0_sd": judged["kid_lite0_sd"],
        "kid_lite0_floor": _rounded(kid_floor),
        "fd_lite0": _rounded(metrics.fd(real, fake)),
        "fd_lite0_floor": _rounded(fd_floor),
        "precision": judged["precision"],
        "recall": judged["recall"],
        "coverage": judged["coverage"],
        "n": n,
        "protocol": (
            f"{extractor.protocol}; n={n}, reference=train, "
            f"kid {params.kid_subsets} subsets of {subset_size}, k={params.neighbours}"
        ),
    }
    folder = root / "stages/evaluate"
    with files.whole(folder / "metrics.json") as path:
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    picture = _real_fake(data.images, real_rows, generated, fake_rows)
    with files.whole(folder / "real_fake.png") as path:
        picture.save(path, format="PNG")
    with files.whole(folder / "intervals.csv") as path, open(path, "w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("factor", *JUDGED))
        for (factor, _, _), row in zip(intervals, compared, strict=True):
            table.writerow((factor, *(row[name] for name in JUDGED)))
    picture = _interval_rows(intervals, compared, n)
    with files.whole(folder / "intervals.png") as path:
        picture.save(path, format="PNG")
    _print_summary(result, len(intervals), held_out=len(data.held_out_rows), neighbours=params.neighbours)
    return result


def _samples(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Open the generated images, uint8 N×H×W×C, for reading; H×W×C must be the data set's `shape`."""
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no readable images ({error}); run the sample stage first") from None
    if images.dtype != np.uint8 or images.shape[1:] != shape:
        raise UserError(
            f"{path}: found {images.dtype} images, {images.shape[1:]} each, those of stages/preprocess are "
            f"uint8 {shape}; run `dvc repro`, which makes both from the same params"
        )
    return images


def _intervals(folder: Path, shape: tuple[int, ...]) -> list[tuple[float, str, np.ndarray]]:
    """Open the images of each factor on z: (factor, distribution of z in words, uint8 N×H×W×C)."""
    path = folder / "intervals.npy"
    try:
        described = json.loads((folder / "intervals.json").read_text())
        images = np.load(path, mmap_mode="r", allow_pickle=False)
        names = [(float(each["factor"]), str(each["z"])) for each in described]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no readable intervals ({error}); run the sample stage first") from None
    if images.dtype != np.uint8 or images.shape != (len(names), *shape):
        raise UserError(
            f"{path}: found {images.dtype} images {images.shape}, those of intervals.json and samples.npy "
            f"would be uint8 {(len(names), *shape)}; run the sample stage again"
        )
    return [(factor, z, part) for (factor, z), part in zip(names, images, strict=True)]


def _judged(real: np.ndarray, fake: np.ndarray, params: Evaluate) -> dict[str, float | None]:
    """Compare the features of N training and N generated images: the numbers that JUDGED names."""
    n = len(real)
    subset_size = min(n, params.kid_subset_size)
    distance, spread = kid(real, fake, params.kid_subsets, subset_size, params.seed)
    precision, recall = metrics.precision_recall(real, fake, params.neighbours)
    # Subsets as large as the sets are all the same one: their spread would be a misleading zero.
    sd = spread if subset_size < n else None
    values = (distance, sd, precision, recall, metrics.coverage(real, fake, params.neighbours))
    return {name: _rounded(value) for name, value in zip(JUDGED, values, strict=True)}


def _choose(rows: np.ndarray, count: int, seed: int, purpose: str) -> np.ndarray:
    """Return at most `count` of the rows in random order: the first ones are a fair sample to look at."""
    order = torch.randperm(len(rows), generator=rng.generator(seed, f"evaluate/{purpose}"))
    return rows[order[:count].numpy()]


def _rounded(value: float | None) -> float | None:
    """Keep six significant digits: all that float32 features carry, and stable in a diff."""
    return None if value is None else float(f"{value:.6g}")


def _real_fake(
    real: np.ndarray, real_rows: np.ndarray, fake: np.ndarray, fake_rows: np.ndarray
) -> Image.Image:
    """Show up to 64 real beside as many generated images, small ones enlarged by a whole factor."""
    side = real.shape[1]
    columns = min(pictures.columns_for(side), len(real_rows))
    count = min(len(real_rows), columns * pictures.columns_for(side // 2))
    factor = max(1, HALF_WIDTH // (columns * side))
    halves = []
    for images, rows, caption in ((real, real_rows, "real"), (fake, fake_rows, "generated")):
        large = images[rows[:count]].repeat(factor, axis=1).repeat(factor, axis=2)
        halves.append(pictures.captioned(pictures.sheet(large, columns), caption))
    return pictures.side_by_side(halves[0], halves[1], gap=16)


def _interval_rows(
    intervals: list[tuple[float, str, np.ndarray]], compared: list[dict[str, float | None]], n: int
) -> Image.Image:
    """Show the first images of each interval in a row of their own, its numbers beside them."""
    if not intervals:
        return pictures.captioned(
            Image.new("L", (540, 8), 255), "No intervals: sample.intervals is empty", 16
        )
    images = [images for _, _, images in intervals]
    columns = min(len(images[0]), max(4, min(8, 1024 // images[0].shape[1])))
    labels = []
    for (factor, z, _), row in zip(intervals, compared, strict=True):
        spread = "" if row["kid_lite0_sd"] is None else f" ± {row['kid_lite0_sd']:.3f}"
        labels.append(
            f"z times {factor:g}: {z}\nKID {row['kid_lite0']:.3f}{spread}\n"
            f"precision {row['precision']:.2f}   recall {row['recall']:.2f}"
        )
    return pictures.labelled(
        pictures.cells(np.concatenate([part[:columns] for part in images]), columns),
        columns,
        labels,
        f"The same z in each column, times the factor of its row; numbers from {n} images a row",
    )


def _print_summary(result: Metrics, intervals: int, held_out: int, neighbours: int) -> None:
    n = result["n"]
    kid_floor = fd_floor = ""
    if result["fd_lite0_floor"] is None:
        fewer = f"set sample.count to at most {held_out} or " if held_out > neighbours else ""
        print(
            f"No floor: it needs {n} held-out images and there are {held_out}; "
            f"{fewer}raise preprocess.held_out."
        )
    else:
        kid_floor = f"   floor {result['kid_lite0_floor']:.4f}"
        fd_floor = f"   floor {result['fd_lite0_floor']:.1f}, which {n} held-out real images score"
    rows = "  stages/evaluate/intervals.png       narrower and wider z, a row each\n" if intervals else ""
    spread = "" if result["kid_lite0_sd"] is None else f" ± {result['kid_lite0_sd']:.4f}"
    print(
        f"KID {result['kid_lite0']:.4f}{spread}{kid_floor}\n"
        f"FD  {result['fd_lite0']:.1f}{fd_floor}\n"
        f"precision {result['precision']:.2f}   recall {result['recall']:.2f}   "
        f"coverage {result['coverage']:.2f}   n {n}\n"
        "Where to look next:\n"
        "  stages/evaluate/real_fake.png       real and generated images side by side\n"
        f"{rows}"
        "  stages/sample                       what elements of z do, ways between images, epochs\n"
        "  stages/train/grids                  the same z over the training\n"
        "  dvc exp run -S train.glr=0.0001     change a value,\n"
        "  dvc exp show --only-changed         then compare\n"
        "  mlflow ui                           every run's curves and pictures"
    )
