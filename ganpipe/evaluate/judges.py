"""More judges of the same sets of images: a second network, and patches, which no network sees."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ganpipe.common.shards import Images
from ganpipe.evaluate.extraction import Pair, RealImages, extract_features
from ganpipe.metrics import extractors
from ganpipe.metrics.kid import Known, gaussian_mmd, kid, products
from ganpipe.metrics.swd import patches, swd
from ganpipe.params import Evaluate

Numbers = dict[str, float | None]
Sets = Sequence[tuple[Images, np.ndarray]]  # images uint8 M×H×W×C in [0, 255], and a set's N rows of them


def further_numbers(
    real: RealImages, sets: Sets, params: Evaluate, device: str, root: Path | None
) -> list[Numbers]:
    """Return these judges' numbers of each set and, if there are N of them, of the held-out images.

    The reference is the first N training images.
    """
    numbers = _patch_distances(real, sets, params.seed)
    if not params.second_extractor or params.second_extractor == params.extractor:
        return numbers
    seconds = _second_kids(params.second_extractor, real, sets, params, device, root)
    return [of_set | second for of_set, second in zip(numbers, seconds, strict=True)]


def kid_quotient(metrics: Mapping[str, Any], params: Evaluate) -> Numbers:
    """Return `kid_quotient`, the extractor's KID over the second one's, None if one is not above 0."""
    second = metrics.get(f"kid_{params.second_extractor}")
    if second is None or params.second_extractor == params.extractor:
        return {}
    first = metrics[f"kid_{params.extractor}"]
    return {"kid_quotient": rounded(first / second) if min(first, second) > 0 else None}


def rounded(value: float | None) -> float | None:
    """Keep six significant digits: float32 features determine no more, and they are stable in a diff."""
    return None if value is None else float(f"{value:.6g}")


def _patch_distances(real: RealImages, sets: Sets, seed: int) -> list[Numbers]:
    """Return swd_… of each level, and swd, their mean."""
    n = len(sets[0][1])
    reference = patches(real.images, real.train_rows[:n], seed, "real")
    held_out = [(real.held_out, real.held_out_rows)] if len(real.held_out_rows) == n else []
    levels = [swd(reference, patches(*each, seed, "fake"), seed) for each in (*sets, *held_out)]
    return [
        {"swd": sum(of_set.values()) / len(of_set) if of_set else None}
        | {f"swd_{side}": distance for side, distance in of_set.items()}
        for of_set in levels
    ]


def _second_kids(
    name: str, real: RealImages, sets: Sets, params: Evaluate, device: str, root: Path | None
) -> list[Numbers]:
    """Return the kernel distances in the features of another extractor."""
    n = len(sets[0][1])
    network = extractors.build(name, params.feature_resolution, None)
    reference = replace(real, train_rows=real.train_rows[:n])
    features, _ = extract_features(network, reference, [list(sets)], device, root)
    expected, fakes, held_out = features.pairs()
    fakes += [held_out] if len(held_out[0]) == n else []
    return [kernel_distances(name, expected, fake, params) for fake in fakes]


def kernel_distances(network: str, real: Pair, fake: Pair, params: Evaluate) -> Numbers:
    """Return kid_…, layout_kid_… and layout_mmd_…; where a network keeps no places, the last two are None."""
    layouts = real[1][:, 1:], fake[1][:, 1:]
    known = products(*layouts)
    return {
        f"kid_{network}": subset_kid(real[0], fake[0], params),
        f"layout_kid_{network}": subset_kid(*layouts, params, known),
        f"layout_mmd_{network}": gaussian_mmd(*layouts, known) if layouts[0].size else None,
    }


def subset_kid(real: np.ndarray, fake: np.ndarray, params: Evaluate, known: Known = None) -> float | None:
    """Return `kid` of features N×d over the params' subsets; None for features without columns."""
    size = min(len(real), len(fake), params.kid_subset_size)
    return kid(real, fake, params.kid_subsets, size, params.seed, known)[0] if real.size else None
