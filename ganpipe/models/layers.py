"""What the papers' networks share: their specification, widths, rectifier and initial weights."""

from dataclasses import dataclass

from torch import nn

from ganpipe.common.errors import UserError
from ganpipe.params import BASES, Model, base_and_doublings


@dataclass(frozen=True)
class NetworkSpec:
    """What a generator or a discriminator is built from.

    Attributes:
        params: the section `model` of the params.
        resolution: pixels a side of the images.
        channels: of the images, 1 for grey, 3 for colour.
    """

    params: Model
    resolution: int
    channels: int


def pyramid(spec: NetworkSpec, narrowest: int) -> tuple[int, list[int]]:
    """Compute the sides and feature maps of a network that doubles its side up to the resolution.

    Args:
        spec: model.first_channels is the width at the smallest side; null: narrowest·2^(doublings - 1).
        narrowest: ngf or ndf, the width of the layer next to the images.

    Returns:
        (base, widths): the smallest side; the widths at it and at each doubling of it below the resolution,
        each half of the one before, rounded down.

    Raises:
        UserError: the resolution is out of reach, or first_channels halves to nothing.
    """
    params, resolution = spec.params, spec.resolution
    factors = base_and_doublings(params.architecture, resolution)
    if factors is None:
        first, *_, last = BASES[params.architecture]
        raise UserError(
            f"preprocess.resolution: {resolution} px is not reached by architecture {params.architecture}, "
            f"{first} to {last} px doubled at least once"
        )
    base, doublings = factors
    widest = params.first_channels or narrowest * 2 ** (doublings - 1)
    widths = [widest >> i for i in range(doublings)]
    if widths[-1] < 1:
        raise UserError(
            f"model.first_channels: {widest} feature maps at {base}×{base} halve to less than one on the way "
            f"to {resolution} px; give {2 ** (doublings - 1)} or more, or null"
        )
    return base, widths


def rectifier(slope: float) -> nn.Module:
    """Build a leaky ReLU with this slope for negative inputs; slope 0 gives the ReLU."""
    return nn.LeakyReLU(slope, inplace=True) if slope else nn.ReLU(inplace=True)


def initialize(module: nn.Module) -> None:
    """Draw weights from N(0, 0.02) and batch norm scales from N(1, 0.02); set biases to 0."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
