"""The sample stage: images of a trained generator, and pictures of what training and z do to them."""

import json
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ganpipe.common.errors import UserError
from ganpipe.common.files import whole
from ganpipe.common.progress import Progress
from ganpipe.common.sheets import cells, columns_for, labelled, sheet
from ganpipe.common.stages import stage_file
from ganpipe.models.generator import class_rows, latents_of_seeds, load_generator, with_classes, z_of_seeds
from ganpipe.models.layers import NetworkSpec
from ganpipe.params import Model, Sample
from ganpipe.sample.images import Generate, generate_with, images_of_seeds, write_images
from ganpipe.sample.latent_paths import between, influence, most_influential, traversal

# traversal.png: images per row, rows if params name no elements, and the z at which influence is measured.
STEPS, ELEMENTS, POINTS = 9, 8, 4
NORMAL_REACH = 2.0  # how far normal z without a limit is varied; 95 % of them lie within
# Interpolation: number of z, frames of the animation from one z to the next, and milliseconds per frame.
STOPS, FRAMES, FRAME_MS = 8, 16, 60
EVERY = 2  # interpolation.png has every second frame
# The animation's least side in pixels; images that would fill a row, which limits the side.
ANIMATION_SIDE, ANIMATION_COLUMNS = 128, 4
EPOCH_COLUMNS = 8  # images per row of epochs.png, fewer if the training's grids hold fewer


def sample(params: Sample, root: Path = Path(), device: str = "cpu") -> None:
    """Generate `params.count` images, one seed each, and the papers' pictures of the generator.

    Writes samples.npy (uint8 N×H×W×C in [0, 255]), intervals.npy (uint8 K×N×H×W×C, K = 0 without intervals),
    intervals.json, grid.png, traversal.png, interpolation.png, interpolation.webp and epochs.png.

    Raises:
        UserError: the generator or the training's grids are missing or damaged, or z lacks a named element.
    """
    generator = load_generator(stage_file(root, "generator.safetensors"))
    spec, model, G = generator.spec, generator.spec.params, generator.network.to(device)
    elements = params.traversal_elements
    if elements is not None and (not elements or max(elements) >= model.nz):
        found = f"found {elements or 'an empty list'}, but z has the elements 0 to {model.nz - 1} (model.nz)"
        raise UserError(f"sample.traversal_elements: {found}; name some, or null for the most influential")
    # Before the images, so that a missing grid is reported at once.
    pictures = {"epochs.png": _epochs(stage_file(root, "grids"), spec)}

    shape = (params.count, spec.resolution, spec.resolution, spec.channels)
    seeds = range(params.seed, params.seed + params.count)
    columns = columns_for(spec.resolution)
    rows = class_rows(spec, z_of_seeds(model, params.seed, columns, params.z_scale))
    with Progress("sample", _image_count(params, model.nz) + len(rows)) as progress:
        generate = generate_with(G, progress)
        images = partial(images_of_seeds, generate, spec, seeds)
        write_images(stage_file(root, "samples.npy"), shape, images(params.z_scale))
        intervals = chain.from_iterable(map(images, params.intervals))
        write_images(stage_file(root, "intervals.npy"), (len(params.intervals), *shape), intervals)
        points = latents_of_seeds(spec, params.seed, POINTS, params.z_scale)
        pictures["traversal.png"] = _traversal(generate, model, points, elements)
        pictures["interpolation.png"], frames = _interpolation(generate, spec, params)
        if len(rows):
            pictures["grid.png"] = _class_grid(generate(rows), columns, list(spec.classes))

    if not len(rows):
        first = np.load(stage_file(root, "samples.npy"), mmap_mode="r")[: columns * columns]
        pictures["grid.png"] = sheet(first, columns)
    for name, picture in pictures.items():
        with whole(stage_file(root, name)) as path:
            picture.save(path, "PNG")
    with whole(stage_file(root, "interpolation.webp")) as path:
        # kmax 1 stores each frame whole: the encoder drops small differences, and the motion would stutter.
        options: dict[str, Any] = {"duration": FRAME_MS, "loop": 0, "quality": 80, "kmax": 1}
        frames[0].save(path, "WEBP", save_all=True, append_images=frames[1:], **options)
    with whole(stage_file(root, "intervals.json")) as path:
        described = [{"factor": factor, "z": _distribution(model, factor)} for factor in params.intervals]
        path.write_text(json.dumps(described, indent=2) + "\n")


