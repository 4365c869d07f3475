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
The shortcuts are the paper's own: y1 = F1(x0) and x1 = x0 + y1, then yk = Fk(x(k-1)) and xk = yk + y1.
Each later layer adds the first one's output, not its own input.

Generator: batch norm and ReLU follow every convolution down and up, except the last (tanh); the dense layer
has neither. Discriminator: batch norm (none with `model.discriminator_norm: none`) and leaky ReLU of slope
0.2 follow each of four layers. The paper then repeats "the last layer" after a convolution and ends with
average pooling. We read this as one bare 3×3 convolution, the fourth layer once more with its norm and
activation, and, to get from 8n maps to one number, a 1×1 convolution whose map is averaged to the logit.
Layers without batch norm after them have biases. Initial weights are as in dcgan.py. Widths come from ngf and
ndf alone: `model.first_channels` and `d_first_channels` must be null. At 32 px the residual layers have 1×1
pixels and see padding around them: `warning` says so.

`model.trunk_halvings` h, 5 above, lets only the first h layers down and the last h layers up change the side;
the others are 3×3 with stride 1. The residual layers then have s/2^h pixels a side: 24×24 for 96 px and
h = 2, which the paper may mean, because it fell back to batches of 24 for lack of memory.
"""

from itertools import pairwise

import torch
from torch import nn

from ganpipe.common.errors import UserError
from ganpipe.models.layers import NetworkSpec, SequentialDiscriminator, block, initialize
from ganpipe.params import RESIDUAL_STEP, reaches

RESIDUAL_LAYERS = 9


class Generator(nn.Module):
    """float32 N×nz → float32 N×channels×resolution×resolution in [-1, 1]."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        _check(spec)
        side, widths = spec.resolution, [spec.params.ngf * factor for factor in (1, 2, 4, 8, 8)]
        strides = [2 if i < spec.params.trunk_halvings else 1 for i in range(len(widths))]
        self.start = (1, side, side)
        self.dense = nn.Linear(spec.inputs, side**2)
        down: list[nn.Module] = []
        for before, after, stride in zip([1, *widths], widths, strides, strict=False):
            down += block(nn.Conv2d(before, after, stride + 2, stride, padding=1, bias=False), True, 0.0)
        self.down = nn.Sequential(*down)
        self.residual = nn.ModuleList(_residual_layer(widths[-1]) for _ in range(RESIDUAL_LAYERS))
        up: list[nn.Module] = []
        for (before, after), stride in zip(pairwise(reversed(widths)), reversed(strides), strict=False):
            convolution = nn.ConvTranspose2d(before, after, stride + 2, stride, padding=1, bias=False)
            up += block(convolution, True, 0.0)
        last = nn.ConvTranspose2d(widths[0], spec.channels, 4, stride=2, padding=1)
        self.up = nn.Sequential(*up, last, nn.Tanh())
        self.apply(initialize)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Turn latent vectors N×nz into images N×channels×resolution×resolution in [-1, 1]."""
        x = self.down(self.dense(z).unflatten(1, self.start))
        first, *later = self.residual
        y1 = first(x)
        x = x + y1
        for layer in later:
            x = layer(x) + y1
        return self.up(x)


class Discriminator(SequentialDiscriminator):
    """float32 N×channels×resolution×resolution in [-1, 1] → logits float32 N."""

    def __init__(self, spec: NetworkSpec) -> None:
        _check(spec)
        norm, widths = spec.params.discriminator_norm == "batch", [spec.params.ndf * 2**i for i in range(4)]
        wide = widths[-1]

        def halving(before: int, after: int) -> list[nn.Module]:
            return block(nn.Conv2d(before, after, 4, stride=2, padding=1, bias=not norm), norm, 0.2)

        layers = [layer for pair in pairwise([spec.channels, *widths]) for layer in halving(*pair)]
        # With batch norm in the repeated layer, a bias in this convolution would have no effect.
        layers += [nn.Conv2d(wide, wide, 3, padding=1, bias=not norm), *halving(wide, wide)]
        super().__init__(*layers, nn.Conv2d(wide, 1, 1), nn.AdaptiveAvgPool2d(1))


def warning(spec: NetworkSpec) -> str | None:
    """Warn of a side at which these networks are hardly the paper's; None for all others."""
    if spec.params.architecture != "residual" or spec.resolution >> spec.params.trunk_halvings > 1:
        return None
    return (
        f"preprocess.resolution: at {spec.resolution} px the residual layers work on 1×1 pixels, not on 3×3 "
        f"as at the paper's 96 px, and D averages one pixel; judge them at {2 * RESIDUAL_STEP} px or more"
    )


def _check(spec: NetworkSpec) -> None:
    if not reaches("residual", spec.resolution):
        found = f"architecture residual cannot produce {spec.resolution} px"
        reason = f"it halves the side five times; give a multiple of {RESIDUAL_STEP}"
        raise UserError(f"preprocess.resolution: {found}, because {reason}")
    for name in ("first_channels", "d_first_channels"):
        if (value := getattr(spec.params, name)) is not None:
            rule = "architecture residual takes its widths from model.ngf and model.ndf"
            raise UserError(f"model.{name}: found {value}, but {rule}; give null")


def _residual_layer(width: int) -> nn.Sequential:
    first, second = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
    return nn.Sequential(*block(first, True, 0.0), second, nn.BatchNorm2d(width))
