"""Alarms of a training that has collapsed or diverged: from its history, and from images of fixed z."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

# Steps that an alarm looks back over; the loop looks every WINDOW steps, at multiples of it.
WINDOW = 100
# No alarm before this step: at first D wins easily, and the images of G, or of its average, are alike.
WARM_UP = 200
# Fixed z, and as many real images, and the pixels a side at which EfficientNet-Lite0 sees both.
IMAGES, FEATURE_RESOLUTION = 256, 64

# The bounds below are those of docs/health.md.
# The least spread of generated images, as a share of the real ones', and of the most that G has reached.
LEAST_SPREAD, LEAST_OF_REACHED = 0.02, 0.1
# The least change of the KID, as a share of it, over so many judgements in a row.
LEAST_CHANGE, STILL = 0.01, 3
# D(fake) above the first: D takes everything for real. D's loss less than the second above the least that its
# labels allow: D is certain of both.
FOOLED, CERTAIN = 0.98, 0.02
LEAST_NORM, MOST_NORM = 1e-2, 1e3
# Of losses that run away; then Marchesi 2017, "loss(D) < 1 and loss(G) < 3": healthy trainings break one of
# them most of the time, so that a note is made where both are broken.
D_RUNAWAY, G_RUNAWAY = 5.0, 20.0
D_LOSS, G_LOSS = 1.0, 3.0


Kind = Literal["collapsed", "frozen", "saturated", "gradients", "runaway", "bounds"]


@dataclass(frozen=True)
class Alarm:
    """Something that healthy trainings do not show.

    Attributes:
        kind: what it is about.
        text: one clause with the figures and the bound.
        severe: whether it can be told from healthy training; else it is a note, to be warned of only.
    """

    kind: Kind
    text: str
    severe: bool


def from_history(step: int, window: np.ndarray, labels: tuple[float, float]) -> list[Alarm]:
    """Judge the last WINDOW steps.

    Args:
        step: the last of them.
        window: float64 WINDOW×6, finite: d_loss, g_loss, d_real, d_fake, and the norms of the gradients of
            D and of G over all parameters, a row for each step.
        labels: D's targets for real and for generated images, each in [0, 1].

    Returns:
        The alarms, severe ones first.
    """
    if step < WARM_UP:
        return []
    d_loss, g_loss, d_real, d_fake, *norms = np.median(window, axis=0)
    least = sum(-math.log(p) * p for label in labels for p in (label, 1 - label) if p)
    over = f"over the last {len(window)} steps"
    found: list[tuple[Kind, str]] = []
    if d_fake > FOOLED:
        text = f"D takes generated images for real: D(fake) {d_fake:.3f} {over} (bound {FOOLED})"
        found.append(("saturated", text))
    if d_loss - least < CERTAIN:
        text = f"D is certain of all images: D(real) {d_real:.3f}, D(fake) {d_fake:.2g}, loss(D) {d_loss:.2g}"
        found.append(("saturated", f"{text} {over} (bound {least + CERTAIN:.2g})"))
    for name, norm in zip("DG", norms, strict=True):
        if not LEAST_NORM <= norm <= MOST_NORM:
            which, bound = ("vanish", LEAST_NORM) if norm < LEAST_NORM else ("explode", MOST_NORM)
            text = f"the gradients of {name} {which}: norm {norm:.2g} {over} (bound {bound:g})"
            found.append(("gradients", text))
    losses = f"loss(D) {d_loss:.3g} and loss(G) {g_loss:.3g} {over}"
    if d_loss > D_RUNAWAY or g_loss > G_RUNAWAY:
        found.append(("runaway", f"{losses} (bounds {D_RUNAWAY:g} and {G_RUNAWAY:g})"))
    alarms = [Alarm(kind, text, True) for kind, text in found]
    if d_loss > D_LOSS and g_loss > G_LOSS:
        alarms.append(Alarm("bounds", f"{losses} (bounds {D_LOSS:g} and {G_LOSS:g})", False))
    return alarms


def spread(features: np.ndarray) -> float:
    """Return the mean Euclidean distance between two of the rows of N×d, N at least 2."""
    return float(torch.pdist(torch.from_numpy(features).double()).mean())


def from_evals(evals: Sequence[Sequence[float]]) -> list[Alarm]:
    """Judge the images of fixed z.

    Args:
        evals: for each time that G was judged, the last one last: step, images seen, KID, mean distance
            between two of its images, and between two of as many real ones.
    """
    if not evals or evals[-1][0] < WARM_UP:
        return []
    _, _, kids, spreads, real = zip(*evals, strict=True)
    alarms, share, most = [], spreads[-1] / real[-1], max(spreads) / real[-1]
    least = max(LEAST_SPREAD, LEAST_OF_REACHED * most)
    if share < least:
        text = f"generated images are alike: {share:.1%} of the real images' spread, after {most:.1%}"
        alarms.append(Alarm("collapsed", f"{text} (bound {least:.1%})", True))
    # Where G is judged more often, over WINDOW steps.
    last = kids[-max(STILL, sum(row[0] >= evals[-1][0] - WINDOW for row in evals)) :]
    if len(last) >= STILL and max(last) - min(last) < LEAST_CHANGE * abs(last[-1]):
        text = f"G stands still: KID {last[0]:.4g} to {last[-1]:.4g} in {len(last)} judgements"
        alarms.append(Alarm("frozen", f"{text} (bound {LEAST_CHANGE:.0%})", True))
    return alarms