def _image_count(params: Sample, nz: int) -> int:
    """Return how many images the stage generates in all."""
    elements = params.traversal_elements
    traversals = 2 * POINTS * nz + STEPS * min(ELEMENTS, nz) if elements is None else STEPS * len(elements)
    return params.count * (1 + len(params.intervals)) + traversals + STOPS * FRAMES


def _distribution(model: Model, factor: float) -> str:
    """Describe the distribution of z times a factor; an interval if z is uniform."""
    interval = None if model.z_limit is None else f"[-{factor * model.z_limit:g}, {factor * model.z_limit:g}]"
    if model.z_distribution == "uniform":
        return f"{interval}"
    return f"normal, sd {factor:g}" + (f", within {interval}" if interval else "")


def _class_grid(images: np.ndarray, columns: int, names: list[str]) -> Image.Image:
    shown = names[: len(images) // columns]
    caption = f"A class in each row{f' (the first {len(shown)} of {len(names)})' * (len(names) > len(shown))}"
    return labelled(cells(images, columns), columns, shown, f"{caption}, the same z in each column")


def _traversal(generate: Generate, model: Model, z: torch.Tensor, elements: list[int] | None) -> Image.Image:
    """Vary elements of z[0], by default the most influential, as in the last figure of Stiff et al. 2018."""
    reach = model.z_limit or NORMAL_REACH
    caption = f"Each row varies one element of z from {-reach:g} to {reach:g}"
    if elements is None:
        elements = most_influential(influence(generate, z, (-reach, reach), model.nz), ELEMENTS)
        caption += "; the most influential elements first"
    values = torch.linspace(-reach, reach, STEPS)
    rows = [cells(generate(traversal(z[0], element, values)), STEPS) for element in elements]
    return labelled(np.concatenate(rows), STEPS, [f"z[{element}]" for element in elements], caption)


def _interpolation(
    generate: Generate, spec: NetworkSpec, params: Sample
) -> tuple[Image.Image, list[Image.Image]]:
    """Interpolate from each z to the next and from the last to the first; a row each, and the frames.

    Where there are classes, those of z are the classes in their order.
    """
    model, names = spec.params, list(spec.classes)
    limit = None if model.z_limit is None else params.z_scale * model.z_limit
    z = z_of_seeds(model, params.seed, STOPS, params.z_scale)
    if names:
        z = with_classes(spec, z, torch.arange(STOPS) % len(names))
    t, columns = torch.arange(FRAMES) / FRAMES, FRAMES // EVERY + 1
    frames, paths = [], []
    for start, end in zip(z, z.roll(-1, 0), strict=True):
        images = generate(between(start, end, t, model.nz, limit))
        paths.append(cells(images[::EVERY], columns))
        frames += [sheet(image[None], 1) for image in cells(images, ANIMATION_COLUMNS, ANIMATION_SIDE)]
    # Each row ends with the image that the next row begins with.
    rows = [np.concatenate([path, paths[(i + 1) % len(paths)][:1]]) for i, path in enumerate(paths)]
    ends = [(i, (i + 1) % STOPS) for i in range(STOPS)]
    labels = [f"seed {params.seed + start} to {params.seed + end}" for start, end in ends]
    caption = "Each row interpolates between the z of two seeds along a great circle"
    if names:
        labels = [f"{names[a % len(names)][:16]}\nto {names[b % len(names)][:16]}" for a, b in ends]
        caption = "Each row interpolates between two classes, and the z of two seeds"
    return labelled(np.concatenate(rows), columns, labels, caption), frames


def _epochs(folder: Path, spec: NetworkSpec) -> Image.Image:
    """Draw the first images of each of the training's grids as a row; all grids show the same z."""
    epochs, rows = sorted(int(path.stem) for path in folder.glob("*.png")), []
    if not epochs:
        raise UserError(f"{folder}: found no grids from training; run the train stage")
    side, channels = spec.resolution, spec.channels
    for epoch in epochs:
        try:
            grid = np.asarray(Image.open(folder / f"{epoch}.png"))
            images = grid.reshape(-1, side, grid.shape[1] // side, side, channels).swapaxes(1, 2)
            images = images.swapaxes(0, 1) if spec.classes else images  # the first image of each class
            rows.append(images.reshape(-1, side, side, channels)[:EPOCH_COLUMNS])
        except (OSError, ValueError) as error:
            problem = f"not a readable grid of {side} px images ({error}); run the train stage again"
            raise UserError(f"{folder}/{epoch}.png: {problem}") from None
    columns = len(rows[0])
    images, labels = cells(np.concatenate(rows), columns), [f"epoch {epoch}" for epoch in epochs]
    return labelled(images, columns, labels, "Each column shows the same z, each row one epoch of training")
