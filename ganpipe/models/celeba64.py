"""Vlad, "Face image generation using GANs": the generator and the discriminator, all convolutions.

The paper's sizes, for 64 px and n = 64; other sides b·2^k, b from 4 to 7, are built as in dcgan.py:

    generator, n = ngf                             discriminator, n = ndf
    z                    N×nz×1×1                  image               N×C×64×64
    deconvolution 4×4    N×8n×4×4                  convolution 4×4     N×n×32×32
    deconvolution 4×4    N×4n×8×8                  convolution 4×4     N×2n×16×16
    deconvolution 4×4    N×2n×16×16                convolution 4×4     N×4n×8×8
    deconvolution 4×4    N×n×32×32                 convolution 4×4     N×8n×4×4
    deconvolution 4×4    N×C×64×64, tanh           convolution 4×4     N×1×1×1, the logit

The generator's first four layers have batch norm and leaky ReLU, where DCGAN has ReLU. The discriminator has
leaky ReLU and no batch norm, which the paper does not mention. Slopes are 0.2. Stride, padding, biases,
initial weights and `model.first_channels` are DCGAN's. `model.discriminator_norm` applies here too: the
paper's network needs `none`, which its recipe sets.
"""

from ganpipe.models import dcgan
from ganpipe.models.layers import NetworkSpec


class Generator(dcgan.Generator):
    """DCGAN's generator with leaky ReLU: float32 N×nz → float32 N×channels×side×side in [-1, 1]."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec, slope=0.2)


Discriminator = dcgan.Discriminator
