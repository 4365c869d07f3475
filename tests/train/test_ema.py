"""The moving average of the generator's weights."""

import pytest
import torch
from torch import nn

from ganpipe.train.ema import EMA


def constant_net(value: float) -> nn.Module:
    """A layer whose weights are all one value."""
    net = nn.Linear(2, 2)
    nn.init.constant_(net.weight, value)
    return net


def test_halflife_is_a_halflife() -> None:
    """A wrong half-life smooths over more or fewer images than params.yaml says."""
    ema = EMA(constant_net(0.0), halflife_kimg=1.0, batch_size=100)
    for _ in range(10):
        ema.update(constant_net(1.0), nimg=10**9)
    assert next(ema.model.parameters())[0, 0].item() == pytest.approx(0.5, abs=1e-5)


def test_the_random_start_is_forgotten_at_once() -> None:
    """Without the shorter half-life at the start, a short run would sample from its random weights."""
    ema = EMA(constant_net(0.0), halflife_kimg=1000.0, batch_size=100)
    ema.update(constant_net(1.0), nimg=100)
    assert next(ema.model.parameters())[0, 0].item() == pytest.approx(1.0, abs=1e-5)


def test_batch_norm_statistics_are_copied() -> None:
    """Averaged weights with stale statistics give washed-out images."""
    G = nn.BatchNorm1d(2)
    ema = EMA(G, halflife_kimg=1.0, batch_size=4)
    G(torch.randn(4, 2, generator=torch.Generator().manual_seed(0)))
    ema.update(G, nimg=4)
    for average, buffer in zip(ema.model.buffers(), G.buffers(), strict=True):
        assert torch.equal(average, buffer)
    assert not ema.model.training
