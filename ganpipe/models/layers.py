"""What the papers' networks share: the widths of a pyramid, the rectifier and the weights to start from."""

from torch import nn

from ganpipe.common.errors import UserError
from ganpipe.params import BASES, Model, base_and_doublings


def pyramid(params: Model, narrowest: int, resolution: int) -> tuple[int, list[int]]:
    """Work out the sides and feature maps of a network that doubles its side up to the resolution in pixels.

    Args:
        params: its first_channels is the width at the smallest side; null: narrowest·2^(doublings - 1).
        narrowest: ngf or ndf, the width beside the images.
        resolution: pixels a side of the images.

    Returns:
        (base, widths): the smallest side; the widths at it and at each doubling of it below the resolution,
        each half of the one before, rounded down.

    Raises:
        UserError: the resolution is out of reach, or first_channels halves to nothing.
    """
    found = base_and_doublings(params.architecture, resolution)
    if found is None:
        first, *_, last = BASES[params.architecture]
        raise UserError(
            f"preprocess.resolution: {resolution} px is not reached by architecture {params.architecture}, "
            f"{first} to {last} px doubled at least once"
        )
    base, doublings = found
    widest = params.first_channels or narrowest * 2 ** (doublings - 1)
    widths = [widest >> i for i in range(doublings)]
    if widths[-1] < 1:
        raise UserError(
            f"model.first_channels: {widest} feature maps at {base}×{base} halve to none on the way to "
            f"{resolution} px; give {2 ** (doublings - 1)} or more, or null"
        )
    return base, widths


def rectifier(slope: float) -> nn.Module:
    """Build a leaky ReLU with a slope below zero; slope 0 is the ReLU."""
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
