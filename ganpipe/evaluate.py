"""The last stage: how close the generated images are to the training images, in numbers and for the eye."""

import csv
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ganpipe import card, extractors, features, files, judgement, lite0, packed, pictures, rng
from ganpipe.errors import UserError
from ganpipe.judgement import Features
from ganpipe.params import Evaluate
from ganpipe.progress import Progress

# Pixels in width that one half of real_fake.png may take.
HALF_WIDTH = 540
# What intervals.csv has of each set of images, after the factor: KID under its own name, then these.
JUDGED = ("precision", "recall", "coverage")

Metrics = dict[str, float | int | str | None]


def evaluate(params: Evaluate, root: Path, device: str) -> Metrics:
    """Compare sets of generated images, and of each interval of z, with training images; print a summary.

    Writes metrics.json, card.md, real_fake.png, and intervals.csv and intervals.png, without rows where there
    are no intervals. The generated images are cut into `params.seeds` sets of N, N being at most the number
    of training images. The floor is the same comparison with N held-out images in the generated ones' place:
    what a perfect generator would score.

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
    n = min(len(generated) // params.seeds, len(data.train_rows))
    if n < 2:
        raise UserError(
            f"evaluate.seeds: {params.seeds} sets of at least 2 images cannot be cut from {len(generated)} "
            f"generated and {len(data.train_rows)} training images; lower it or raise sample.count"
        )
    searched = len(data.train_rows) if params.search_images is None else max(n, params.search_images)
    train_rows = _choose(data.train_rows, searched, params.seed, "train")
    held_out_rows = _choose(data.held_out_rows, n, params.seed, "held_out")

    extractor = extractors.build(params.extractor, params.feature_resolution, params.weights)
    total = len(train_rows) + len(held_out_rows) + n * params.seeds * (1 + len(intervals))
    with Progress("evaluate", total) as progress:

        def seen(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
            size = extractors.batch_size(extractor)
            return lite0.extract(extractor, images, size, device, progress, rows)

        def real(rows: np.ndarray) -> np.ndarray:
            key = (extractor.protocol, data.digest, device, str(rows.tolist()))
            before = progress.done
            found = features.cached(root, key, lambda: seen(data.images, rows))
            progress.advance(before + len(rows) - progress.done)  # all, where they were kept from before
            return found

        train = real(train_rows)
        held_out = real(held_out_rows) if len(held_out_rows) else train[:0]
        sets = [np.arange(n) + n * i for i in range(params.seeds)]
        fakes = [seen(generated, rows) for rows in sets]
        # The same rows as of the samples, so that rows of the table differ in nothing but the interval.
        several = [[seen(images, rows) for rows in sets] for _, _, images in intervals]

    result: Metrics = {
        **judgement.judged(Features(train, fakes, held_out), extractor.name, params),
        "n": n,
        "protocol": (
            f"{extractor.protocol}; n={n} in {params.seeds} sets, reference=train by seed {params.seed}, "
            f"kid {params.kid_subsets} subsets of {min(n, params.kid_subset_size)}, k={params.neighbours}, "
            f"copies among {len(train)}"
        ),
        "reference": data.digest[:8],
    }
    compared = [judgement.distances_over(train[:n], each, extractor.name, params) for each in several]
    folder, kid = root / "stages/evaluate", judgement.names(extractor.name)[0]
    with files.whole(folder / "metrics.json") as path:
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    with files.whole(folder / "card.md") as path:
        path.write_text(card.card(root, result), encoding="utf-8")
    picture = _real_fake(data.images, train_rows[:n], generated, sets[0])
    with files.whole(folder / "real_fake.png") as path:
        picture.save(path, format="PNG")
    with files.whole(folder / "intervals.csv") as path, open(path, "w", newline="") as file:
        table, columns = csv.writer(file, lineterminator="\n"), (kid, f"{kid}_sd", *JUDGED)
        table.writerow(("factor", *columns))
        for (factor, _, _), row in zip(intervals, compared, strict=True):
            table.writerow((factor, *(row[name] for name in columns)))
    picture = _interval_rows(intervals, compared, kid, n * params.seeds)
    with files.whole(folder / "intervals.png") as path:
        picture.save(path, format="PNG")
    _print_summary(result, extractor.name, params, len(intervals), len(data.held_out_rows))
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


def _choose(rows: np.ndarray, count: int, seed: int, purpose: str) -> np.ndarray:
    """Return at most `count` of the rows in random order: the first ones are a fair sample to look at."""
    order = torch.randperm(len(rows), generator=rng.generator(seed, f"evaluate/{purpose}"))
    return rows[order[:count].numpy()]


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
    intervals: list[tuple[float, str, np.ndarray]], compared: list[judgement.Numbers], kid: str, n: int
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
        spread = "" if row[f"{kid}_sd"] is None else f" ± {row[f'{kid}_sd']:.3f}"
        labels.append(
            f"z times {factor:g}: {z}\nKID {row[kid]:.3f}{spread}\n"
            f"precision {row['precision']:.2f}   recall {row['recall']:.2f}"
        )
    return pictures.labelled(
        pictures.cells(np.concatenate([part[:columns] for part in images]), columns),
        columns,
        labels,
        f"The same z in each column, times the factor of its row; numbers from {n} images a row",
    )


def _print_summary(result: Metrics, extractor: str, params: Evaluate, intervals: int, held_out: int) -> None:
    n, (kid, fd) = result["n"], judgement.names(extractor)
    kid_floor = fd_floor = ""
    if result[f"{fd}_floor"] is None:
        few = held_out > params.neighbours
        fewer = f"set sample.count to at most {held_out * params.seeds} or " if few else ""
        print(
            f"No floor: it needs {n} held-out images and there are {held_out}; "
            f"{fewer}raise preprocess.held_out."
        )
    else:
        kid_floor = f"   floor {result[f'{kid}_floor']:.4f}"
        fd_floor = f"   floor {result[f'{fd}_floor']:.1f}, which {n} held-out real images score"
    rows = "  stages/evaluate/intervals.png       narrower and wider z, a row each\n" if intervals else ""
    spread = "" if result[f"{kid}_sd"] is None else f" ± {result[f'{kid}_sd']:.4f}"
    print(
        f"KID {result[kid]:.4f}{spread}{kid_floor}\n"
        f"FD  {result[fd]:.1f}{fd_floor}\n"
        f"precision {result['precision']:.2f}   recall {result['recall']:.2f}   "
        f"coverage {result['coverage']:.2f}   n {n}, {params.seeds} sets of them\n"
        f"told from real images: {result['c2st_auc']:.2f}, 0.5 is perfect\n"
        f"copies of training images: {result['memorisation']}\n"
        "Where to look next:\n"
        "  stages/evaluate/real_fake.png       real and generated images side by side\n"
        "  stages/evaluate/card.md             the model card: data, scores, cost\n"
        f"{rows}"
        "  stages/sample                       what elements of z do, ways between images, epochs\n"
        "  stages/train/grids                  the same z over the training\n"
        "  dvc exp run -S train.glr=0.0001     change a value,\n"
        "  dvc exp show --only-changed         then compare\n"
        "  ganpipe ui                          every run's curves and pictures"
    )
