"""From images to features to numbers: what the evaluate stage and `ganpipe score` compute."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ganpipe.common import seeds
from ganpipe.common.errors import UserError
from ganpipe.common.progress import Progress
from ganpipe.evaluate.feature_cache import cached
from ganpipe.metrics import copies, extractors, lite0, manifold
from ganpipe.metrics.classifier import c2st_auc
from ganpipe.metrics.errors import ParamError
from ganpipe.metrics.fd import fd
from ganpipe.metrics.kid import kid
from ganpipe.params import Evaluate

Metrics = dict[str, float | int | str | None]
Numbers = dict[str, float | None]


class DistanceNames(NamedTuple):
    """Names among the metrics."""

    kid: str
    fd: str


def distance_names(extractor: str) -> DistanceNames:
    """Name the distances after an extractor; the word FID is kept for the network that it is defined for."""
    return DistanceNames(f"kid_{extractor}", "fid" if extractor == "inception" else f"fd_{extractor}")


@dataclass(frozen=True)
class RealImages:
    """Training and held-out images, uint8 N×H×W×C in [0, 255], which may be in one array; rows are int64."""

    images: np.ndarray
    train_rows: np.ndarray
    held_out: np.ndarray
    held_out_rows: np.ndarray
    digest: str  # of all of them


@dataclass(frozen=True)
class Features:
    """Features of the images to compare, float32.

    Attributes:
        train: M×d, the training images among which copies are searched; the first N are the reference.
        fakes: sets of generated images, each N×d.
        held_out: real images held out from training, N×d or fewer rows, even none.
    """

    train: np.ndarray
    fakes: Sequence[np.ndarray]
    held_out: np.ndarray

    @property
    def n(self) -> int:
        """N."""
        return len(self.fakes[0])


@dataclass(frozen=True)
class Scores:
    """The content of metrics.json, the features it was computed from, and each further source's numbers."""

    metrics: Metrics
    names: DistanceNames
    features: Features
    train_rows: np.ndarray  # the training images of `features.train`, in that order
    others: list[Numbers]


