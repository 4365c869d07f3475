"""Paths through latent space, and the elements of z that influence images most."""

import numpy as np
import torch

from ganpipe.sample.images import Generate

ELEMENTS = 4  # whose images are generated together; bounds the memory


def traversal(z: torch.Tensor, element: int, values: torch.Tensor) -> torch.Tensor:
    """Vary one element of z and fix all others (Stiff et al. 2018, analysis of z).

    z is float32 nz and the element's values are float32 T; row i of the result, float32 T×nz, has values[i].
    """
    path = z.repeat(len(values), 1)
    path[:, element] = values
    return path


def slerp(a: torch.Tensor, b: torch.Tensor, t: torch.Tensor, limit: float | None = None) -> torch.Tensor:
    """Interpolate from a to b along a great circle, with norms from |a| to |b| (Shoemake 1985).

    A straight line would pass nearer to the origin than z in training. It is used only where the great
    circle is not unique: for vectors of almost equal or opposite directions, and for zero.

    Uniform z fill a cube, which the great circle leaves between two corners. Elements beyond ±limit are
    clipped, so that training can have drawn every z on the path.

    a and b are float32 nz, t is float32 T from 0 (at a) to 1 (at b), and the result is float32 T×nz.
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


def between(
    a: torch.Tensor, b: torch.Tensor, t: torch.Tensor, nz: int, limit: float | None = None
) -> torch.Tensor:
    """Interpolate latent vectors, float32 inputs → T×inputs: z with `slerp`, classes on a straight line."""
    return torch.cat([slerp(a[:nz], b[:nz], t, limit), torch.lerp(a[nz:], b[nz:], t[:, None])], 1)


def influence(generate: Generate, z: torch.Tensor, ends: tuple[float, float], nz: int) -> np.ndarray:
    """Measure how much images change when one element of z moves between two values, the others fixed.

    z is float32 B×inputs, the points that fix the other elements. The result is float64 nz, the mean absolute
    difference over pixels and points, in [0, 255].
    """
    values, changes = torch.tensor(ends), []
    for elements in torch.arange(nz).split(ELEMENTS):
        images = generate(torch.cat([traversal(point, int(e), values) for e in elements for point in z]))
        difference = np.abs(images[1::2].astype(np.int16) - images[0::2])
        changes.append(difference.reshape(len(elements), -1).mean(axis=1))
    return np.concatenate(changes)


def most_influential(influences: np.ndarray, count: int) -> list[int]:
    """Return the `count` elements of the largest influence, largest first; of equal ones the lower index."""
    return [int(element) for element in np.argsort(-influences, kind="stable")[:count]]
