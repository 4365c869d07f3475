"""Alarms of a training that has collapsed or diverged: from its history, and from images of fixed z."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

# Steps that an alarm looks back over; the loop looks every WINDOW steps, at multiples of it.
WINDOW = 100
# Fixed z, and as many real images, and the pixels a side at which EfficientNet-Lite0 sees both.
IMAGES, FEATURE_RESOLUTION = 256, 64

# The least spread of generated images, as a share of the real ones'.
LEAST_SPREAD = 0.1
# D(fake) above the first: D takes everything for real. Below the second, with D(real) - D(fake) above the
# third: D is certain of both.
FOOLED, CERTAIN, APART = 0.98, 0.001, 0.85
LEAST_NORM, MOST_NORM = 1e-6, 1e3
# Marchesi 2017: "loss(D) < 1 and loss(G) < 3".
D_LOSS, G_LOSS = 1.0, 3.0


@dataclass(frozen=True)
class Alarm:
    """Something that healthy trainings do not show.

    Attributes:
        kind: what it is about.
        text: one clause with the figures and the bound.
        severe: whether it can be told from healthy training; else it is a note, to be warned of only.
    """

    kind: Literal["collapsed", "saturated", "gradients", "bounds"]
    text: str
    severe: bool


def from_history(window: np.ndarray) -> list[Alarm]:
    """Judge the last WINDOW steps.

    Args:
        window: float64 WINDOW×6, finite: d_loss, g_loss, d_real, d_fake, and the norms of the gradients of
            D and of G over all parameters, a row for each step.

    Returns:
        The alarms, severe ones first.
    """
    d_loss, g_loss, d_real, d_fake, *norms = np.median(window, axis=0)
    over = f"over the last {len(window)} steps"
    alarms = []
    if d_fake > FOOLED:
        text = f"D takes generated images for real: D(fake) {d_fake:.3f} {over} (bound {FOOLED})"
        alarms.append(Alarm("saturated", text, True))
    if d_fake < CERTAIN and d_real - d_fake > APART:
        text = (
            f"D is certain of all images: D(real) {d_real:.3f}, D(fake) {d_fake:.2g} {over} (bound {CERTAIN})"
        )
        alarms.append(Alarm("saturated", text, True))
    for name, norm in zip("DG", norms, strict=True):
        if norm < LEAST_NORM:
            text = f"the gradients of {name} vanish: norm {norm:.2g} {over} (bound {LEAST_NORM:g})"
            alarms.append(Alarm("gradients", text, True))
        elif norm > MOST_NORM:
            text = f"the gradients of {name} explode: norm {norm:.2g} {over} (bound {MOST_NORM:g})"
            alarms.append(Alarm("gradients", text, True))
    for name, loss, bound in (("D", d_loss, D_LOSS), ("G", g_loss, G_LOSS)):
        if loss > bound:
            text = f"loss({name}) {loss:.2f} {over} (bound {bound:g})"
            alarms.append(Alarm("bounds", text, False))
    return alarms


def spread(features: np.ndarray) -> float:
    """Return the mean Euclidean distance between two of the rows of N×d, N at least 2."""
    return float(torch.pdist(torch.from_numpy(features).double()).mean())


def from_features(fake_spread: float, real_spread: float) -> list[Alarm]:
    """Judge the spread of the images of fixed z by that of as many real training images."""
    if fake_spread >= LEAST_SPREAD * real_spread:
        return []
    share = f"{fake_spread / real_spread:.1%} of the real images' spread (bound {LEAST_SPREAD:.0%})"
    return [Alarm("collapsed", f"generated images are alike: {share}", True)]
