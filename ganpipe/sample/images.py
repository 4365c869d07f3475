"""Images of consecutive seeds, in batches, and files of more images than fit in memory."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ganpipe.common.files import whole
from ganpipe.common.progress import Progress
from ganpipe.models.generator import BATCH, images_of, latents_of_seeds
from ganpipe.models.layers import NetworkSpec

Generate = Callable[[torch.Tensor], np.ndarray]  # float32 N×inputs → uint8 N×H×W×C in [0, 255]


def generate_with(G: nn.Module, progress: Progress) -> Generate:
    """Return a function that generates images with a network and counts them as progress."""

    def generate(z: torch.Tensor) -> np.ndarray:
        images = images_of(G, z)
        progress.advance(len(images))
        return images

    return generate


def images_of_seeds(
    generate: Generate,
    spec: NetworkSpec,
    seeds: range,
    z_scale: float,
    batch_size: int = BATCH,
    number: int | None = None,
) -> Iterator[np.ndarray]:
    """Yield the images of consecutive seeds in batches, uint8 N×H×W×C in [0, 255]; `number` is a class."""
    for first in range(seeds.start, seeds.stop, batch_size):
        yield generate(latents_of_seeds(spec, first, min(batch_size, seeds.stop - first), z_scale, number))


def write_images(path: Path, shape: tuple[int, ...], batches: Iterable[np.ndarray]) -> None:
    """Write batches of uint8 images as one .npy array of this shape, one batch in memory at a time."""
    with whole(path) as temporary, open(temporary, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        file.writelines(batch.tobytes() for batch in batches)
