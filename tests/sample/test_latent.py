"""Paths through the space of z."""

import numpy as np
import pytest
import torch
from scipy.spatial import geometric_slerp

from ganpipe.sample import latent

A, B = torch.randn(2, 100, generator=torch.Generator().manual_seed(0))
T = torch.linspace(0, 1, 9)


def test_slerp_equals_scipys_on_the_unit_sphere_with_norms_between() -> None:
    """The pictures would show another path than the one they name."""
    a, b = A.double().numpy(), B.double().numpy()
    norms = np.linalg.norm(a), np.linalg.norm(b)
    unit = geometric_slerp(a / norms[0], b / norms[1], T.double().numpy())
    expected = unit * np.linspace(*norms, 9)[:, None]
    assert np.allclose(latent.slerp(A, B, T), expected, atol=1e-5)


@pytest.mark.parametrize("b", [A, 2 * A, A * (1 + 1e-6), A + 1e-6 * B, -A, 0 * A], ids=range(6))
def test_slerp_is_safe_where_no_great_circle_is(b: torch.Tensor) -> None:
    """A row of noise, or of nothing, where two vectors happen to point the same way."""
    path = latent.slerp(A, b, T)
    assert path.isfinite().all() and path.dtype == torch.float32
    assert torch.allclose(path, A + T[:, None] * (b - A), atol=1e-5)
    assert latent.slerp(b, A, T).isfinite().all()


def test_slerp_ends_exactly_where_it_should_and_stays_in_the_limit() -> None:
    """The row would not begin with the image of its seed; uniform z would leave the interval of training."""
    a, b = torch.rand(2, 100, generator=torch.Generator().manual_seed(1)) * 2 - 1
    path = latent.slerp(a, b, T, limit=1.0)
    assert torch.equal(path[0], a) and torch.equal(path[-1], b)
    assert path.abs().max() == 1.0 < latent.slerp(a, b, T).abs().max()


def test_traversal_changes_one_element() -> None:
    """A row would show the effect of something else."""
    values = torch.tensor([-2.0, 0.0, 2.0])
    path = latent.traversal(A, 7, values)
    assert torch.equal(path[:, 7], values)
    others = [i for i in range(100) if i != 7]
    assert torch.equal(path[:, others], A[others].expand(3, -1))


def test_influence_of_a_linear_network_is_its_weights() -> None:
    """The traversal would show elements that do little, and hide those that do much."""
    weights = np.array([3, -10, 0, 10, 1, 2, -7, 4, 0])
    sizes = []

    def images_of(z: torch.Tensor) -> np.ndarray:
        sizes.append(len(z))
        values = 128 + (z.numpy() * weights).sum(axis=1)
        return np.tile(values.astype(np.uint8)[:, None, None, None], (1, 2, 2, 1))

    change = latent.influence(images_of, torch.ones(3, 9), (-2.0, 2.0))
    assert change.tolist() == (4 * np.abs(weights)).tolist()
    assert max(sizes) <= 24, "memory would grow with the length of z"
    assert latent.most_changing(change, 4) == [1, 3, 6, 7]
    assert latent.most_changing(change, 20) == [1, 3, 6, 7, 0, 5, 4, 2, 8]
