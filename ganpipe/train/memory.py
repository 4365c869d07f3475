"""Activation checkpointing: less memory for more time, and the same numbers."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ganpipe.train.step import statistics_kept

# A part begins at each of these; what follows may work in place and so must stay in the part of its input.
HEAVY = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.Upsample)


def save_memory(network: nn.Module) -> None:
    """Make a network keep only the inputs of its layers and compute the rest again in the backward pass.

    All its nn.Sequential parts are treated so; a layer is a convolution or dense layer with what follows it.
    Batch norm's statistics count each batch once. Gradients are the same to the last bit on a CPU.
    """
    for module in network.modules():
        if isinstance(module, nn.Sequential) and not any(isinstance(m, nn.Sequential) for m in module):
            module.forward = _recomputing(module)  # type: ignore[method-assign]


def _recomputing(layers: nn.Sequential) -> Callable[[torch.Tensor], torch.Tensor]:
    starts = [i for i, layer in enumerate(layers) if i == 0 or isinstance(layer, HEAVY)]
    parts = [layers[start:end] for start, end in zip(starts, [*starts[1:], len(layers)], strict=True)]

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), statistics_kept(layers)

    def forward(x: torch.Tensor) -> torch.Tensor:
        for part in parts:
            x = checkpoint(part, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
        return x

    return forward
