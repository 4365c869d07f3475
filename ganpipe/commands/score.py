"""All numbers for any images on disk, with no pipeline around them: what `ganpipe score` does."""

import functools
import hashlib
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ganpipe.common.errors import UserError
from ganpipe.common.progress import Progress
from ganpipe.evaluate import scores as comparison
from ganpipe.evaluate.scores import Metrics, Real
from ganpipe.fetch.archives import Opener, listing
from ganpipe.params import Evaluate
from ganpipe.preprocess import decode as images
from ganpipe.preprocess.crop import Rejected

# What params.yaml has (a test compares them): there may be none where this runs.
PROTOCOL = Evaluate(
    extractor="lite0",
    weights=None,
    feature_resolution=128,
    seeds=3,
    snapshots=False,
    search_images=2000,
    neighbours=5,
    kid_subsets=50,
    kid_subset_size=100,
    seed=0,
)
# What errors call a value in params.yaml → what it is here.
HERE = {
    "evaluate.neighbours: ": "",
    "lower it or compare more images (sample.count)": "use fewer --sets or more pictures",
    "evaluate.seeds": "--sets",
    "evaluate.extractor": "--extractor",
    "evaluate.weights": "--weights",
    "evaluate.feature_resolution": "--feature-resolution",
}
# Pixels a side at which DINOv2 is mostly used; 128 is no multiple of its patches.
DINOV2_SIDE = 224


@dataclass(frozen=True)
class Pictures:
    """Pictures on disk.

    Attributes:
        images: uint8 N×H×W×C in [0, 255], C 1 or 3, memory-mapped.
        digest: sha256 (hexadecimal) of their pixels, whatever they are kept in.
    """

    images: np.ndarray
    digest: str


def score(
    real: Path,
    fake: Path,
    held_out: Path | None,
    extractor: str,
    weights: str | None,
    feature_resolution: int | None,
    sets: int,
    device: str,
    as_json: bool,
) -> Metrics:
    """Print how close one set of pictures is to another, in the numbers of metrics.json.

    Args:
        real: a folder, zip, tar or .npy of the pictures that the others are to be like.
        fake: likewise, the pictures to judge.
        held_out: likewise, further real pictures, for the floors; None: there are none.
        extractor: as evaluate.extractor.
        weights: as evaluate.weights.
        feature_resolution: as evaluate.feature_resolution; None: what is usual for the extractor.
        sets: as evaluate.seeds.
        device: such as "cpu" or "cuda".
        as_json: print what is returned as JSON, and nothing else.

    Raises:
        UserError: pictures cannot be read or compared, or weights are missing.
    """
    paths = {"real": real, "fake": fake} | ({"held-out": held_out} if held_out else {})
    found = {name: opened(path) for name, path in paths.items()}
    shape = found["real"].images.shape[1:]
    for name, pictures in found.items():
        if pictures.images.shape[1:] != shape:
            raise UserError(
                f"--{name}: {paths[name]} holds pictures of {_words(pictures.images)}, --real: {real} of "
                f"{_words(found['real'].images)}; resizing or greying decides the numbers: do it first, to "
                "both in one way"
            )
    beyond = found.get("held-out", Pictures(found["real"].images[:0], ""))
    params = PROTOCOL.model_copy(
        update={
            "extractor": extractor,
            "weights": weights,
            "feature_resolution": feature_resolution
            or (DINOV2_SIDE if extractor == "dinov2_vits14" else PROTOCOL.feature_resolution),
            "seeds": sets,
        }
    )
    rows, beyond_rows = (np.arange(len(each.images)) for each in (found["real"], beyond))
    known = Real(found["real"].images, rows, beyond.images, beyond_rows, found["real"].digest)
    try:
        compared = comparison.compare(known, found["fake"].images, params, device)
    except UserError as error:
        words = functools.reduce(lambda text, each: text.replace(*each), HERE.items(), str(error))
        raise UserError(words) from None
    if as_json:
        print(json.dumps(compared.metrics, indent=2))
    else:
        print(comparison.summary(compared.metrics, compared.name, sets))
        if not held_out:
            print("No floor and no measure of copies without --held-out, real pictures kept from training")
    return compared.metrics


def opened(path: Path) -> Pictures:
    """Read pictures of one size; sets of grey ones have one channel.

    Args:
        path: a folder with its subfolders, a zip or a tar of picture files, or a .npy of uint8 N×H×W×C or
            N×H×W. Files without a picture's suffix are left out, and said to be.

    Raises:
        UserError: it cannot be read, a picture is damaged, they differ in size, or there is none.
    """
    if not path.exists():
        raise UserError(f"{path}: no such folder or file")
    return _array(path) if path.suffix == ".npy" else _decoded(path)


def _array(path: Path) -> Pictures:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: no .npy that can be read ({error})") from None
    if array.ndim == 3:
        array = array[..., None]
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] not in (1, 3) or not array.size:
        raise UserError(
            f"{path}: expected images uint8 N×H×W×C in [0, 255], C 1 or 3; found {array.dtype} "
            f"{'×'.join(map(str, array.shape))}"
        )
    return _digested(array)


def _decoded(path: Path) -> Pictures:
    """Decode every picture once, into a nameless file, so that memory does not grow with them."""
    try:
        with listing(path) as listed:
            names = dict(sorted((n, o) for n, o in listed if Path(n).suffix.lower() in _suffixes()))
            if len(names) < len(listed):
                left_out = len(listed) - len(names)
                print(f"{path}: {left_out:,} files without a picture's suffix are left out", file=sys.stderr)
            if not names:
                raise UserError(f"{path}: holds no pictures")
            return _decode(path, names)
    except UserError as error:
        raise UserError(str(error).removeprefix("fetch.path: ")) from None


def _suffixes() -> set[str]:
    Image.init()
    return {suffix for suffix, kind in Image.EXTENSION.items() if kind in images.FORMATS}


def _decode(path: Path, names: dict[str, Opener]) -> Pictures:
    sizes: list[tuple[int, int]] = []
    modes: set[str] = set()
    # Grey as three equal channels, until it is known that all are grey.
    with Progress(f"read {path.name}", len(names)) as progress, tempfile.TemporaryFile() as file:
        for name, opener in names.items():
            with opener() as stream:
                data = stream.read()
            try:
                picture = images.decoded(data)
            except Rejected as reason:
                raise UserError(f"{path}: {name}: {reason}; mend it or take it out") from None
            modes.add(picture.mode)
            sizes.append(picture.size)
            if sizes[-1] != sizes[0]:
                raise UserError(
                    f"{path}: {name} has {picture.width}×{picture.height} pixels, those before it "
                    f"{sizes[0][0]}×{sizes[0][1]}; resizing decides the numbers, so bring all to one first"
                )
            file.write(picture.convert("RGB").tobytes())
            progress.advance()
        file.flush()
        array = np.memmap(file, np.uint8, "r", shape=(len(names), sizes[0][1], sizes[0][0], 3))
    return _digested(array if "RGB" in modes else array[..., :1])


def _digested(array: np.ndarray) -> Pictures:
    digest = hashlib.sha256(repr(array.shape[1:]).encode())
    for image in array:
        digest.update(image.tobytes())
    return Pictures(array, digest.hexdigest())


def _words(array: np.ndarray) -> str:
    return f"{array.shape[2]}×{array.shape[1]} px in {'colour' if array.shape[3] == 3 else 'grey'}"
