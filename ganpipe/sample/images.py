"""Images of consecutive seeds, in batches, and files of more images than fit in memory."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from ganpipe.common.files import whole
from ganpipe.models.generator import BATCH, z_of_seeds
from ganpipe.params import Model

Generate = Callable[[torch.Tensor], np.ndarray]  # float32 N×nz → uint8 N×H×W×C in [0, 255]


def images_of_seeds(
    generate: Generate, model: Model, seeds: range, z_scale: float, batch_size: int = BATCH
) -> Iterator[np.ndarray]:
    """Yield the images of consecutive seeds in batches, uint8 N×H×W×C in [0, 255].

    Args:
        generate: computes images from latent vectors.
        model: the distribution of z.
        seeds: one for each image.
        z_scale: factor on z.
        batch_size: images per batch; the last batch may have fewer.
    """
    for first in range(seeds.start, seeds.stop, batch_size):
        yield generate(z_of_seeds(model, first, min(batch_size, seeds.stop - first), z_scale))


def write_images(path: Path, shape: tuple[int, ...], batches: Iterable[np.ndarray]) -> None:
    """Write batches of uint8 images as one .npy array of this shape, one batch in memory at a time."""
    with whole(path) as temporary, open(temporary, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for batch in batches:
            file.write(batch.tobytes())
