"""Images of a trained generator, one seed each, to a folder, zip or array; any number in little memory."""

import math
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ganpipe.commands import trained
from ganpipe.common import files
from ganpipe.common.errors import UserError
from ganpipe.common.progress import Progress
from ganpipe.models import generator as snapshot

MOST_BATCH = 4096

Add = Callable[[int, np.ndarray], None]  # takes the first seed of some images uint8 N×H×W×C, and the images


def generate(
    source: str | None,
    out: Path,
    root: Path = Path(),
    n: int = 64,
    seed: int = 0,
    z_scale: float = 1.0,
    batch: int = 64,
    device: str = "cpu",
) -> None:
    """Write n images of a generator; image i has the seed `seed` + i and is the same in any batch, on a CPU.

    Args:
        source: as in `trained.find`.
        out: a .zip of PNG files, an .npy of uint8 n×H×W×C in [0, 255], or else a new folder of PNG files.
        root: the checkout.
        n: how many.
        seed: the first image's.
        z_scale: what z is multiplied by.
        batch: images made before they are written; bounds the memory.
        device: where the network runs.

    Raises:
        UserError: a value that makes no sense, no generator, or a place that is taken or too small.
    """
    snapshot.check_request(n, seed, z_scale)
    if not 1 <= batch <= MOST_BATCH:
        raise UserError(f"--batch: found {batch}, but it must be between 1 and {MOST_BATCH}")
    _check_place(out)
    generator = trained.find(source, root)
    spec = generator.spec
    shape = (n, spec.resolution, spec.resolution, spec.channels)
    _check_room(out, shape)
    G = generator.network.to(device)
    with _sink(out, shape, seed) as add, Progress("generate", n) as progress:
        for first in range(0, n, batch):
            count = min(batch, n - first)
            z = snapshot.z_of_seeds(spec.params, seed + first, count, z_scale)
            add(seed + first, snapshot.images_of(G, z))
            progress.advance(count)
    print(f"{n:,} images of {shape[1]} px, seeds {seed} to {seed + n - 1}: {out}")


def _check_place(out: Path) -> None:
    if out.suffix.lower() in (".zip", ".npy"):
        if out.is_dir():
            raise UserError(f"--out: {out} is a folder; name a file")
        return
    if out.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp", ".npz", ".tar", ".gz"):
        raise UserError(f"--out: {out} is neither a .zip nor an .npy; another name is a folder of PNG files")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out: {out} is there already; name a new folder, or a .zip or .npy file")


def _check_room(out: Path, shape: tuple[int, ...]) -> None:
    """Refuse an array that the disk has no room for; the size of PNG files is not known before."""
    place = next(folder for folder in out.resolve().parents if folder.exists())
    needed, free = math.prod(shape), shutil.disk_usage(place).free
    if out.suffix.lower() == ".npy" and needed > free:
        raise UserError(f"--out: {out} needs {needed / 1e9:,.1f} GB and {place} has {free / 1e9:,.1f} free")


@contextmanager
def _sink(out: Path, shape: tuple[int, ...], seed: int) -> Iterator[Add]:
    """Give a function that writes images; a file is there whole or not at all, a folder grows."""
    width = len(str(seed + shape[0] - 1))

    def named(first: int, images: np.ndarray) -> Iterator[tuple[str, bytes]]:
        for i, image in enumerate(images):
            yield f"{first + i:0{width}}.png", snapshot.png_bytes(image)

    if out.suffix.lower() == ".npy":
        with files.whole(out) as path, open(path, "wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)  # the file grows behind it

            def append(first: int, images: np.ndarray) -> None:
                file.write(images.tobytes())

            yield append
    elif out.suffix.lower() == ".zip":
        with files.whole(out) as path, zipfile.ZipFile(path, "w") as archive:

            def pack(first: int, images: np.ndarray) -> None:
                for name, content in named(first, images):  # without times: the same bytes each time
                    archive.writestr(zipfile.ZipInfo(name), content)

            yield pack
    else:
        out.mkdir(parents=True, exist_ok=True)

        def put(first: int, images: np.ndarray) -> None:
            for name, content in named(first, images):
                (out / name).write_bytes(content)

        yield put
