"""Paths through latent space, and the elements of z that influence images most."""

from collections.abc import Callable

import numpy as np
import torch

ELEMENTS = 4  # whose images are generated together; bounds the memory


def traversal(z: torch.Tensor, element: int, values: torch.Tensor) -> torch.Tensor:
    """Vary one element of z and fix all others (Stiff et al. 2018, analysis of z).

    Args:
        z: float32 nz.
        element: index of the element, from 0.
        values: float32 T, the values of the element.

    Returns:
        float32 T×nz, row i with values[i].
    """
    path = z.repeat(len(values), 1)
    path[:, element] = values
    return path


def slerp(a: torch.Tensor, b: torch.Tensor, t: torch.Tensor, limit: float | None = None) -> torch.Tensor:
    """Interpolate from a to b along a great circle, with norms from |a| to |b| (Shoemake 1985).

    A straight line would pass nearer to the origin than z in training. It is used only where the great
    circle is not unique: for vectors of almost equal or opposite directions, and for zero.

    Uniform z fill a cube, which the great circle leaves between two corners. Elements beyond `limit` are
    clipped, so that training can have drawn every z on the path.

    Args:
        a: float32 nz, the path at t = 0.
        b: float32 nz, the path at t = 1.
        t: float32 T in [0, 1].
        limit: largest absolute value of an element; None: unlimited.

    Returns:
        float32 T×nz.
    """
    start, end, t = a.double(), b.double(), t.double()[:, None]
    norms = start.norm(), end.norm()
    angle = torch.acos((start @ end / (norms[0] * norms[1])).clamp(-1, 1))
    if angle.sin() > 1e-4:  # false for NaN, which a zero vector gives
        direction = torch.sin((1 - t) * angle) * start / norms[0] + torch.sin(t * angle) * end / norms[1]
        path = direction / angle.sin() * ((1 - t) * norms[0] + t * norms[1])
    else:
        path = (1 - t) * start + t * end
    return path.clamp(min=-limit, max=limit).float() if limit is not None else path.float()


def influence(
    generate: Callable[[torch.Tensor], np.ndarray], z: torch.Tensor, ends: tuple[float, float]
) -> np.ndarray:
    """Measure how much images change when one element of z changes and all others stay fixed.

    Args:
        generate: float32 N×nz → uint8 N×H×W×C in [0, 255].
        z: float32 B×nz, the points that fix the other elements.
        ends: the two values that each element takes in turn.

    Returns:
        float64 nz, the mean absolute difference over pixels and points, in [0, 255].
    """
    values, changes = torch.tensor(ends), []
    for elements in torch.arange(z.shape[1]).split(ELEMENTS):
        images = generate(torch.cat([traversal(point, int(e), values) for e in elements for point in z]))
        difference = np.abs(images[1::2].astype(np.int16) - images[0::2])
        changes.append(difference.reshape(len(elements), -1).mean(axis=1))
    return np.concatenate(changes)


def most_influential(influences: np.ndarray, count: int) -> list[int]:
    """Return the `count` elements of the largest influence, largest first; of equal ones the lower index."""
    return [int(element) for element in np.argsort(-influences, kind="stable")[:count]]
