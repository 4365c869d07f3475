"""Generate any number of images with a trained generator, one seed each, into a folder, a zip or an array."""

import math
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from ganpipe.commands.picks import file_names, read_picks
from ganpipe.commands.trained import weights_file
from ganpipe.commands.upscale import enlarger
from ganpipe.common.errors import UserError
from ganpipe.common.files import whole
from ganpipe.common.progress import Progress
from ganpipe.models.generator import BATCH, check_request, class_number, load_generator, png_bytes
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
    picks: Path | None = None  # picks.json of `ganpipe explore`, in place of n, seed, z_scale and class_name
    class_name: str | None = None  # None: each seed draws its class as often as training had it
    upscale: int = 1  # how many times as large the images are written: 1, 2 or 4


def generate(source: str | None, out: Path, options: GenerateOptions, root: Path = Path()) -> None:
    """Generate images with the generator that `find_generator` loads, and write them.

    `out` is a .zip of PNG files, an .npy of uint8 n×H×W×C in [0, 255], or else a new folder of PNG files.

    Raises:
        UserError: an option is out of its range, the generator is not found, the picks are not its own, or
            `out` exists or is too small.
    """
    check_request(options.n, options.seed, options.z_scale)
    given, usual = ((o.n, o.seed, o.z_scale, o.class_name) for o in (options, GenerateOptions()))
    if options.picks and given != usual:
        raise UserError("--picks: the file says which images; leave out -n, --seed, --z-scale and --class")
    _check_destination(out)
    with weights_file(source, root) as path:
        generator = load_generator(path)
        picks = read_picks(options.picks, path, generator.spec.inputs) if options.picks else None
    name = options.class_name
    number = None if name is None else class_number(generator.spec, name)
    spec, G = generator.spec, generator.network.to(options.device)
    n = len(picks) if picks else options.n
    shape = (n, side := spec.resolution * options.upscale, side, spec.channels)
    _check_space(out, math.prod(shape))
    seeds = range(options.seed, options.seed + n)
    # Small batches, because a network that enlarges takes a second an image.
    batch = min(options.batch, BATCH) if options.upscale > 1 else options.batch
    note = ""
    with Progress("generate", n) as progress:
        generate = generate_with(G, progress)
        batches = images_of_seeds(generate, spec, seeds, options.z_scale, batch, number)
        if picks:
            batches = map(generate, torch.stack([pick.z for pick in picks]).split(batch))
        if options.upscale > 1:
            enlarge, method = enlarger(options.upscale)
            batches = map(enlarge, batches)
            note = f"enlarged from {spec.resolution} px with {method}"
        if out.suffix.lower() == ".npy":
            write_images(out, shape, batches)
        else:
            width = len(str(seeds[-1]))
            names = file_names(picks) if picks else (f"{seed:0{width}}.png" for seed in seeds)
            _write_pngs(out, names, batches, note)
    origin = f"of {options.picks}" if picks else f"seeds {seeds[0]} to {seeds[-1]}"
    origin += f", class {name}" if name is not None else ""
    print(f"{n:,} images of {side} px{note and f', {note}'}, {origin}: {out}")


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


def _write_pngs(out: Path, names: Iterable[str], batches: Iterator[np.ndarray], note: str) -> None:
    """Write images as PNG files with a note, if any: a zip is complete or absent, a folder grows."""
    images = zip(names, chain.from_iterable(batches), strict=True)
    pngs = ((name, png_bytes(image, note)) for name, image in images)
    if out.suffix.lower() == ".zip":
        with whole(out) as path, zipfile.ZipFile(path, "w") as archive:
            for name, content in pngs:
                archive.writestr(zipfile.ZipInfo(name), content)  # no time, so that the bytes are the same
    else:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in pngs:
            (out / name).write_bytes(content)
