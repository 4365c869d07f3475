"""A generator that resizes its maps instead of transposing convolutions, with the discriminator of dcgan.py.

For a side b·2^k, b from 4 to 7, and n = ngf:

    z                            N×nz×1×1
    deconvolution b×b            N×n·2^(k-1)×b×b
    ×2, convolution 3×3          N×n·2^(k-2)×2b×2b
    …
    ×2, convolution 3×3          N×n×b2^(k-1)×b2^(k-1)
    ×2, convolution 3×3          N×n×b2^k×b2^k
    convolution 3×3              N×C×b2^k×b2^k, tanh

×2 is bilinear; padding is 1. Batch norm and ReLU after every layer but the last; no biases; initial weights
are as in dcgan.py, and so is what `model.first_channels` changes. A transposed convolution of 4×4 with stride
2 computes each pixel from other weights than its neighbours, which leaves a checkerboard (Odena, Dumoulin &
Olah 2016, "Deconvolution and Checkerboard Artifacts").
"""

from itertools import pairwise

import torch
from torch import nn
from torch.nn.functional import conv_transpose2d, interpolate, pad

from ganpipe.models.dcgan import Discriminator as Discriminator
from ganpipe.models.layers import NetworkSpec, block, initialize, pyramid


class Double(nn.Module):
    """Double the sides of float N×channels×H×W, bilinear with replicated edges.

    On a CPU grouped transposed convolutions take longer than `interpolate`, in bfloat16 ten times as long;
    on a GPU the gradients of `interpolate` do not repeat.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        row = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4
        self.kernel = nn.Buffer(row.outer(row).expand(channels, 1, 4, 4).contiguous(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return float N×channels×2H×2W."""
        if x.device.type == "cpu":
            return interpolate(x, scale_factor=2, mode="bilinear")
        return self.by_convolution(x)

    def by_convolution(self, x: torch.Tensor) -> torch.Tensor:
        """Return float N×channels×2H×2W."""
        padded = pad(x, (1, 1, 1, 1), mode="replicate")
        return conv_transpose2d(padded, self.kernel, stride=2, padding=3, groups=x.shape[1])


class Generator(nn.Module):
    """float32 N×nz → float32 N×channels×resolution×resolution in [-1, 1]."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        base, widths = pyramid(spec, "G")
        layers = block(nn.ConvTranspose2d(spec.inputs, widths[0], base, bias=False), True, 0.0)
        for wider, width in pairwise([*widths, widths[-1]]):
            layers += [Double(wider), *block(nn.Conv2d(wider, width, 3, padding=1, bias=False), True, 0.0)]
        last = nn.Conv2d(widths[-1], spec.channels, 3, padding=1, bias=False)
        self.layers = nn.Sequential(*layers, last, nn.Tanh())
        self.apply(initialize)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Turn latent vectors N×nz into images N×channels×resolution×resolution in [-1, 1]."""
        return self.layers(z[:, :, None, None])
