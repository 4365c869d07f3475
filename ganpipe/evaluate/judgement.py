"""From features to all the numbers of metrics.json and `ganpipe score`: flat, `_sd` and `_floor` beside them.

One set of generated images after the other is compared with the reference; a number is the mean over the sets
and its `_sd` their standard deviation. Its `_floor` is the same comparison with held-out real images in the
generated ones' place: what a perfect generator would score.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ganpipe.common.errors import UserError
from ganpipe.metrics import copies as memorisation
from ganpipe.metrics import manifold
from ganpipe.metrics.classifier import c2st_auc
from ganpipe.metrics.copies import LEAST_HELD_OUT, Neighbours
from ganpipe.metrics.fd import fd
from ganpipe.metrics.kid import kid
from ganpipe.params import Evaluate

Numbers = dict[str, float | None]
Judged = dict[str, float | str | None]
# What compares generated with training images one by one, without a `_floor` of the usual meaning.
MEMORISATION = ("nn_ratio", "authenticity")


@dataclass(frozen=True)
class Features:
    """Features of the images to compare, float32.

    Attributes:
        train: M×d, the training images to look for copies in; the first N of them are the reference.
        fakes: sets of generated images, each N×d.
        held_out: real images kept from training, at most N; any number, 0 too.
    """

    train: np.ndarray
    fakes: Sequence[np.ndarray]
    held_out: np.ndarray

    @property
    def n(self) -> int:
        """Images in each set that is compared."""
        return len(self.fakes[0])


def names(extractor: str) -> tuple[str, str]:
    """Return the names of KID and FD; the word FID is kept for the network that it is defined for."""
    return f"kid_{extractor}", "fid" if extractor == "inception" else f"fd_{extractor}"


def judged(features: Features, extractor: str, params: Evaluate) -> Judged:
    """Compare sets of generated images with the training images.

    Returns:
        kid_… and fd_… (fid), with fd_…_ratio to its floor; precision, recall, density, coverage; c2st_auc;
        diversity; nn_ratio, authenticity; each with _sd (null for one set) and _floor (null with fewer than N
        held-out images); `memorisation`, a line that says what the latter two mean or lack. Six digits each.

    Raises:
        UserError: there are too few images, their features are not finite, or the real ones are all equal.
    """
    n = features.n
    real = features.train[:n]
    if (real == real[0]).all():
        raise UserError(
            f"metrics: all {n} real images are alike to {extractor}; nothing can be compared with them"
        )
    near = [memorisation.neighbours(fake, features.train) for fake in features.fakes]
    held_out = features.held_out
    beyond = memorisation.neighbours(held_out, features.train) if len(held_out) >= LEAST_HELD_OUT else None
    around = manifold.balls(real, params.neighbours)
    sets = [
        compared(around, fake, extractor, params) | copied(each, beyond)
        for fake, each in zip(features.fakes, near, strict=True)
    ]
    floor: Numbers = compared(around, held_out, extractor, params) if len(held_out) == n else {}
    if beyond is not None:
        floor["authenticity"] = float(beyond.authentic.mean())
    result: Numbers = {}
    for name in sets[0]:
        result |= _over(sets, name)
        if name != "nn_ratio":
            result[f"{name}_floor"] = rounded(floor.get(name))
        if name == names(extractor)[1]:
            result |= _ratio(name, result)
    ratio, authenticity, expected = (
        result[key] for key in ("nn_ratio", "authenticity", "authenticity_floor")
    )
    assert authenticity is not None
    return {**result, "memorisation": memorisation.verdict(ratio, authenticity, expected, len(held_out))}


def distances_over(
    real: np.ndarray, fakes: Sequence[np.ndarray], extractor: str, params: Evaluate
) -> Numbers:
    """Compare sets of generated images, each N×d, with the reference N×d in all but c2st_auc; with _sd."""
    around = manifold.balls(real, params.neighbours)
    sets = [distances(around, fake, extractor, params) for fake in fakes]
    return {key: value for name in sets[0] for key, value in _over(sets, name).items()}


def distances(real: manifold.Balls, fake: np.ndarray, extractor: str, params: Evaluate) -> Numbers:
    """Compare one set of generated images N×d with the reference by KID, FD and the sets' manifolds."""
    subset_size = min(len(real.points), params.kid_subset_size)
    kid_name, fd_name = names(extractor)
    around = manifold.balls(fake, params.neighbours, "generated")
    return {
        kid_name: kid(real.points, fake, params.kid_subsets, subset_size, params.seed)[0],
        fd_name: fd(real.points, fake),
        **manifold.overlap(real, around),
        "diversity": around.spread / real.spread,
    }


def compared(real: manifold.Balls, fake: np.ndarray, extractor: str, params: Evaluate) -> Numbers:
    """Compare one set of generated images N×d with the reference in all numbers."""
    numbers = distances(real, fake, extractor, params)
    return {
        **{name: value for name, value in numbers.items() if name != "diversity"},
        "c2st_auc": c2st_auc(real.points, fake, params.seed),
        "diversity": numbers["diversity"],
    }


def copied(near: Neighbours, beyond: Neighbours | None) -> Numbers:
    """Say how near generated images are to training images, `beyond` being held-out images' neighbours."""
    ratio = None if beyond is None else memorisation.nn_ratio(near, beyond)
    return {"nn_ratio": ratio, "authenticity": float(near.authentic.mean())}


def rounded(value: float | None) -> float | None:
    """Keep six significant digits: all that float32 features carry, and stable in a diff."""
    return None if value is None else float(f"{value:.6g}")


def _over(sets: Sequence[Numbers], name: str) -> Numbers:
    """Return a number's mean over the sets and its standard deviation, null for one set."""
    values = [value for each in sets if (value := each[name]) is not None]
    return {
        name: rounded(float(np.mean(values))) if values else None,
        f"{name}_sd": rounded(float(np.std(values, ddof=1))) if len(values) > 1 else None,
    }


def _ratio(name: str, result: Numbers) -> Numbers:
    """Put a distance in terms of its floor, 1 being perfect."""
    mean, sd, floor = (result[name + end] for end in ("", "_sd", "_floor"))
    return {
        f"{name}_ratio": rounded(mean / floor) if floor and mean is not None else None,
        f"{name}_ratio_sd": rounded(sd / floor) if floor and sd is not None else None,
    }
