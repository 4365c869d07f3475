"""Xin 2024, "Fast and High-resolution Image Generation Based on Improved DCGAN": the modified networks.

For a side s divisible by 32 (the paper has 96):

    generator, n = ngf                                 discriminator, n = ndf
    z                       N×nz                       image                   N×C×s×s
    dense                   N×1×s×s                    convolution 4×4 /2      N×n×s/2×s/2
    convolution 4×4 /2      N×n×s/2×s/2                convolution 4×4 /2      N×2n×s/4×s/4
    convolution 4×4 /2      N×2n×s/4×s/4               convolution 4×4 /2      N×4n×s/8×s/8
    convolution 4×4 /2      N×4n×s/8×s/8               convolution 4×4 /2      N×8n×s/16×s/16
    convolution 4×4 /2      N×8n×s/16×s/16             convolution 3×3         N×8n×s/16×s/16
    convolution 4×4 /2      N×8n×s/32×s/32 = x0        convolution 4×4 /2      N×8n×s/32×s/32
    9 residual layers       N×8n×s/32×s/32 = x9        convolution 1×1         N×1×s/32×s/32
    deconvolution 4×4 ×2    N×8n×s/16×s/16             average pooling         N×1×1×1, the logit
    deconvolution 4×4 ×2    N×4n×s/8×s/8
    deconvolution 4×4 ×2    N×2n×s/4×s/4
    deconvolution 4×4 ×2    N×n×s/2×s/2
    deconvolution 4×4 ×2    N×C×s×s, tanh

A residual layer F is a 3×3 convolution, batch norm, ReLU, then one more 3×3 convolution and batch norm.
The shortcuts are the paper's own: y1 = F1(x0) and x1 = x0 + y1, then yk = Fk(x(k-1)) and xk = yk + y1:
each later layer adds the first one's output and not its own input.

Generator: batch norm and ReLU after every layer down and up but the dense one (neither) and the last
(tanh). Discriminator: batch norm (`model.discriminator_norm: none` takes it out) and leaky ReLU of slope
0.2 after each of four layers. The paper goes on: the last is repeated after a convolution, then average
pooling. We read: one bare 3×3 convolution, the fourth layer once more with its norm and activation, and,
to come from 8n maps to one number, a 1×1 convolution whose map the pooling averages to the logit. Layers
that no batch norm follows have biases. Weights start as in dcgan.py. Widths come from ngf and ndf alone:
`model.first_channels` must be null.
"""

from itertools import pairwise

import torch
from torch import nn

from ganpipe.common.errors import UserError
from ganpipe.models.layers import NetworkSpec, initialize, rectifier
from ganpipe.params import RESIDUAL_STEP, reaches

RESIDUAL_LAYERS = 9


class Generator(nn.Module):
    """float32 N×nz → float32 N×channels×side×side in [-1, 1]."""

    def __init__(self, nz: int, ngf: int, side: int, channels: int) -> None:
        super().__init__()
        widths = _widths(ngf, 5)
        self.start = (1, side, side)
        self.dense = nn.Linear(nz, side**2)
        down: list[nn.Module] = []
        for before, after in pairwise([1, *widths]):
            down += [nn.Conv2d(before, after, 4, stride=2, padding=1, bias=False)]
            down += [nn.BatchNorm2d(after), rectifier(0.0)]
        self.down = nn.Sequential(*down)
        self.residual = nn.ModuleList(_residual_layer(widths[-1]) for _ in range(RESIDUAL_LAYERS))
        up: list[nn.Module] = []
        for before, after in pairwise(reversed(widths)):
            up += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False)]
            up += [nn.BatchNorm2d(after), rectifier(0.0)]
        last = nn.ConvTranspose2d(widths[0], channels, 4, stride=2, padding=1)
        self.up = nn.Sequential(*up, last, nn.Tanh())
        self.apply(initialize)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Turn latent vectors N×nz into images N×channels×side×side in [-1, 1]."""
        x = self.down(self.dense(z).unflatten(1, self.start))
        first, *later = self.residual
        y1 = first(x)
        x = x + y1
        for layer in later:
            x = layer(x) + y1
        images: torch.Tensor = self.up(x)
        return images


class Discriminator(nn.Module):
    """float32 N×channels×side×side in [-1, 1] → logits float32 N; the side is a multiple of 32."""

    def __init__(self, ndf: int, channels: int, norm: bool) -> None:
        super().__init__()
        widths = _widths(ndf, 4)
        wide = widths[-1]
        layers: list[nn.Module] = []
        for before, after in pairwise([channels, *widths]):
            layers += _discriminator_layer(before, after, norm)
        # The batch norm of the repeated layer would take a bias of this convolution out again.
        layers += [nn.Conv2d(wide, wide, 3, padding=1, bias=not norm)]
        layers += _discriminator_layer(wide, wide, norm)
        self.layers = nn.Sequential(*layers, nn.Conv2d(wide, 1, 1), nn.AdaptiveAvgPool2d(1))
        self.apply(initialize)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Turn images N×channels×side×side in [-1, 1] into logits N, high for real."""
        logits: torch.Tensor = self.layers(images).flatten()
        return logits


def generator(spec: NetworkSpec) -> Generator:
    """Build the generator.

    Raises:
        UserError: the resolution is no multiple of 32, or model.first_channels is given.
    """
    _check(spec)
    return Generator(spec.params.nz, spec.params.ngf, spec.resolution, spec.channels)


def discriminator(spec: NetworkSpec) -> Discriminator:
    """Build the discriminator.

    Raises:
        UserError: the resolution is no multiple of 32, or model.first_channels is given.
    """
    _check(spec)
    return Discriminator(spec.params.ndf, spec.channels, spec.params.discriminator_norm == "batch")


def _check(spec: NetworkSpec) -> None:
    if not reaches("residual", spec.resolution):
        raise UserError(
            f"preprocess.resolution: {spec.resolution} px is not reached by architecture residual, which "
            f"halves the side five times; give a multiple of {RESIDUAL_STEP}"
        )
    if spec.params.first_channels is not None:
        raise UserError(
            f"model.first_channels: found {spec.params.first_channels}, but the widths of architecture "
            f"residual come from model.ngf and model.ndf; give null"
        )


def _widths(narrowest: int, layers: int) -> list[int]:
    """Double the feature maps from layer to layer up to eight times the narrowest."""
    return [narrowest * min(2**i, 8) for i in range(layers)]


def _residual_layer(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        rectifier(0.0),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
    )


def _discriminator_layer(before: int, after: int, norm: bool) -> list[nn.Module]:
    batch_norm = [nn.BatchNorm2d(after)] if norm else []
    return [nn.Conv2d(before, after, 4, stride=2, padding=1, bias=not norm), *batch_norm, rectifier(0.2)]
