"""DCGAN: Radford, Metz & Chintala 2015, "Unsupervised Representation Learning with Deep Convolutional GANs".

For a side b·2^k, b from 4 to 7 (section 3 of the paper has b = 4, k = 4):

    generator                                          discriminator
    z                    N×nz×1×1                      image               N×C×b2^k×b2^k
    deconvolution b×b    N×ngf·2^(k-1)×b×b             convolution 4×4     N×ndf×b2^(k-1)×b2^(k-1)
    deconvolution 4×4    N×ngf·2^(k-2)×2b×2b           convolution 4×4     N×2·ndf×b2^(k-2)×b2^(k-2)
    …                                                  …
    deconvolution 4×4    N×ngf×b2^(k-1)×b2^(k-1)       convolution 4×4     N×ndf·2^(k-1)×b×b
    deconvolution 4×4    N×C×b2^k×b2^k, tanh           convolution b×b     N×1×1×1, the logit

All 4×4 layers have stride 2 and padding 1. Batch norm after every layer but the generator's last and the
discriminator's first and last; ReLU in the generator, leaky ReLU of slope 0.2 in the discriminator.
No biases. Weights start as N(0, 0.02), batch norm scales as N(1, 0.02).
"""

import torch
from torch import nn

from ganpipe.errors import UserError
from ganpipe.params import Model, base_and_doublings


class Generator(nn.Module):
    """float32 N×nz → float32 N×channels×resolution×resolution in [-1, 1]."""

    def __init__(self, nz: int, ngf: int, resolution: int, channels: int) -> None:
        super().__init__()
        base, doublings = _pyramid(resolution)
        widths = [ngf * 2**i for i in reversed(range(doublings))]
        layers: list[nn.Module] = [nn.ConvTranspose2d(nz, widths[0], base, bias=False)]
        for width, wider in zip([*widths[1:], channels], widths, strict=True):
            layers += [nn.BatchNorm2d(wider), nn.ReLU(inplace=True)]
            layers += [nn.ConvTranspose2d(wider, width, 4, stride=2, padding=1, bias=False)]
        self.layers = nn.Sequential(*layers, nn.Tanh())
        self.apply(_initialize)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Turn latent vectors N×nz into images N×channels×resolution×resolution in [-1, 1]."""
        images: torch.Tensor = self.layers(z[:, :, None, None])
        return images


class Discriminator(nn.Module):
    """float32 N×channels×resolution×resolution in [-1, 1] → logits float32 N."""

    def __init__(self, ndf: int, resolution: int, channels: int) -> None:
        super().__init__()
        base, doublings = _pyramid(resolution)
        widths = [ndf * 2**i for i in range(doublings)]
        layers: list[nn.Module] = []
        for narrower, width in zip([channels, *widths[:-1]], widths, strict=True):
            norm = [nn.BatchNorm2d(width)] if layers else []
            conv = nn.Conv2d(narrower, width, 4, stride=2, padding=1, bias=False)
            layers += [conv, *norm, nn.LeakyReLU(0.2, inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, base, bias=False))
        self.apply(_initialize)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Turn images N×channels×resolution×resolution in [-1, 1] into logits N, high for real."""
        logits: torch.Tensor = self.layers(images).flatten()
        return logits


def generator(params: Model, resolution: int, channels: int) -> Generator:
    """Build the generator."""
    return Generator(params.nz, params.ngf, resolution, channels)


def discriminator(params: Model, resolution: int, channels: int) -> Discriminator:
    """Build the discriminator."""
    return Discriminator(params.ndf, resolution, channels)


def _pyramid(resolution: int) -> tuple[int, int]:
    found = base_and_doublings("dcgan", resolution)
    if found is None:
        raise UserError(f"preprocess.resolution: {resolution} px is no base of 4 to 7 doubled at least once")
    return found


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
