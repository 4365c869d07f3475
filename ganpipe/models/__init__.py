"""The networks, one file a paper; each architecture has a generator and a discriminator."""

from typing import Protocol

import torch

from ganpipe.models import celeba64, dcgan, residual, upsample
from ganpipe.models.layers import NetworkSpec


class Architecture(Protocol):
    """The functions that the module of an architecture has."""

    def generator(self, spec: NetworkSpec) -> torch.nn.Module:
        """Build the network float32 N×nz → float32 N×channels×resolution×resolution in [-1, 1]."""

    def discriminator(self, spec: NetworkSpec) -> torch.nn.Module:
        """Build the network float32 N×channels×resolution×resolution in [-1, 1] → logits float32 N."""


ARCHITECTURES: dict[str, Architecture] = {
    "dcgan": dcgan,
    "celeba64": celeba64,
    "upsample": upsample,
    "residual": residual,
}


def build_generator(spec: NetworkSpec) -> torch.nn.Module:
    """Build a generator, float32 N×nz → float32 N×channels×resolution×resolution in [-1, 1].

    Raises:
        UserError: the architecture cannot be built at the resolution or with model.first_channels.
    """
    return ARCHITECTURES[spec.params.architecture].generator(spec)


def build_discriminator(spec: NetworkSpec) -> torch.nn.Module:
    """Build a discriminator, float32 N×channels×resolution×resolution in [-1, 1] → logits float32 N.

    Raises:
        UserError: the architecture cannot be built at the resolution or with model.first_channels.
    """
    return ARCHITECTURES[spec.params.architecture].discriminator(spec)
