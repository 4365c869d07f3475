"""DCGAN: Radford, Metz & Chintala 2015, "Unsupervised Representation Learning with Deep Convolutional GANs".

For a side b·2^k, b from 4 to 7 (section 3 of the paper has b = 4, k = 4):

    generator, n = ngf                                 discriminator, n = ndf
    z                    N×nz×1×1                      image               N×C×b2^k×b2^k
    deconvolution b×b    N×n·2^(k-1)×b×b               convolution 4×4     N×n×b2^(k-1)×b2^(k-1)
    deconvolution 4×4    N×n·2^(k-2)×2b×2b             convolution 4×4     N×2n×b2^(k-2)×b2^(k-2)
    …                                                  …
    deconvolution 4×4    N×n×b2^(k-1)×b2^(k-1)         convolution 4×4     N×n·2^(k-1)×b×b
    deconvolution 4×4    N×C×b2^k×b2^k, tanh           convolution b×b     N×1×1×1, the logit

All 4×4 layers have stride 2 and padding 1. Batch norm after every layer but the generator's last and the
discriminator's first and last; ReLU in the generator, leaky ReLU of slope 0.2 in the discriminator.
No biases. Weights start as N(0, 0.02) (section 4), batch norm scales as N(1, 0.02).

`model.first_channels` gives the width at b×b instead of n·2^(k-1), in both networks: 1024 for Marchesi 2017,
"Megapixel Size Image Creation using Generative Adversarial Networks", whose generator of 1024 px goes from
1024×4×4 through 512×8×8, 256×16×16, … and 8×512×512 to C×1024×1024. Our discriminator mirrors it.
`model.discriminator_norm: none` takes batch norm out of the discriminator, as Xin 2024 does with the first
four of five layers (the fifth has none anyway). All then have a bias, or D(a·x) would be a·D(x), a > 0.
"""

from itertools import pairwise

import torch
from torch import nn

from ganpipe.models.layers import NetworkSpec, initialize, pyramid, rectifier


class Generator(nn.Module):
    """float32 N×nz → float32 N×channels×side×side in [-1, 1]; the side is base·2^len(widths)."""

    def __init__(self, nz: int, base: int, widths: list[int], channels: int, slope: float) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.ConvTranspose2d(nz, widths[0], base, bias=False)]
        for wider, width in pairwise([*widths, channels]):
            layers += [nn.BatchNorm2d(wider), rectifier(slope)]
            layers += [nn.ConvTranspose2d(wider, width, 4, stride=2, padding=1, bias=False)]
        self.layers = nn.Sequential(*layers, nn.Tanh())
        self.apply(initialize)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Turn latent vectors N×nz into images N×channels×side×side in [-1, 1]."""
        images: torch.Tensor = self.layers(z[:, :, None, None])
        return images


class Discriminator(nn.Module):
    """float32 N×channels×side×side in [-1, 1] → logits float32 N; the side is base·2^len(widths)."""

    def __init__(self, base: int, widths: list[int], channels: int, norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for narrower, width in pairwise([channels, *reversed(widths)]):
            batch_norm = [nn.BatchNorm2d(width)] if norm and layers else []
            conv = nn.Conv2d(narrower, width, 4, stride=2, padding=1, bias=not norm)
            layers += [conv, *batch_norm, rectifier(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[0], 1, base, bias=not norm))
        self.apply(initialize)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Turn images N×channels×side×side in [-1, 1] into logits N, high for real."""
        logits: torch.Tensor = self.layers(images).flatten()
        return logits


def generator(spec: NetworkSpec) -> Generator:
    """Build the generator.

    Raises:
        UserError: the resolution is out of reach, or model.first_channels too small for it.
    """
    return Generator(spec.params.nz, *pyramid(spec, spec.params.ngf), spec.channels, slope=0.0)


def discriminator(spec: NetworkSpec) -> Discriminator:
    """Build the discriminator.

    Raises:
        UserError: the resolution is out of reach, or model.first_channels too small for it.
    """
    norm = spec.params.discriminator_norm == "batch"
    return Discriminator(*pyramid(spec, spec.params.ndf), spec.channels, norm)
