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
With `model.last_stride: 3` the layer next to the images is 5×5 with stride 3 in both networks, for sides
3b·2^(k-1): much public code for anime faces goes from 4×4 to 96 px in five layers that way.

`model.first_channels` replaces the width n·2^(k-1) at b×b in both networks. It is 1024 for Marchesi 2017,
"Megapixel Size Image Creation using Generative Adversarial Networks", whose generator for 1024 px goes from
1024×4×4 through 512×8×8, 256×16×16, … and 8×512×512 to C×1024×1024. Our discriminator mirrors it, unless
`model.d_first_channels` sets its width at b×b: 8192 for 64 maps at 512×512.
`model.discriminator_norm: none` removes batch norm from the discriminator, as Xin 2024 does in the first
four of five layers (the fifth never has it). All layers then have a bias; without one, D(a·x) would equal
a·D(x) for a > 0.
"""

from itertools import pairwise

import torch
from torch import nn

from ganpipe.models.layers import NetworkSpec, SequentialDiscriminator, block, initialize, pyramid


class Generator(nn.Module):
    """float32 N×nz → float32 N×channels×resolution×resolution in [-1, 1]."""

    def __init__(self, spec: NetworkSpec, slope: float = 0.0) -> None:
        super().__init__()
        base, widths = pyramid(spec, "G")
        layers = block(nn.ConvTranspose2d(spec.inputs, widths[0], base, bias=False), True, slope)
        for wider, width in pairwise(widths):
            layers += block(nn.ConvTranspose2d(wider, width, 4, 2, padding=1, bias=False), True, slope)
        stride = spec.params.last_stride
        last = nn.ConvTranspose2d(widths[-1], spec.channels, stride + 2, stride, padding=1, bias=False)
        self.layers = nn.Sequential(*layers, last, nn.Tanh())
        self.apply(initialize)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Turn latent vectors N×nz into images N×channels×resolution×resolution in [-1, 1]."""
        return self.layers(z[:, :, None, None])


class Discriminator(SequentialDiscriminator):
    """float32 N×channels×resolution×resolution in [-1, 1] → logits float32 N."""

    def __init__(self, spec: NetworkSpec) -> None:
        base, widths = pyramid(spec, "D")
        norm = spec.params.discriminator_norm == "batch"
        layers: list[nn.Module] = []
        for narrower, width in pairwise([spec.channels, *reversed(widths)]):
            stride = 2 if layers else spec.params.last_stride
            convolution = nn.Conv2d(narrower, width, stride + 2, stride, padding=1, bias=not norm)
            layers += block(convolution, norm and len(layers) > 0, 0.2)
        super().__init__(*layers, nn.Conv2d(widths[0], 1, base, bias=not norm))
