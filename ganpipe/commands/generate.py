"""Generate any number of images with a trained generator, one seed each, into a folder, a zip or an array."""

import math
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from ganpipe.commands.trained import find_generator
from ganpipe.common.errors import UserError
from ganpipe.common.files import whole
from ganpipe.common.progress import Progress
from ganpipe.models.generator import check_request, png_bytes
from ganpipe.sample.images import generate_with, images_of_seeds, write_images

REFUSED_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".npz", ".tar", ".gz")  # no names for a folder


@dataclass(frozen=True)
class GenerateOptions:
    """Which images to generate, and how."""

    n: int = 64
    seed: int = 0  # of the first image; image i has seed + i and on a CPU depends on nothing else
    z_scale: float = 1.0
    batch: int = 64  # images generated before they are written, which bounds the memory
    device: str = "cpu"


def generate(source: str | None, out: Path, options: GenerateOptions, root: Path = Path()) -> None:
    """Generate images with the generator that `find_generator` loads, and write them.

    `out` is a .zip of PNG files, an .npy of uint8 n×H×W×C in [0, 255], or else a new folder of PNG files.

    Raises:
        UserError: an option is out of its range, the generator is not found, or `out` exists or is too small.
    """
    check_request(options.n, options.seed, options.z_scale)
    _check_destination(out)
    generator = find_generator(source, root)
    spec, G = generator.spec, generator.network.to(options.device)
    shape = (options.n, spec.resolution, spec.resolution, spec.channels)
    _check_space(out, math.prod(shape))
    seeds = range(options.seed, options.seed + options.n)
    with Progress("generate", options.n) as progress:
        generate = generate_with(G, progress)
        batches = images_of_seeds(generate, spec.params, seeds, options.z_scale, options.batch)
        if out.suffix.lower() == ".npy":
            write_images(out, shape, batches)
        else:
            _write_pngs(out, seeds, batches)
    print(f"{options.n:,} images of {spec.resolution} px, seeds {seeds[0]} to {seeds[-1]}: {out}")


def _check_destination(out: Path) -> None:
    suffix = out.suffix.lower()
    if suffix in REFUSED_SUFFIXES:
        raise UserError(f"--out: {out} is neither a .zip nor an .npy; name one of them, or a new folder")
    if suffix in (".zip", ".npy") and out.is_dir():
        raise UserError(f"--out: {out} is a folder; name a file")
    if suffix not in (".zip", ".npy") and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out: {out} already exists; name a new folder, or a .zip or .npy file")


def _check_space(out: Path, size: int) -> None:
    """Refuse an array of `size` bytes that does not fit on the disk; the size of PNG files is unknown."""
    folder = next(parent for parent in out.resolve().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if out.suffix.lower() == ".npy" and size > free:
        needed, available = (f"{number / 1e9:,.1f} GB" for number in (size, free))
        raise UserError(f"--out: {out} needs {needed}, but {folder} has {available} free")


def _write_pngs(out: Path, seeds: range, batches: Iterator[np.ndarray]) -> None:
    """Write images as PNG files named by their seeds: a zip is complete or absent, a folder grows."""
    width = len(str(seeds[-1]))
    images = zip(seeds, chain.from_iterable(batches), strict=True)
    pngs = ((f"{seed:0{width}}.png", png_bytes(image)) for seed, image in images)
    if out.suffix.lower() == ".zip":
        with whole(out) as path, zipfile.ZipFile(path, "w") as archive:
            for name, content in pngs:
                archive.writestr(zipfile.ZipInfo(name), content)  # no time, so that the bytes are the same
    else:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in pngs:
            (out / name).write_bytes(content)
