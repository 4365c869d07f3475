"""Stiff, von Keyserlingk & Stuart 2018, "Image Generation Using Deep Convolutional GANs": both networks.

For a side b·2^k, b from 5 to 8: 28 = 7·2^2; 128 = 8·2^4, where the paper has c = 128 and 128 → 64 → 32 →
16 → 3 maps in the generator, 3 → 16 → 32 → 64 → 128 in the discriminator.

    generator                                            discriminator
    z                     N×nz                           image                 N×C×b2^k×b2^k
    dense                 N×c×b×b                        convolution 5×5 /2    N×c/2^(k-1)×b2^(k-1)×b2^(k-1)
    ×2, convolution 5×5   N×c/2×2b×2b                    …
    …                                                    convolution 5×5 /2    N×c/2×2b×2b
    ×2, convolution 5×5   N×c/2^(k-1)×b2^(k-1)×b2^(k-1)  convolution 5×5 /2    N×c×b×b
    ×2, convolution 5×5   N×C×b2^k×b2^k, tanh            dense                 N×1, the logit

c is `model.first_channels`, or else ngf·2^(k-1) and ndf·2^(k-1). ×2 repeats each pixel, /2 is stride 2;
padding is 2. The paper's text allows either order of upsampling and convolution; the other one would end
in blocks of 2×2 equal pixels. Batch norm as in the DCGAN constraints that the paper lists: after every
layer but the generator's last and the discriminator's first and last, or nowhere in the discriminator
with `model.discriminator_norm: none`. Leaky ReLU of slope 0.2 in both. Layers that no batch norm follows
have biases. Weights start as in dcgan.py.
"""

from itertools import pairwise

import torch
from torch import nn

from ganpipe.models.layers import NetworkSpec, initialize, pyramid, rectifier


class Generator(nn.Module):
    """float32 N×nz → float32 N×channels×side×side in [-1, 1]; the side is base·2^len(widths)."""

    def __init__(self, nz: int, base: int, widths: list[int], channels: int) -> None:
        super().__init__()
        self.start = (widths[0], base, base)
        self.dense = nn.Linear(nz, widths[0] * base**2, bias=False)
        layers: list[nn.Module] = [nn.BatchNorm2d(widths[0]), rectifier(0.2)]
        for wider, width in pairwise(widths):
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(wider, width, 5, padding=2, bias=False)]
            layers += [nn.BatchNorm2d(width), rectifier(0.2)]
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(widths[-1], channels, 5, padding=2)]
        self.layers = nn.Sequential(*layers, nn.Tanh())
        self.apply(initialize)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Turn latent vectors N×nz into images N×channels×side×side in [-1, 1]."""
        images: torch.Tensor = self.layers(self.dense(z).unflatten(1, self.start))
        return images


class Discriminator(nn.Module):
    """float32 N×channels×side×side in [-1, 1] → logits float32 N; the side is base·2^len(widths)."""

    def __init__(self, base: int, widths: list[int], channels: int, norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for narrower, width in pairwise([channels, *reversed(widths)]):
            batch_norm = [nn.BatchNorm2d(width)] if norm and layers else []
            conv = nn.Conv2d(narrower, width, 5, stride=2, padding=2, bias=not batch_norm)
            layers += [conv, *batch_norm, rectifier(0.2)]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[0] * base**2, 1))
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
    return Generator(spec.params.nz, *pyramid(spec, spec.params.ngf), spec.channels)


def discriminator(spec: NetworkSpec) -> Discriminator:
    """Build the discriminator.

    Raises:
        UserError: the resolution is out of reach, or model.first_channels too small for it.
    """
    norm = spec.params.discriminator_norm == "batch"
    return Discriminator(*pyramid(spec, spec.params.ndf), spec.channels, norm)
