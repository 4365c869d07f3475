"""From images to features to numbers: what the evaluate stage and `ganpipe score` compute."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Template

from ganpipe.common.errors import ParamError, UserError
from ganpipe.evaluate.extraction import Features, Pair, RealImages, extract_features
from ganpipe.evaluate.judges import Numbers, further_numbers, kernel_distances, kid_quotient, rounded
from ganpipe.metrics import copies, extractors, manifold
from ganpipe.metrics.classifier import c2st_auc
from ganpipe.metrics.fd import fd
from ganpipe.metrics.manifold import Balls
from ganpipe.params import Evaluate

Metrics = dict[str, Any]  # name → number, text or null; `classes`: a number for each
# Contrast and diversity, relative to the real images', below which a set is one colour, or all alike: faces
# that are blurred until none is left keep 0.34 and 0.30; grey or one face with some noise have 0.05 and 0.13.
LEAST_CONTRAST, LEAST_DIVERSITY = 0.1, 0.2


class DistanceNames(NamedTuple):
    """Names among the metrics."""

    kid: str
    fd: str
    layout_kid: str
    layout_mmd: str


def distance_names(extractor: str) -> DistanceNames:
    """Name the distances after an extractor; the word FID is kept for the network that it is defined for."""
    fd_name = "fid" if extractor == "inception" else f"fd_{extractor}"
    return DistanceNames(f"kid_{extractor}", fd_name, f"layout_kid_{extractor}", f"layout_mmd_{extractor}")


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

    The features of the real images are cached in the checkout `root`, if any. `others`: further sources of N
    images or more, scored without classifier and search for copies: arrays like `generated`, uint8 N×H×W×C in
    [0, 255], or objects with a length that return the images of an int64 array of rows.

    Raises UserError: there are too few images, or their features cannot be computed or compared.
    """
    n = min(len(generated) // params.seeds, len(real.train_rows))
    if n < 2:
        images = f"{len(generated)} generated and {len(real.train_rows)} training images"
        problem = f"{params.seeds} sets of at least 2 images cannot be cut from {images}"
        raise ParamError("seeds", f"{problem}; use fewer sets or more images")
    chosen = real.chosen(params.search_images, n, params.seed)
    extractor = extractors.build(params.extractor, params.feature_resolution, params.weights)
    # The same rows of every source, so that sources differ only in how their images were generated.
    sets = [
        [(source, np.arange(n * i, n * i + n)) for i in range(min(params.seeds, len(source) // n))]
        for source in (generated, *others)
    ]
    features, further = extract_features(extractor, chosen, sets, device, root)
    protocol = (
        f"{extractor.protocol}; n={n} in {params.seeds} sets, reference=train by seed {params.seed}, "
        f"kid {params.kid_subsets} subsets of {min(n, params.kid_subset_size)}, k={params.neighbours}, "
        f"copies among {len(features.train)}"
    )
    more = further_numbers(chosen, sets[0], params, device, root)
    metrics = score_features(features, params, len(real.train_rows), more)
    metrics |= kid_quotient(metrics, params)
    metrics |= {"n": n, "protocol": protocol, "reference": real.digest[:8]}
    numbers = _score_others(features, further, params) if further else []
    return Scores(metrics, distance_names(params.extractor), features, chosen.train_rows, numbers)


def score_features(
    features: Features, params: Evaluate, trained_on: int | None = None, more: Sequence[Numbers] = ()
) -> Metrics:
    """Compare sets of generated images with the reference, as many training images.

    `trained_on` is the number of all training images; None: copies were searched among all. `more`: further
    numbers of each set and, if there are as many, of N held-out images.

    Returns:
        kid_…, layout_kid_…, layout_mmd_… and fd_… (fid), with fd_…_ratio to its floor; precision, recall,
        density, coverage; c2st_auc; diversity, contrast; swd…; a second extractor's first three; nn_ratio,
        authenticity, near_copies: means over the sets, six digits each. With _sd: standard deviation over the
        sets, None for one set. With _floor: the number of N held-out images in place of the generated ones,
        None if there are fewer. `memorisation`: a line that interprets the last three. `ranked_by`: the
        number by which sets are ranked. `degenerate`: why no number of these sets means anything, or None.

    Raises UserError: there are too few images, their features are not finite, or the real ones are all equal.
    """
    reference, fakes, held_out = features.pairs()
    real, names = reference[0], distance_names(params.extractor)
    if (real == real[0]).all():
        problem = f"the features of all {len(real)} real images are equal ({names.kid})"
        remedy = "nothing can be compared with them; use other real images or another extractor"
        raise UserError(f"metrics: {problem}; {remedy}")
    enough = len(held_out[0]) >= copies.LEAST_HELD_OUT
    near_held_out = copies.neighbours(held_out[0], features.train) if enough else None
    balls = manifold.balls(real, params.neighbours)
    sets = []
    for i, fake in enumerate(fakes):
        near = copies.neighbours(fake[0], features.train)
        ratio = copies.nn_ratio(near, near_held_out) if near_held_out else None
        few, expected = copies.near_copies(near, near_held_out) if near_held_out else (None, None)
        numbers = _compare(balls, reference, fake, params, classify=True) | (more[i] if more else {})
        authenticity = float(near.authentic.mean())
        sets.append(numbers | {"nn_ratio": ratio, "authenticity": authenticity, "near_copies": few})
    floor: Numbers = {}
    if len(held_out[0]) == len(real):
        floor = _compare(balls, reference, held_out, params, classify=True) | (more[-1] if more else {})
    if near_held_out:
        floor |= {"authenticity": float(near_held_out.authentic.mean()), "near_copies": expected}
    result: Numbers = {}
    for name in sets[0]:
        result |= _mean_and_sd(sets, name)
        if name != "nn_ratio":  # it is relative to the held-out images already
            result[f"{name}_floor"] = limit = rounded(floor.get(name))
        for end in ("", "_sd") if name == names.fd else ():
            value = result[name + end]
            result[f"{name}_ratio{end}"] = rounded(value / limit if limit and value is not None else None)
    searched = len(features.train)
    return {
        **result,
        "memorisation": copies.verdict(result, len(held_out[0]), searched, trained_on or searched),
        "ranked_by": names.kid if result.get(names.layout_kid) is None else getattr(names, params.rank_by),
        "degenerate": degenerate(result),
    }


def _score_others(features: Features, sources: Sequence[Sequence[Pair]], params: Evaluate) -> list[Numbers]:
    """Compare further sources' sets with the reference; add _sd."""
    reference, scored = features.pairs()[0], []
    balls = manifold.balls(reference[0], params.neighbours)
    for source in sources:
        sets = [_compare(balls, reference, fake, params) for fake in source]
        scored.append({key: v for name in sets[0] for key, v in _mean_and_sd(sets, name).items()})
    return scored


def _compare(real: Balls, reference: Pair, fake: Pair, params: Evaluate, classify: bool = False) -> Numbers:
    """Compare a set of N images with the reference, around whose features the balls are."""
    balls = manifold.balls(fake[0], params.neighbours, "generated")
    contrast, expected = (float(details[:, 0].mean()) for _, details in (fake, reference))
    return {
        **kernel_distances(params.extractor, reference, fake, params),
        distance_names(params.extractor).fd: fd(real.points, fake[0]),
        **manifold.overlap(real, balls),
        **({"c2st_auc": c2st_auc(real.points, fake[0], params.seed)} if classify else {}),
        "diversity": balls.spread / real.spread,
        "contrast": contrast / expected if expected > 0 else None,
    }


def degenerate(numbers: Mapping[str, Any]) -> str | None:
    """Say why a set of images is none that can be ranked: it is of one colour, or all images are alike."""
    contrast, diversity = numbers.get("contrast"), numbers.get("diversity")
    signs = []
    if contrast is not None and contrast < LEAST_CONTRAST:
        signs.append(f"nearly one colour ({contrast:.1%} of the real images' contrast)")
    if diversity is not None and diversity < LEAST_DIVERSITY:
        signs.append(f"nearly all alike ({diversity:.1%} of the real images' diversity)")
    return " and ".join(signs) or None


def _mean_and_sd(sets: Sequence[Numbers], name: str) -> Numbers:
    """Return a number's mean over the sets and, as `_sd`, its standard deviation, None for one set."""
    values = [value for numbers in sets if (value := numbers[name]) is not None]
    return {
        name: rounded(float(np.mean(values))) if values else None,
        f"{name}_sd": rounded(float(np.std(values, ddof=1))) if len(values) > 1 else None,
    }


def summary(scores: Scores) -> str:
    """Return the most important numbers for people, a line each."""

    def line(name: str, decimals: int) -> str:
        words = zip(("", "_sd", "_floor"), ("", " ± ", "   floor "), strict=True)
        known = [(word, v) for end, word in words if (v := scores.metrics.get(f"{name}{end}")) is not None]
        return "".join(f"{word}{value:.{decimals}f}" for word, value in known) or "–"

    template = Template(Path(__file__).with_name("summary.txt.jinja").read_text(encoding="utf-8"))
    sets = len(scores.features.fakes)
    return template.render(metrics=scores.metrics, names=scores.names, sets=sets, line=line)
