"""The networks, against the papers' figures."""

from typing import Any

import pytest
import torch

from ganpipe import models
from ganpipe.params import Model, base_and_doublings, reaches

SIDES = (28, 32, 64, 96, 128, 192, 256)


def dcgan(**changes: int) -> Model:
    """Params of a DCGAN, narrow unless told otherwise."""
    values: dict[str, Any] = {"architecture": "dcgan", "nz": 10, "z_distribution": "normal", "z_limit": None}
    values |= {"ngf": 2, "ndf": 2, "first_channels": None, "discriminator_norm": "batch"}
    return Model(**values | changes)


def test_dcgan_has_the_published_parameter_counts() -> None:
    """Another count means another network than Radford's at 64 px, and no comparison with it would hold."""
    params = dcgan(nz=100, ngf=64, ndf=64)
    counts = [
        sum(p.numel() for p in build(params, 64, 3).parameters())
        for build in (models.generator, models.discriminator)
    ]
    assert counts == [3_576_704, 2_765_568]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", SIDES)
def test_shapes_and_range(side: int, channels: int) -> None:
    """A failure means that a side named in the papers cannot be trained at."""
    G, D = models.generator(dcgan(), side, channels), models.discriminator(dcgan(), side, channels)
    images = G(torch.randn(2, 10))
    assert images.shape == (2, channels, side, side)
    assert -1 <= images.min() and images.max() <= 1
    assert D(images).shape == (2,)


def test_weights_start_as_the_paper_says() -> None:
    """A failure means that training starts from other weights than N(0, 0.02), which changes how it goes."""
    torch.manual_seed(0)
    D = models.discriminator(dcgan(ndf=32), 64, 3)
    weights = torch.cat([p.flatten() for name, p in D.named_parameters() if p.dim() == 4])
    assert abs(weights.std().item() - 0.02) < 2e-4
    assert abs(weights.mean().item()) < 2e-4


def test_every_layer_learns_from_one_step() -> None:
    """A parameter without gradient would never move: a layer that is not connected."""
    G, D = models.generator(dcgan(), 32, 1), models.discriminator(dcgan(), 32, 1)
    D(G(torch.randn(4, 10))).sum().backward()
    for name, parameter in [*G.named_parameters(), *D.named_parameters()]:
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_base_and_doublings() -> None:
    """A wrong pair would start the pyramid from another side than PAPERS says: 192, 384 and 768 from 6×6."""
    found = {side: base_and_doublings("dcgan", side) for side in (28, 64, 96, 192, 384, 768, 1024)}
    assert found == {28: (7, 2), 64: (4, 4), 96: (6, 4), 192: (6, 5), 384: (6, 6), 768: (6, 7), 1024: (4, 8)}
    assert base_and_doublings("upsample", 128) == (8, 4) and base_and_doublings("upsample", 28) == (7, 2)
    assert [base_and_doublings("dcgan", side) for side in (4, 7, 9, 33, 100)] == [None] * 5
    for side in range(8, 2049):
        if found_one := base_and_doublings("dcgan", side):
            base, doublings = found_one
            assert base * 2**doublings == side and 4 <= base <= 7 and doublings >= 1
    assert reaches("residual", 96) and not reaches("residual", 28)
