"""From images to all numbers: which images are compared, their features, and the protocol that is kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ganpipe.common import seeds as rng
from ganpipe.common.errors import UserError
from ganpipe.common.progress import Progress
from ganpipe.evaluate import feature_cache as features
from ganpipe.evaluate import judgement
from ganpipe.evaluate.judgement import Features
from ganpipe.metrics import extractors, lite0
from ganpipe.params import Evaluate

Metrics = dict[str, float | int | str | None]


@dataclass(frozen=True)
class Real:
    """Real images.

    Attributes:
        images: uint8 N×H×W×C in [0, 255].
        train_rows: rows of them to compare with and to look for copies in, int64.
        held_out: uint8 M×H×W×C that the generator has not seen; may be the same array.
        held_out_rows: rows of `held_out`, int64.
        digest: of all that.
    """

    images: np.ndarray
    train_rows: np.ndarray
    held_out: np.ndarray
    held_out_rows: np.ndarray
    digest: str


@dataclass(frozen=True)
class Compared:
    """What `compare` found.

    Attributes:
        metrics: what metrics.json holds.
        name: the extractor's, which stands in names of metrics.
        features: of everything but `others`.
        train_rows: the training images in `features`, in that order; the first n are the reference.
        others: numbers of each further set of images.
    """

    metrics: Metrics
    name: str
    features: Features
    train_rows: np.ndarray
    others: list[judgement.Numbers]


def compare(
    real: Real,
    generated: np.ndarray,
    params: Evaluate,
    device: str,
    root: Path | None = None,
    others: Sequence[Any] = (),
) -> Compared:
    """Compare `params.seeds` sets of generated images with as many training images each.

    The sets are the first images in turn, N in each, N being at most the number of training images. The floor
    is the same comparison with N held-out images in the generated ones' place.

    Args:
        real: training and held-out images.
        generated: uint8 N×H×W×C in [0, 255].
        params: the section `evaluate`.
        device: where the features are computed, such as "cpu" or "cuda".
        root: the checkout to keep the real images' features in; None: nowhere.
        others: further images to compare in what costs little, each as `generated` is, of N images or more;
            anything that has a length and gives the images of some rows will do.

    Raises:
        UserError: there are too few images, or they cannot be judged.
    """
    n = min(len(generated) // params.seeds, len(real.train_rows))
    if n < 2:
        raise UserError(
            f"evaluate.seeds: {params.seeds} sets of at least 2 images cannot be cut from {len(generated)} "
            f"generated and {len(real.train_rows)} training images; use fewer sets or more images"
        )
    searched = len(real.train_rows) if params.search_images is None else max(n, params.search_images)
    train_rows = _choose(real.train_rows, searched, params.seed, "train")
    held_out_rows = _choose(real.held_out_rows, n, params.seed, "held_out")
    # The same rows of every set of images, so that they differ in nothing but what made them.
    sets = [
        [(each, range(n * i, n * i + n)) for i in range(min(params.seeds, len(each) // n))]
        for each in (generated, *others)
    ]

    extractor = extractors.build(params.extractor, params.feature_resolution, params.weights)
    total = len(train_rows) + len(held_out_rows) + n * sum(map(len, sets))
    with Progress("evaluate", total) as progress:

        def seen(images: Any, rows: np.ndarray) -> np.ndarray:
            size = extractors.batch_size(extractor)
            return lite0.extract(extractor, images, size, device, progress, rows)

        def kept(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
            if root is None:
                return seen(images, rows)
            key = (extractor.protocol, real.digest, device, str(rows.tolist()))
            before = progress.done
            found = features.cached(root, key, lambda: seen(images, rows))
            progress.advance(before + len(rows) - progress.done)  # all, where they were kept from before
            return found

        train = kept(real.images, train_rows)
        held_out = kept(real.held_out, held_out_rows) if len(held_out_rows) else train[:0]
        fakes, *further = [[seen(images, np.array(rows)) for images, rows in each] for each in sets]

    found = Features(train, fakes, held_out)
    metrics: Metrics = {
        **judgement.judged(found, extractor.name, params),
        "n": n,
        "protocol": (
            f"{extractor.protocol}; n={n} in {params.seeds} sets, reference=train by seed {params.seed}, "
            f"kid {params.kid_subsets} subsets of {min(n, params.kid_subset_size)}, k={params.neighbours}, "
            f"copies among {len(train)}"
        ),
        "reference": real.digest[:8],
    }
    compared = [judgement.distances_over(train[:n], each, extractor.name, params) for each in further]
    return Compared(metrics, extractor.name, found, train_rows, compared)


def summary(metrics: Metrics, extractor: str, sets: int) -> str:
    """Return the numbers for people, a line each."""
    n, (kid, fd) = metrics["n"], judgement.names(extractor)
    kid_floor = fd_floor = ""
    if metrics[f"{fd}_floor"] is not None:
        kid_floor = f"   floor {metrics[f'{kid}_floor']:.4f}"
        fd_floor = f"   floor {metrics[f'{fd}_floor']:.1f}, which {n} held-out real images score"
    spread = "" if metrics[f"{kid}_sd"] is None else f" ± {metrics[f'{kid}_sd']:.4f}"
    return (
        f"KID {metrics[kid]:.4f}{spread}{kid_floor}\n"
        f"{'FID' if fd == 'fid' else 'FD '} {metrics[fd]:.1f}{fd_floor}\n"
        f"precision {metrics['precision']:.2f}   recall {metrics['recall']:.2f}   "
        f"coverage {metrics['coverage']:.2f}   n {n}, {sets} sets of them\n"
        f"told from real images: {metrics['c2st_auc']:.2f}, 0.5 is perfect\n"
        f"copies of training images: {metrics['memorisation']}"
    )


def _choose(rows: np.ndarray, count: int, seed: int, purpose: str) -> np.ndarray:
    """Return at most `count` of the rows in random order: the first ones are a fair sample to look at."""
    order = torch.randperm(len(rows), generator=rng.generator(seed, f"evaluate/{purpose}"))
    return rows[order[:count].numpy()]
