"""The networks, one file per paper, each with a generator and a discriminator."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from ganpipe.models.layers import NetworkSpec

# The values of model.architecture, each a file here.
ARCHITECTURES = ("dcgan", "celeba64", "upsample", "residual", "resize")


def build_generator(spec: "NetworkSpec") -> "nn.Module":
    """Build a generator, float32 N×`spec.inputs` → float32 N×channels×resolution×resolution in [-1, 1].

    Raises UserError: the architecture cannot be built at the resolution or with model.first_channels.
    """
    return _module_of(spec).Generator(spec)


def build_discriminator(spec: "NetworkSpec") -> "nn.Module":
    """Build a discriminator, images as the generator's → logits float32 N; errors are the generator's.

    With classes it also takes those of the images, float32 N×classes.
    """
    from ganpipe.models.layers import ProjectionDiscriminator

    D = _module_of(spec).Discriminator(spec)
    return ProjectionDiscriminator(D, len(spec.classes)) if spec.classes else D


def _module_of(spec: "NetworkSpec") -> Any:
    # Here, because who reads papers.py alone must not wait for torch.
    from ganpipe.models import celeba64, dcgan, residual, resize, upsample

    return (dcgan, celeba64, upsample, residual, resize)[ARCHITECTURES.index(spec.params.architecture)]
