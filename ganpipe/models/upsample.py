"""Stiff, von Keyserlingk & Stuart 2018, "Image Generation Using Deep Convolutional GANs": both networks.

For a side b·2^k, b from 5 to 8: 28 = 7·2^2 and 128 = 8·2^4. For 128 px the paper has c = 128, hence 128 →
64 → 32 → 16 → 3 maps in the generator and 3 → 16 → 32 → 64 → 128 in the discriminator.

    generator                                            discriminator
    z                     N×nz                           image                 N×C×b2^k×b2^k
    dense                 N×c×b×b                        convolution 5×5 /2    N×c/2^(k-1)×b2^(k-1)×b2^(k-1)
    ×2, convolution 5×5   N×c/2×2b×2b                    …
    …                                                    convolution 5×5 /2    N×c/2×2b×2b
    ×2, convolution 5×5   N×c/2^(k-1)×b2^(k-1)×b2^(k-1)  convolution 5×5 /2    N×c×b×b
    ×2, convolution 5×5   N×C×b2^k×b2^k, tanh            dense                 N×1, the logit

c is `model.first_channels` (for the discriminator `d_first_channels`) if given, else ngf·2^(k-1) and
ndf·2^(k-1). ×2 repeats each pixel; /2 is stride 2; padding is 2. The paper's text allows either order of
upsampling and convolution; the other one would end in blocks of 2×2 equal pixels. Batch norm follows the
DCGAN constraints that the paper lists: after every layer except the generator's last and the discriminator's
first and last, or nowhere in the discriminator with `model.discriminator_norm: none`. Leaky ReLU of slope 0.2
in both. Layers without batch norm after them have biases. Initial weights are as in dcgan.py.
"""

from itertools import pairwise

import torch
from torch import nn

from ganpipe.models.layers import NetworkSpec, SequentialDiscriminator, block, initialize, pyramid, rectifier


class Generator(nn.Module):
    """float32 N×nz → float32 N×channels×resolution×resolution in [-1, 1]."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        base, widths = pyramid(spec, "G")
        self.start = (widths[0], base, base)
        self.dense = nn.Linear(spec.inputs, widths[0] * base**2, bias=False)
        layers: list[nn.Module] = [nn.BatchNorm2d(widths[0]), rectifier(0.2)]
        for wider, width in pairwise(widths):
            convolution = nn.Conv2d(wider, width, 5, padding=2, bias=False)
            layers += [nn.Upsample(scale_factor=2), *block(convolution, True, 0.2)]
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(widths[-1], spec.channels, 5, padding=2)]
        self.layers = nn.Sequential(*layers, nn.Tanh())
        self.apply(initialize)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Turn latent vectors N×nz into images N×channels×resolution×resolution in [-1, 1]."""
        return self.layers(self.dense(z).unflatten(1, self.start))


class Discriminator(SequentialDiscriminator):
    """float32 N×channels×resolution×resolution in [-1, 1] → logits float32 N."""

    def __init__(self, spec: NetworkSpec) -> None:
        base, widths = pyramid(spec, "D")
        layers: list[nn.Module] = []
        for narrower, width in pairwise([spec.channels, *reversed(widths)]):
            norm = spec.params.discriminator_norm == "batch" and len(layers) > 0
            layers += block(nn.Conv2d(narrower, width, 5, 2, padding=2, bias=not norm), norm, 0.2)
        super().__init__(*layers, nn.Flatten(), nn.Linear(widths[0] * base**2, 1))
