"""The sample stage: a generator in, images out, and pictures of what its training and z do to them."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ganpipe.common import files
from ganpipe.common import sheets as pictures
from ganpipe.common.errors import UserError
from ganpipe.common.progress import Progress
from ganpipe.models import generator as snapshot
from ganpipe.params import Model, Sample
from ganpipe.sample import latent

FOLDER = Path("stages/sample")
TRAINED = Path("stages/train")
# Images in a row of traversal.png.
STEPS = 9
# Rows of traversal.png where no elements of z are named, and the z around which their influence is measured.
ELEMENTS, POINTS = 8, 4
# How far an element goes in traversal.png where z is normal: 95 % of the training's lie within.
NORMAL_REACH = 2.0
# z that the interpolation passes, and frames of the animation from one to the next, each shown so long.
STOPS, FRAMES, FRAME_MS = 8, 16, 60
# Every second frame is also in interpolation.png, whose rows end with the next row's first image.
EVERY = 2
# The animation's least side in pixels, and how many of its images would make a row.
ANIMATION_SIDE, ANIMATION_COLUMNS = 128, 4
# Images in a row of epochs.png, as far as the training's grids hold so many.
EPOCH_COLUMNS = 8

ImagesOf = Callable[[torch.Tensor], np.ndarray]


def sample(params: Sample, root: Path = Path(), device: str = "cpu") -> None:
    """Generate `params.count` images, one seed each, and make the papers' pictures of the generator.

    Writes samples.npy (uint8 N×H×W×C), grid.png, intervals.npy (uint8 K×N×H×W×C, K = 0 without intervals),
    intervals.json, traversal.png, interpolation.png, interpolation.webp and epochs.png.

    Raises:
        UserError: there is no trained generator, its files are damaged, or z has no such element.
    """
    generator = snapshot.load_generator(root / TRAINED / "generator.safetensors")
    spec, G = generator.spec, generator.network.to(device)
    model, resolution, channels = spec.params, spec.resolution, spec.channels
    named = params.traversal_elements
    if named is not None and (not named or max(named) >= model.nz):
        raise UserError(
            f"sample.traversal_elements: found {named or 'an empty list'}, but the elements of z are 0 to "
            f"{model.nz - 1} (model.nz is {model.nz}); name some of them, or null for the most-changing ones"
        )
    epochs = _epochs(root / TRAINED / "grids", resolution, channels)

    measured = 2 * POINTS * model.nz if named is None else 0
    rows = min(ELEMENTS, model.nz) if named is None else len(named)
    total = params.count * (1 + len(params.intervals)) + measured + rows * STEPS + STOPS * FRAMES
    folder, shape = root / FOLDER, (params.count, resolution, resolution, channels)
    with Progress("sample", total) as progress:

        def images_of(z: torch.Tensor) -> np.ndarray:
            images = snapshot.images_of(G, z)
            progress.advance(len(images))
            return images

        _write_array(folder / "samples.npy", shape, _images(images_of, model, params, [params.z_scale]))
        several = _images(images_of, model, params, params.intervals)
        _write_array(folder / "intervals.npy", (len(params.intervals), *shape), several)
        z = snapshot.z_of_seeds(model, params.seed, STOPS, params.z_scale)
        traversal = _traversal(images_of, model, z[:POINTS], named)
        interpolation, frames = _interpolation(images_of, model, params, z)

    columns = pictures.columns_for(resolution)
    first = np.load(folder / "samples.npy", mmap_mode="r")[: columns * columns]
    for name, picture in (
        ("grid.png", pictures.sheet(first, columns)),
        ("traversal.png", traversal),
        ("interpolation.png", interpolation),
        ("epochs.png", epochs),
    ):
        with files.whole(folder / name) as path:
            picture.save(path, "PNG")
    with files.whole(folder / "interpolation.webp") as path:
        # Every frame whole (kmax): the encoder drops small differences, and the way would stutter.
        options: dict[str, Any] = {"duration": FRAME_MS, "loop": 0, "quality": 80, "kmax": 1}
        frames[0].save(path, "WEBP", save_all=True, append_images=frames[1:], **options)
    intervals = [{"factor": factor, "z": _distribution(model, factor)} for factor in params.intervals]
    with files.whole(folder / "intervals.json") as path:
        path.write_text(json.dumps(intervals, indent=2) + "\n")


def _images(
    images_of: ImagesOf, model: Model, params: Sample, scales: Sequence[float]
) -> Iterator[np.ndarray]:
    """Yield the images of all seeds, some at a time, for each factor on the same z in turn."""
    for scale in scales:
        for first in range(0, params.count, snapshot.BATCH):
            count = min(snapshot.BATCH, params.count - first)
            yield images_of(snapshot.z_of_seeds(model, params.seed + first, count, scale))


def _write_array(path: Path, shape: tuple[int, ...], parts: Iterable[np.ndarray]) -> None:
    """Write uint8 images as one .npy of a shape, without ever holding more than a part of them."""
    with files.whole(path) as temporary, open(temporary, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for part in parts:
            file.write(part.tobytes())


def _distribution(model: Model, factor: float) -> str:
    """Say how z is distributed after a factor: an interval where z is uniform."""
    limit = None if model.z_limit is None else f"{factor * model.z_limit:g}"
    if model.z_distribution == "uniform":
        return f"[-{limit}, {limit}]"
    return f"normal, sd {factor:g}" + (f", within [-{limit}, {limit}]" if limit else "")


def _traversal(images_of: ImagesOf, model: Model, z: torch.Tensor, named: list[int] | None) -> Image.Image:
    """Show in each row what one element of the first z does (Stiff et al. 2018, their last figure).

    Args:
        images_of: makes images of z.
        model: says how far an element goes.
        z: float32 B×nz; all of them decide which elements change the images most, where none are named.
        named: elements, a row each.
    """
    reach = model.z_limit or NORMAL_REACH
    order = ""
    if named is None:
        change = latent.influence(images_of, z, (-reach, reach))
        named, order = latent.most_changing(change, ELEMENTS), ": those that change the images most"
    values = torch.linspace(-reach, reach, STEPS)
    rows = [pictures.cells(images_of(latent.traversal(z[0], e, values)), STEPS) for e in named]
    return pictures.labelled(
        np.concatenate(rows),
        STEPS,
        [f"z[{element}]" for element in named],
        f"One element of z from {-reach:g} to {reach:g} along each row{order}",
    )


def _interpolation(
    images_of: ImagesOf, model: Model, params: Sample, z: torch.Tensor
) -> tuple[Image.Image, list[Image.Image]]:
    """Go on spheres from each z to the next and back to the first: rows of images, and frames of them."""
    limit = None if model.z_limit is None else params.z_scale * model.z_limit
    t = torch.arange(FRAMES) / FRAMES
    frames, small = [], []
    columns = FRAMES // EVERY + 1
    for start, end in zip(z, z.roll(-1, 0), strict=True):
        images = images_of(latent.slerp(start, end, t, limit))
        small.append(pictures.cells(images[::EVERY], columns))
        large = pictures.cells(images, ANIMATION_COLUMNS, ANIMATION_SIDE)
        frames += [pictures.sheet(image[None], 1) for image in large]
    rows = [np.concatenate([row, small[(i + 1) % len(z)][:1]]) for i, row in enumerate(small)]
    names = [str(params.seed + i) for i in range(len(z))]
    picture = pictures.labelled(
        np.concatenate(rows),
        columns,
        [f"seed {start} to {end}" for start, end in zip(names, names[1:] + names[:1], strict=True)],
        "From the z of one seed to that of the next along each row, on a sphere",
    )
    return picture, frames


def _epochs(folder: Path, resolution: int, channels: int) -> Image.Image:
    """Show the first images of the training's grids, a row for each, the same z in each column."""
    epochs, rows = sorted(int(path.stem) for path in folder.glob("*.png")), []
    try:
        for epoch in epochs:
            grid = np.asarray(Image.open(folder / f"{epoch}.png"))
            images = grid.reshape(-1, resolution, grid.shape[1] // resolution, resolution, channels)
            images = images.swapaxes(1, 2).reshape(-1, resolution, resolution, channels)
            rows.append(images[:EPOCH_COLUMNS])
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}/{epoch}.png: no readable grid ({error}); run the train stage again"
        ) from None
    if not rows:
        raise UserError(f"{folder}: no grids of the training; run the train stage")
    columns = len(rows[0])
    return pictures.labelled(
        pictures.cells(np.concatenate(rows), columns),
        columns,
        [f"epoch {epoch}" for epoch in epochs],
        "The same z in each column after these epochs of training",
    )
