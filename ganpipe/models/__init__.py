"""The networks, one file a paper; each architecture gives a generator and a discriminator."""

from typing import Protocol

import torch

from ganpipe.models import celeba64, dcgan, residual, upsample
from ganpipe.params import Model


class Architecture(Protocol):
    """What a module of this package offers."""

    def generator(self, params: Model, resolution: int, channels: int) -> torch.nn.Module:
        """Build the network float32 N×nz → float32 N×channels×resolution×resolution in [-1, 1]."""

    def discriminator(self, params: Model, resolution: int, channels: int) -> torch.nn.Module:
        """Build the network float32 N×channels×resolution×resolution in [-1, 1] → logits float32 N."""


ARCHITECTURES: dict[str, Architecture] = {
    "dcgan": dcgan,
    "celeba64": celeba64,
    "upsample": upsample,
    "residual": residual,
}


def build_generator(params: Model, resolution: int, channels: int) -> torch.nn.Module:
    """Build a generator, float32 N×nz → float32 N×channels×resolution×resolution in [-1, 1].

    Raises:
        UserError: the architecture cannot be built at the resolution or with model.first_channels.
    """
    return ARCHITECTURES[params.architecture].generator(params, resolution, channels)


def build_discriminator(params: Model, resolution: int, channels: int) -> torch.nn.Module:
    """Build a discriminator, float32 N×channels×resolution×resolution in [-1, 1] → logits float32 N.

    Raises:
        UserError: the architecture cannot be built at the resolution or with model.first_channels.
    """
    return ARCHITECTURES[params.architecture].discriminator(params, resolution, channels)
