"""What the papers' networks share: specification, widths, blocks, initial weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from ganpipe.common.errors import UserError
from ganpipe.params import BASES, Model, base_and_doublings


@dataclass(frozen=True)
class NetworkSpec:
    """Everything that determines the layers of a generator and a discriminator."""

    params: Model
    resolution: int  # the images' side in pixels
    channels: int  # 1 for grey images, 3 for colour
    classes: Mapping[str, int] = field(default_factory=dict)  # name → training images; none: unconditional

    @property
    def inputs(self) -> int:
        """Elements of a latent vector: those of z, then one for each class, 0 except for the image's own.

        What G's first layer adds for a class is that class's embedding, and classes mix linearly.
        """
        return self.params.nz + len(self.classes)


def pyramid(spec: NetworkSpec, player: Literal["G", "D"]) -> tuple[int, list[int]]:
    """Return the smallest side in pixels and the widths of a network whose side doubles up to the resolution.

    The widths are the numbers of feature maps at the smallest side and at each doubling below the resolution:
    model.first_channels (for D d_first_channels, unless it is null), or n·2^(doublings - 1) if that is null,
    then half of the previous one, rounded down. n, ngf or ndf, is then the width next to the images.

    Raises UserError: the architecture cannot reach the resolution, or first_channels halves to less than one.
    """
    params, resolution = spec.params, spec.resolution
    factors = base_and_doublings(params.architecture, resolution, params.last_stride)
    if factors is None:
        (first, *_, last), k = BASES[params.architecture], params.last_stride
        found = f"architecture {params.architecture} cannot produce {resolution} px"
        sides = f"{first} to {last} px times {k}, {2 * k}, {4 * k} …, such as {k * first} or {2 * k * last}"
        raise UserError(f"preprocess.resolution: {found}; give {sides}")
    base, doublings = factors
    name = "d_first_channels" if player == "D" and params.d_first_channels else "first_channels"
    widest = getattr(params, name) or (params.ngf if player == "G" else params.ndf) * 2 ** (doublings - 1)
    widths = [widest >> i for i in range(doublings)]
    if widths[-1] < 1:
        reason = f"halving it from {base} px to {resolution} px leaves less than one feature map"
        remedy = f"give {2 ** (doublings - 1)} or more, or null"
        raise UserError(f"model.{name}: found {widest}, but {reason}; {remedy}")
    return base, widths


def rectifier(slope: float) -> nn.Module:
    """Build a leaky ReLU with this slope for negative inputs; a slope of 0 builds a ReLU."""
    return nn.LeakyReLU(slope, inplace=True) if slope else nn.ReLU(inplace=True)


def block(convolution: nn.Conv2d | nn.ConvTranspose2d, norm: bool, slope: float) -> list[nn.Module]:
    """Follow a convolution by batch norm, where `norm` is true, and by a rectifier of this slope."""
    return [convolution, *[nn.BatchNorm2d(convolution.out_channels)] * norm, rectifier(slope)]


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


class SequentialDiscriminator(nn.Module):
    """A discriminator whose layers follow one another; the last one computes one number per image."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.apply(initialize)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Turn images float32 N×channels×side×side in [-1, 1] into logits float32 N, high for real."""
        return self.layers(images).flatten()


class ProjectionDiscriminator(nn.Module):
    """A discriminator that is told the class (Miyato & Koyama 2018, "cGANs with Projection Discriminator").

    To the logit of the network that it is built of, it adds the inner product of the class's embedding and
    the sums over all pixels of the maps after the last rectifier.
    """

    def __init__(self, network: SequentialDiscriminator, classes: int) -> None:
        super().__init__()
        layers = network.layers
        last = max(i for i, layer in enumerate(layers) if isinstance(layer, nn.LeakyReLU)) + 1
        self.features, self.head = layers[:last], layers[last:]
        width = [layer.out_channels for layer in self.features if isinstance(layer, nn.Conv2d)][-1]
        self.embedding = nn.Linear(classes, width, bias=False)
        initialize(self.embedding)

    def forward(self, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """Turn images, as above, and their classes, float32 N×K of 0 and 1, into logits float32 N."""
        maps = self.features(images)
        return self.head(maps).flatten() + (self.embedding(classes) * maps.sum((2, 3))).sum(1)
