"""Paths through latent space."""

import numpy as np
import pytest
import torch
from scipy.spatial import geometric_slerp

from ganpipe.sample.latent_paths import influence, most_influential, slerp, traversal

A, B = torch.randn(2, 100, generator=torch.Generator().manual_seed(0))
T = torch.linspace(0, 1, 9)


def test_slerp_is_scipys_on_the_unit_sphere_with_norms_between() -> None:
    """A failure means that the interpolation does not follow a great circle."""
    a, b = A.double().numpy(), B.double().numpy()
    norms = np.linalg.norm(a), np.linalg.norm(b)
    unit = geometric_slerp(a / norms[0], b / norms[1], T.double().numpy())
    expected = unit * np.linspace(*norms, 9)[:, None]
    assert np.allclose(slerp(A, B, T), expected, atol=1e-5)


@pytest.mark.parametrize("b", [A, 2 * A, A * (1 + 1e-6), A + 1e-6 * B, -A, 0 * A], ids=range(6))
def test_slerp_falls_back_to_the_straight_line(b: torch.Tensor) -> None:
    """A failure means noise or NaN for two vectors of almost equal or opposite directions."""
    path = slerp(A, b, T)
    assert path.isfinite().all() and path.dtype == torch.float32
    assert torch.allclose(path, A + T[:, None] * (b - A), atol=1e-5)
    assert slerp(b, A, T).isfinite().all()


def test_slerp_has_exact_ends_and_stays_within_the_limit() -> None:
    """A failure means that a row does not begin with its seed's image, or uses z unseen in training."""
    a, b = torch.rand(2, 100, generator=torch.Generator().manual_seed(1)) * 2 - 1
    path = slerp(a, b, T, limit=1.0)
    assert torch.equal(path[0], a) and torch.equal(path[-1], b)
    assert path.abs().max() == 1.0 < slerp(a, b, T).abs().max()


def test_traversal_changes_one_element() -> None:
    """A failure means that a row of the traversal shows the effect of other elements."""
    values = torch.tensor([-2.0, 0.0, 2.0])
    path = traversal(A, 7, values)
    assert torch.equal(path[:, 7], values)
    others = [i for i in range(100) if i != 7]
    assert torch.equal(path[:, others], A[others].expand(3, -1))


def test_influence_of_a_linear_network_is_its_weights() -> None:
    """A failure means that the traversal shows elements of little influence."""
    weights = np.array([3, -10, 0, 10, 1, 2, -7, 4, 0])
    sizes = []

    def generate(z: torch.Tensor) -> np.ndarray:
        sizes.append(len(z))
        values = 128 + (z.numpy() * weights).sum(axis=1)
        return np.tile(values.astype(np.uint8)[:, None, None, None], (1, 2, 2, 1))

    influences = influence(generate, torch.ones(3, 9), (-2.0, 2.0), 9)
    assert influences.tolist() == (4 * np.abs(weights)).tolist()
    assert max(sizes) <= 24, "memory grows with the length of z"
    assert most_influential(influences, 4) == [1, 3, 6, 7]
    assert most_influential(influences, 20) == [1, 3, 6, 7, 0, 5, 4, 2, 8]
