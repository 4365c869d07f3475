"""Exponential moving average of the generator's weights."""

import torch
from torch import nn


@torch.no_grad()
def update_ema(G_ema: nn.Module, G: nn.Module, halflife_kimg: float, batch_size: int, nimg: int) -> None:
    """Move the averaged generator one step of `batch_size` images towards G, and copy batch norm statistics.

    The half-life is at most a twentieth of the `nimg` images seen so far, so that the average soon forgets
    the random initial weights (Karras et al. 2020, "Training GANs with limited data", ema_rampup).
    """
    halflife = min(halflife_kimg * 1000, nimg * 0.05)
    weight = 1 - 0.5 ** (batch_size / max(halflife, 1e-8))
    for average, parameter in zip(G_ema.parameters(), G.parameters(), strict=True):
        average.lerp_(parameter, weight)
    for copied, buffer in zip(G_ema.buffers(), G.buffers(), strict=True):
        copied.copy_(buffer)
