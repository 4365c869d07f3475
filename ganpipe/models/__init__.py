"""The networks, one file per paper, each with a generator and a discriminator."""

from collections.abc import Callable

from torch import nn

from ganpipe.models import celeba64, dcgan, residual, upsample
from ganpipe.models.layers import NetworkSpec

Builder = Callable[[NetworkSpec], nn.Module]

# model.architecture → its generator and its discriminator.
ARCHITECTURES: dict[str, tuple[Builder, Builder]] = {
    "dcgan": (dcgan.Generator, dcgan.Discriminator),
    "celeba64": (celeba64.Generator, celeba64.Discriminator),
    "upsample": (upsample.Generator, upsample.Discriminator),
    "residual": (residual.Generator, residual.Discriminator),
}


def build_generator(spec: NetworkSpec) -> nn.Module:
    """Build a generator, float32 N×nz → float32 N×channels×resolution×resolution in [-1, 1].

    Raises:
        UserError: the architecture cannot be built at the resolution or with model.first_channels.
    """
    return ARCHITECTURES[spec.params.architecture][0](spec)


def build_discriminator(spec: NetworkSpec) -> nn.Module:
    """Build a discriminator, images as the generator's → logits float32 N; errors are the generator's."""
    return ARCHITECTURES[spec.params.architecture][1](spec)
