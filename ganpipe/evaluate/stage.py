"""The last stage: how close the generated images are to the training images, in numbers and for the eye."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from ganpipe.common import dataset as packed
from ganpipe.common import files
from ganpipe.common import sheets as pictures
from ganpipe.common.errors import UserError
from ganpipe.evaluate import card, judgement
from ganpipe.evaluate import figures as evidence
from ganpipe.evaluate import scores as comparison
from ganpipe.evaluate.scores import Compared, Metrics, Real
from ganpipe.models import generator as snapshot
from ganpipe.params import Evaluate, Sample

# Pixels in width that one half of real_fake.png may take.
HALF_WIDTH = 540
# What intervals.csv has of each set of images, after the factor: KID under its own name, then these.
JUDGED = ("precision", "recall", "coverage")
# What snapshots.csv has, after the epoch, and the images seen until then.
TRAINED, CURVES = Path("stages/train"), ("kid", "fd", "precision", "recall", "density", "coverage")


def evaluate(params: Evaluate, sample: Sample, root: Path, device: str) -> Metrics:
    """Compare sets of generated images, of each interval of z and of snapshots, with training images.

    Writes metrics.json, card.md, real_fake.png, nearest.png, features.png, intervals and snapshots, each as
    .csv and .png, without rows where there is nothing to put in; prints a summary. The generated images are
    cut into `params.seeds` sets of N, N being at most the number of training images. The floor is the same
    comparison with N held-out images in the generated ones' place: what a perfect generator would score.

    Args:
        params: the section `evaluate`.
        sample: the section `sample`, whose first z the snapshots get.
        root: the checkout; reads stages/preprocess, stages/sample and, with `params.snapshots`, stages/train,
            writes stages/evaluate.
        device: where the features are computed, such as "cpu" or "cuda".

    Returns:
        What metrics.json holds.

    Raises:
        UserError: a file of an earlier stage is missing or does not fit, or there are too few images.
    """
    data = packed.load(root / "stages/preprocess")
    generated = _samples(root / "stages/sample/samples.npy", data.images.shape[1:])
    intervals = _intervals(root / "stages/sample", generated.shape)
    real = Real(data.images, data.train_rows, data.images, data.held_out_rows, data.digest)
    count = len(generated) // params.seeds
    snapshots = _snapshots(root / TRAINED, sample, count, device) if params.snapshots else {}
    others = [*(images for _, _, images in intervals), *snapshots.values()]
    found = comparison.compare(real, generated, params, device, root, others)
    metrics, n, (kid, fd) = found.metrics, found.features.n, judgement.names(found.name)
    compared, curves = found.others[: len(intervals)], found.others[len(intervals) :]
    folder = root / "stages/evaluate"
    with files.whole(folder / "metrics.json") as path:
        path.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    with files.whole(folder / "card.md") as path:
        path.write_text(card.card(root, metrics), encoding="utf-8")
    columns = (kid, f"{kid}_sd", *JUDGED)
    rows = [(each[0], *(row[c] for c in columns)) for each, row in zip(intervals, compared, strict=True)]
    _write_table(folder / "intervals.csv", ("factor", *columns), rows)
    names = (kid, fd, *CURVES[2:])
    seen = [(epoch, epoch * len(data.train_rows)) for epoch in snapshots]
    rows = [(*at, *(row[c] for c in names)) for at, row in zip(seen, curves, strict=True)]
    _write_table(folder / "snapshots.csv", ("epoch", "nimg", *CURVES), rows)
    for name, picture in (
        ("real_fake.png", _real_fake(data.images, found.train_rows[:n], generated, np.arange(n))),
        ("nearest.png", evidence.nearest(found.features, generated, data.images, found.train_rows)),
        ("features.png", evidence.scattered(found.features)),
        ("intervals.png", _interval_rows(intervals, compared, kid, n * params.seeds)),
        ("snapshots.png", evidence.curves(list(snapshots), curves, (kid, fd), metrics)),
    ):
        with files.whole(folder / name) as path:
            picture.save(path, format="PNG")
    _print_summary(found, params, len(intervals), len(data.held_out_rows))
    return metrics


class _Snapshot:
    """Images of a generator, made when they are asked for: those of all epochs may fit nowhere."""

    def __init__(self, G: nn.Module, z: torch.Tensor) -> None:
        self.G, self.z = G, z

    def __len__(self) -> int:
        return len(self.z)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return snapshot.images_of(self.G, self.z[rows])


def _snapshots(folder: Path, params: Sample, count: int, device: str) -> dict[int, _Snapshot]:
    """Open the generators of a training: epoch → the images that it makes of the samples' first z."""
    paths = {int(path.stem): path for path in (folder / "snapshots").glob("*.safetensors")}
    if not paths:
        raise UserError(f"{folder}/snapshots: no snapshots of the training; run the train stage")
    generators = {epoch: snapshot.load_generator(paths[epoch]) for epoch in sorted(paths)}
    model = next(iter(generators.values())).spec.params
    z = snapshot.z_of_seeds(model, params.seed, count, params.z_scale)
    return {epoch: _Snapshot(G.network.to(device), z) for epoch, G in generators.items()}


def _write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with files.whole(path) as temporary, open(temporary, "w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(header)
        table.writerows(rows)


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


def _print_summary(found: Compared, params: Evaluate, intervals: int, held_out: int) -> None:
    n = found.features.n
    if held_out < n:
        few = held_out > params.neighbours
        fewer = f"set sample.count to at most {held_out * params.seeds} or " if few else ""
        print(
            f"No floor: it needs {n} held-out images and there are {held_out}; "
            f"{fewer}raise preprocess.held_out."
        )
    rows = "  stages/evaluate/intervals.png       narrower and wider z, a row each\n" if intervals else ""
    rows += "  stages/evaluate/snapshots.png       the numbers over the epochs\n" if params.snapshots else ""
    print(
        f"{comparison.summary(found.metrics, found.name, params.seeds)}\n"
        "Where to look next:\n"
        "  stages/evaluate/real_fake.png       real and generated images side by side\n"
        "  stages/evaluate/card.md             the model card: data, scores, cost\n"
        "  stages/evaluate/nearest.png         generated images beside the most alike training images\n"
        "  stages/evaluate/features.png        where real and generated images lie\n"
        f"{rows}"
        "  stages/sample                       what elements of z do, ways between images, epochs\n"
        "  stages/train/grids                  the same z over the training\n"
        "  dvc exp run -S train.glr=0.0001     change a value,\n"
        "  ganpipe compare                     then compare\n"
        "  ganpipe ui                          every run's curves and pictures"
    )
