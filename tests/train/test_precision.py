"""Layers in bfloat16."""

import torch
from torch import nn

from ganpipe.train import precision


def test_layers_compute_in_bfloat16_and_give_float32() -> None:
    """Nothing would be faster, or losses would be computed with three digits."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 1))
    seen = []
    network[0].register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    x = torch.randn(4, 3, 8, 8)
    plain = network(x)
    precision.apply(network, "bfloat16", "cpu")
    out = network(x)
    out.sum().backward()
    assert seen == [torch.float32, torch.bfloat16] and out.dtype == torch.float32
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in network.parameters())
    torch.testing.assert_close(out, plain, rtol=0.05, atol=0.05)
    assert not torch.equal(out, plain)


def test_float32_changes_nothing() -> None:
    """A plain training would not be what it was."""
    network = nn.Linear(2, 1)
    precision.apply(network, "float32", "cpu")
    assert "forward" not in vars(network)
