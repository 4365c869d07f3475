"""Vlad, "Face image generation using GANs": the generator and the discriminator, all convolutions.

The paper's sizes, 64 px from n = 64 maps; any side b·2^k with b from 4 to 7 is built likewise, see dcgan.py:

    generator, n = ngf                             discriminator, n = ndf
    z                    N×nz×1×1                  image               N×C×64×64
    deconvolution 4×4    N×8n×4×4                  convolution 4×4     N×n×32×32
    deconvolution 4×4    N×4n×8×8                  convolution 4×4     N×2n×16×16
    deconvolution 4×4    N×2n×16×16                convolution 4×4     N×4n×8×8
    deconvolution 4×4    N×n×32×32                 convolution 4×4     N×8n×4×4
    deconvolution 4×4    N×C×64×64, tanh           convolution 4×4     N×1×1×1, the logit

The generator's four blocks, the first of which takes z to 4×4, have batch norm and leaky ReLU, where DCGAN
has ReLU; the discriminator's have leaky ReLU and, as the paper names none, no batch norm. Slopes are 0.2.
Else the networks are DCGAN's: stride, padding, biases, first weights, `model.first_channels`. The norm obeys
`model.discriminator_norm` here too: the paper's network needs `none`, which its recipe sets.
"""

from ganpipe.models import dcgan
from ganpipe.models.layers import NetworkSpec, pyramid


def generator(spec: NetworkSpec) -> dcgan.Generator:
    """Build the generator: DCGAN's with leaky ReLU.

    Raises:
        UserError: the resolution is out of reach, or model.first_channels too small for it.
    """
    return dcgan.Generator(spec.params.nz, *pyramid(spec, spec.params.ngf), spec.channels, slope=0.2)


def discriminator(spec: NetworkSpec) -> dcgan.Discriminator:
    """Build the discriminator: DCGAN's, without norm where model.discriminator_norm is none.

    Raises:
        UserError: the resolution is out of reach, or model.first_channels too small for it.
    """
    return dcgan.discriminator(spec)
