"""Paths through the space of z, and the elements of z that images depend on most: no network, no files."""

from collections.abc import Callable

import numpy as np
import torch

# Elements whose images are made in one go: bounds the memory.
ELEMENTS = 4


def traversal(z: torch.Tensor, element: int, values: torch.Tensor) -> torch.Tensor:
    """Change one element of z step by step, all others fixed (Stiff et al. 2018, their analysis of z).

    Args:
        z: float32 nz.
        element: which one, from 0 on.
        values: float32 T, what it becomes.

    Returns:
        float32 T×nz, row i with values[i].
    """
    path = z.repeat(len(values), 1)
    path[:, element] = values
    return path


def slerp(a: torch.Tensor, b: torch.Tensor, t: torch.Tensor, limit: float | None = None) -> torch.Tensor:
    """Go from a to b on the great circle through their directions, the norm from |a| to |b| (Shoemake 1985).

    A straight line would pass nearer to the origin than any z of the training. Vectors of (almost) one or of
    opposite directions, and zero, have no great circle of their own and get the straight line.

    Uniform z fill a cube, not a sphere: half-way between two corners the great circle leaves it. Elements
    beyond `limit` are set to it, so that every z on the way is one that training may have drawn.

    Args:
        a: float32 nz, where t is 0.
        b: float32 nz, where t is 1.
        t: float32 T in [0, 1].
        limit: largest absolute value of an element; None: any.

    Returns:
        float32 T×nz.
    """
    start, end, t = a.double(), b.double(), t.double()[:, None]
    norms = start.norm(), end.norm()
    angle = torch.acos((start @ end / (norms[0] * norms[1])).clamp(-1, 1))
    if angle.sin() > 1e-4:  # false for the NaN of a zero vector too
        along = torch.sin((1 - t) * angle) * start / norms[0] + torch.sin(t * angle) * end / norms[1]
        path = along / angle.sin() * ((1 - t) * norms[0] + t * norms[1])
    else:
        path = (1 - t) * start + t * end
    return path.clamp(min=-limit, max=limit).float() if limit is not None else path.float()


def influence(
    images_of: Callable[[torch.Tensor], np.ndarray], z: torch.Tensor, ends: tuple[float, float]
) -> np.ndarray:
    """Measure how much images change as each element of z goes from one end to the other, all others fixed.

    Args:
        images_of: float32 N×nz → uint8 N×H×W×C in [0, 255].
        z: float32 B×nz, the points around which to look.
        ends: the two values of the element.

    Returns:
        float64 nz, the mean absolute difference over pixels and points, in [0, 255].
    """
    values, changes = torch.tensor(ends), []
    for elements in torch.arange(z.shape[1]).split(ELEMENTS):
        images = images_of(torch.cat([traversal(base, int(e), values) for e in elements for base in z]))
        difference = np.abs(images[1::2].astype(np.int16) - images[0::2])
        changes.append(difference.reshape(len(elements), -1).mean(axis=1))
    return np.concatenate(changes)


def most_changing(change: np.ndarray, count: int) -> list[int]:
    """Return the `count` elements of the largest change, the largest first, the lower number where equal."""
    return [int(element) for element in np.argsort(-change, kind="stable")[:count]]
