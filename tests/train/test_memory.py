"""Activation checkpointing."""

import pytest
import torch

from ganpipe import models
from ganpipe.params import Params
from ganpipe.train import memory


@pytest.mark.parametrize("which", ["generator", "discriminator"])
def test_same_gradients_and_statistics_for_less_kept(default_params: Params, which: str) -> None:
    """A flag that saves memory must not change what is learnt, and must save some."""
    results = []
    for saving in (False, True):
        torch.manual_seed(0)
        net = getattr(models, f"build_{which}")(default_params.model, 32, 1).to(
            memory_format=torch.channels_last
        )
        if saving:
            memory.save_memory(net)
        x = torch.randn(8, 100) if which == "generator" else torch.randn(8, 1, 32, 32)
        kept = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = net(x)
        out.square().sum().backward()
        tensors = [out, *(p.grad for p in net.parameters()), *net.buffers()]
        results.append((kept, tensors))
    (kept_before, before), (kept_after, after) = results
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert kept_after < 0.6 * kept_before
