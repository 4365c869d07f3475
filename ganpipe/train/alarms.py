"""Alarms of a training that has collapsed or diverged, from its history and its evaluations."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

WINDOW = 100  # steps that an alarm looks back over; the history is judged every WINDOW steps
# No alarm before this step: at first D wins easily, and the images of G, or of its average, are alike.
WARM_UP = 200

# docs/health.md explains the bounds below.
# Collapsed: a spread below this share of the real images', or below this share of G's largest so far.
MIN_SPREAD, MIN_OF_LARGEST = 0.02, 0.1
# Frozen: over FROZEN_EVALS evaluations in a row the KID varies by less than MIN_CHANGE of its value.
MIN_CHANGE, FROZEN_EVALS = 0.01, 3
# Fooled: D(fake) is above this. Certain: D's loss is this close to the lowest possible with its labels.
FOOLED, CERTAIN = 0.98, 0.02
MIN_NORM, MAX_NORM = 1e-2, 1e3
D_RUNAWAY, G_RUNAWAY = 5.0, 20.0
# Marchesi 2017: "loss(D) < 1 and loss(G) < 3". Healthy trainings violate one of them most of the time.
D_LOSS, G_LOSS = 1.0, 3.0

Kind = Literal["collapsed", "frozen", "saturated", "gradients", "runaway", "bounds"]


@dataclass(frozen=True)
class Alarm:
    """A sign of trouble; `text` gives numbers and bound. A healthy training never raises a severe one."""

    kind: Kind
    text: str
    severe: bool = True


def from_history(step: int, window: np.ndarray, labels: tuple[float, float]) -> list[Alarm]:
    """Judge the WINDOW steps up to `step` by their medians; severe alarms come first.

    Args:
        step: the last step of the window.
        window: float64 WINDOW×6, finite, a row for each step: the columns STEP_NUMBERS of history.csv.
        labels: D's targets for real and for generated images, each in [0, 1].
    """
    if step < WARM_UP:
        return []
    d_loss, g_loss, d_real, d_fake, *norms = np.median(window, axis=0)
    min_loss = sum(-math.log(p) * p for label in labels for p in (label, 1 - label) if p)
    over = f"over the last {len(window)} steps"
    alarms = []
    if d_fake > FOOLED:
        text = f"D takes generated images for real: D(fake) {d_fake:.3f} {over} (bound {FOOLED})"
        alarms.append(Alarm("saturated", text))
    if d_loss - min_loss < CERTAIN:
        text = f"D is certain of all images: D(real) {d_real:.3f}, D(fake) {d_fake:.2g}, loss(D) {d_loss:.2g}"
        alarms.append(Alarm("saturated", f"{text} {over} (bound {min_loss + CERTAIN:.2g})"))
    for player, norm in zip("DG", norms, strict=True):
        if not MIN_NORM <= norm <= MAX_NORM:
            verb, bound = ("vanish", MIN_NORM) if norm < MIN_NORM else ("explode", MAX_NORM)
            text = f"the gradients of {player} {verb}: norm {norm:.2g} {over} (bound {bound:g})"
            alarms.append(Alarm("gradients", text))
    losses = f"loss(D) {d_loss:.3g} and loss(G) {g_loss:.3g} {over}"
    if d_loss > D_RUNAWAY or g_loss > G_RUNAWAY:
        alarms.append(Alarm("runaway", f"{losses} (bounds {D_RUNAWAY:g} and {G_RUNAWAY:g})"))
    if d_loss > D_LOSS and g_loss > G_LOSS:
        alarms.append(Alarm("bounds", f"{losses} (bounds {D_LOSS:g} and {G_LOSS:g})", severe=False))
    return alarms


def from_evals(evals: Sequence[Sequence[float]]) -> list[Alarm]:
    """Judge the images of fixed z by all rows of evals.csv so far, see EVALS_COLUMNS."""
    if not evals or evals[-1][0] < WARM_UP:
        return []
    _, _, kids, spreads, real_spreads = zip(*evals, strict=True)
    alarms, share, largest = [], spreads[-1] / real_spreads[-1], max(spreads) / real_spreads[-1]
    bound = max(MIN_SPREAD, MIN_OF_LARGEST * largest)
    if share < bound:
        text = f"generated images are alike: {share:.1%} of the real images' spread, after {largest:.1%}"
        alarms.append(Alarm("collapsed", f"{text} (bound {bound:.1%})"))
    # If the last WINDOW steps had more than FROZEN_EVALS evaluations, use all of those.
    last = kids[-max(FROZEN_EVALS, sum(row[0] >= evals[-1][0] - WINDOW for row in evals)) :]
    if len(last) >= FROZEN_EVALS and max(last) - min(last) < MIN_CHANGE * abs(last[-1]):
        text = f"G no longer changes: KID {last[0]:.4g} to {last[-1]:.4g} in {len(last)} evaluations"
        alarms.append(Alarm("frozen", f"{text} (bound {MIN_CHANGE:.0%})"))
    return alarms