def score_images(
    real: RealImages,
    generated: np.ndarray,
    params: Evaluate,
    device: str,
    root: Path | None = None,
    others: Sequence[Any] = (),
) -> Scores:
    """Compare `params.seeds` sets of generated images with as many training images each.

    The sets are consecutive and have N images each, N being at most the number of training images.

    Args:
        real: all training and held-out images.
        generated: uint8 N×H×W×C in [0, 255].
        params: the section `evaluate`.
        device: such as "cpu" or "cuda".
        root: the checkout in which the real images' features are cached; None: they are not.
        others: further sources of N images or more, scored without classifier and search for copies: arrays
            like `generated`, or objects with a length that return the images of an int64 array of rows.

    Raises:
        UserError: there are too few images, or their features cannot be computed or compared.
    """
    n = min(len(generated) // params.seeds, len(real.train_rows))
    if n < 2:
        raise ParamError(
            "seeds",
            f"{params.seeds} sets of at least 2 images cannot be cut from {len(generated)} generated and "
            f"{len(real.train_rows)} training images; use fewer sets or more images",
        )
    searched = len(real.train_rows) if params.search_images is None else max(n, params.search_images)
    chosen = replace(
        real,
        train_rows=_choose(real.train_rows, searched, params.seed, "train"),
        held_out_rows=_choose(real.held_out_rows, n, params.seed, "held_out"),
    )
    extractor = extractors.build(params.extractor, params.feature_resolution, params.weights)
    # The same rows of every source, so that sources differ only in how their images were generated.
    sets = [
        [(source, np.arange(n * i, n * i + n)) for i in range(min(params.seeds, len(source) // n))]
        for source in (generated, *others)
    ]
    features, further = _extract(extractor, chosen, sets, device, root)
    protocol = (
        f"{extractor.protocol}; n={n} in {params.seeds} sets, reference=train by seed {params.seed}, "
        f"kid {params.kid_subsets} subsets of {min(n, params.kid_subset_size)}, k={params.neighbours}, "
        f"copies among {len(features.train)}"
    )
    metrics = score_features(features, params)
    metrics |= {"n": n, "protocol": protocol, "reference": real.digest[:8]}
    numbers = [_score_without_classifier(features.train[:n], fakes, params) for fakes in further]
    names = distance_names(params.extractor)
    return Scores(metrics, names, features, chosen.train_rows, numbers)


def _choose(rows: np.ndarray, count: int, seed: int, purpose: str) -> np.ndarray:
    """Return at most `count` of the rows in random order, so that the first ones are a fair sample."""
    order = torch.randperm(len(rows), generator=seeds.generator(seed, f"evaluate/{purpose}"))
    return rows[order[:count].numpy()]


def _extract(
    extractor: extractors.Extractor,
    real: RealImages,
    sets: list[list[tuple[Any, np.ndarray]]],
    device: str,
    root: Path | None,
) -> tuple[Features, list[list[np.ndarray]]]:
    """Return the features of the real images and of the first source's sets; those of the others' sets."""
    batch_size = extractors.batch_size(extractor)
    chosen = [real.train_rows, real.held_out_rows, *(rows for source in sets for _, rows in source)]
    with Progress("evaluate", sum(map(len, chosen))) as progress:

        def extract(images: Any, rows: np.ndarray) -> np.ndarray:
            return lite0.extract(extractor, images, batch_size, device, progress, rows)

        def extract_real(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
            key = (extractor.protocol, real.digest, device, str(rows.tolist()))
            end = progress.done + len(rows)
            features = cached(root, key, lambda: extract(images, rows))
            progress.advance(end - progress.done)  # those that were read from the cache
            return features

        train = extract_real(real.images, real.train_rows)
        held_out = extract_real(real.held_out, real.held_out_rows) if len(real.held_out_rows) else train[:0]
        fakes, *further = [[extract(images, rows) for images, rows in source] for source in sets]
    return Features(train, fakes, held_out), further


def score_features(features: Features, params: Evaluate) -> Metrics:
    """Compare sets of generated images with the reference, as many training images.

    Returns:
        kid_… and fd_… (fid), with fd_…_ratio to its floor; precision, recall, density, coverage; c2st_auc;
        diversity; nn_ratio, authenticity: means over the sets, six digits each. With _sd: standard deviation
        over the sets, None for one set. With _floor: the number of N held-out images in place of the
        generated ones, None if there are fewer. `memorisation`: a line that interprets the last two.

    Raises:
        UserError: there are too few images, their features are not finite, or the real ones are all equal.
    """
    real, held_out, names = features.train[: features.n], features.held_out, distance_names(params.extractor)
    if (real == real[0]).all():
        raise UserError(
            f"metrics: the features of all {len(real)} real images are equal ({names.kid}); nothing can be "
            "compared with them; use other real images or another extractor"
        )
    enough = len(held_out) >= copies.LEAST_HELD_OUT
    near_held_out = copies.neighbours(held_out, features.train) if enough else None
    reference = manifold.balls(real, params.neighbours)
    sets = []
    for fake in features.fakes:
        near = copies.neighbours(fake, features.train)
        ratio = copies.nn_ratio(near, near_held_out) if near_held_out else None
        numbers = _compare(reference, fake, params, classify=True)
        sets.append({**numbers, "nn_ratio": ratio, "authenticity": float(near.authentic.mean())})
    floor = _compare(reference, held_out, params, classify=True) if len(held_out) == len(real) else {}
    if near_held_out:
        floor["authenticity"] = float(near_held_out.authentic.mean())
    result: Numbers = {}
    for name in sets[0]:
        result |= _mean_and_sd(sets, name)
        if name != "nn_ratio":  # it is relative to the held-out images already
            result[f"{name}_floor"] = limit = _rounded(floor.get(name))
        if name == names.fd:
            for end in ("", "_sd"):
                value = result[name + end]
                result[f"{name}_ratio{end}"] = (
                    _rounded(value / limit) if limit and value is not None else None
                )
    ratio, authenticity, expected = (result[k] for k in ("nn_ratio", "authenticity", "authenticity_floor"))
    assert authenticity is not None
    return {**result, "memorisation": copies.verdict(ratio, authenticity, expected, len(held_out))}


def _score_without_classifier(real: np.ndarray, fakes: Sequence[np.ndarray], params: Evaluate) -> Numbers:
    """Compare a further source's sets, each N×d, with the reference N×d; with _sd."""
    reference = manifold.balls(real, params.neighbours)
    sets = [_compare(reference, fake, params) for fake in fakes]
    return {key: value for name in sets[0] for key, value in _mean_and_sd(sets, name).items()}


def _compare(
    reference: manifold.Balls, fake: np.ndarray, params: Evaluate, classify: bool = False
) -> Numbers:
    """Compare one set of images N×d with the reference N×d, with a classifier too if `classify`."""
    real, names = reference.points, distance_names(params.extractor)
    subset_size = min(len(real), params.kid_subset_size)
    balls = manifold.balls(fake, params.neighbours, "generated")
    return {
        names.kid: kid(real, fake, params.kid_subsets, subset_size, params.seed)[0],
        names.fd: fd(real, fake),
        **manifold.overlap(reference, balls),
        **({"c2st_auc": c2st_auc(real, fake, params.seed)} if classify else {}),
        "diversity": balls.spread / reference.spread,
    }


def _mean_and_sd(sets: Sequence[Numbers], name: str) -> Numbers:
    """Return a number's mean over the sets and, as `_sd`, its standard deviation, None for one set."""
    values = [value for numbers in sets if (value := numbers[name]) is not None]
    return {
        name: _rounded(float(np.mean(values))) if values else None,
        f"{name}_sd": _rounded(float(np.std(values, ddof=1))) if len(values) > 1 else None,
    }


def _rounded(value: float | None) -> float | None:
    """Keep six significant digits: float32 features determine no more, and they are stable in a diff."""
    return None if value is None else float(f"{value:.6g}")


def summary(scores: Scores) -> str:
    """Return the most important numbers for people, a line each."""
    metrics, (kid_name, fd_name) = scores.metrics, scores.names
    kid_floor = fd_floor = ""
    if metrics[f"{fd_name}_floor"] is not None:
        kid_floor = f"   floor {metrics[f'{kid_name}_floor']:.4f}"
        fd_floor = f"   floor {metrics[f'{fd_name}_floor']:.1f} (held-out real images in their place)"
    spread = "" if metrics[f"{kid_name}_sd"] is None else f" ± {metrics[f'{kid_name}_sd']:.4f}"
    return (
        f"KID {metrics[kid_name]:.4f}{spread}{kid_floor}\n"
        f"{'FID' if fd_name == 'fid' else 'FD '} {metrics[fd_name]:.1f}{fd_floor}\n"
        f"precision {metrics['precision']:.2f}   recall {metrics['recall']:.2f}   "
        f"coverage {metrics['coverage']:.2f}   ({len(scores.features.fakes)} sets of {metrics['n']} images)\n"
        f"classifier of real against generated images: AUC {metrics['c2st_auc']:.2f} (0.5 is perfect)\n"
        f"copies of training images: {metrics['memorisation']}"
    )
