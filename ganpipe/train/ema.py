"""Exponential moving average of the generator's weights."""

import copy

import torch
from torch import nn


class EMA:
    """A generator whose parameters follow those of `G` with a half-life in thousands of images.

    Attributes:
        model: the averaged network, in eval mode, without gradients.
    """

    def __init__(self, G: nn.Module, halflife_kimg: float, batch_size: int) -> None:
        self.model = copy.deepcopy(G).eval().requires_grad_(False)
        self.halflife_kimg, self.batch_size = halflife_kimg, batch_size

    @torch.no_grad()
    def update(self, G: nn.Module, nimg: int) -> None:
        """Move one step towards G after `nimg` images of training; batch norm statistics are copied.

        The half-life is at most a twentieth of the images seen, so that the average soon forgets the random
        initial weights (Karras et al. 2020, "Training GANs with limited data", ema_rampup).
        """
        halflife = min(self.halflife_kimg * 1000, nimg * 0.05)
        weight = 1 - 0.5 ** (self.batch_size / max(halflife, 1e-8))
        for average, parameter in zip(self.model.parameters(), G.parameters(), strict=True):
            average.lerp_(parameter, weight)
        for copied, buffer in zip(self.model.buffers(), G.buffers(), strict=True):
            copied.copy_(buffer)
