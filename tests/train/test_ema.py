"""The moving average of the generator's weights."""

import copy

import pytest
import torch
from torch import nn

from ganpipe.train.ema import update_ema


def constant_net(value: float) -> nn.Module:
    """Build a layer whose weights all have one value."""
    net = nn.Linear(2, 2)
    nn.init.constant_(net.weight, value)
    return net


def test_the_halflife_is_in_thousands_of_images() -> None:
    """The average would cover more or fewer images than params.yaml says."""
    G_ema = constant_net(0.0)
    for _ in range(10):
        update_ema(G_ema, constant_net(1.0), halflife_kimg=1.0, batch_size=100, nimg=10**9)
    assert next(G_ema.parameters())[0, 0].item() == pytest.approx(0.5, abs=1e-5)


def test_the_random_start_is_forgotten_at_once() -> None:
    """Without the shorter half-life at the start, a short run would sample from its random weights."""
    G_ema = constant_net(0.0)
    update_ema(G_ema, constant_net(1.0), halflife_kimg=1000.0, batch_size=100, nimg=100)
    assert next(G_ema.parameters())[0, 0].item() == pytest.approx(1.0, abs=1e-5)


def test_batch_norm_statistics_are_copied() -> None:
    """Averaged weights with old statistics give washed-out images."""
    G = nn.BatchNorm1d(2)
    G_ema = copy.deepcopy(G)
    G(torch.randn(4, 2, generator=torch.Generator().manual_seed(0)))
    update_ema(G_ema, G, halflife_kimg=1.0, batch_size=4, nimg=4)
    for average, buffer in zip(G_ema.buffers(), G.buffers(), strict=True):
        assert torch.equal(average, buffer)
