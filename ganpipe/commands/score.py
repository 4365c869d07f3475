"""`ganpipe score`: the numbers of metrics.json for any images on disk, without the pipeline."""

import hashlib
import json
import sys
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
from PIL import Image

from ganpipe.common.errors import ParamError, UserError
from ganpipe.common.files import temporary_space
from ganpipe.common.progress import Progress
from ganpipe.evaluate.extraction import RealImages
from ganpipe.evaluate.scores import Metrics, score_images, summary
from ganpipe.fetch.archives import Opener, listing
from ganpipe.params import Evaluate
from ganpipe.preprocess.crop import Rejected
from ganpipe.preprocess.decode import FORMATS, decoded

# The section `evaluate` of params.yaml, repeated because there may be no such file where this runs; a test
# compares them.
PROTOCOL = Evaluate(
    extractor="lite2",
    second_extractor=None,
    weights=None,
    feature_resolution=128,
    seeds=3,
    snapshots=False,
    search_images=None,
    rank_by="layout_mmd",
    neighbours=5,
    kid_subsets=50,
    kid_subset_size=100,
    seed=0,
)
DINOV2_SIDE = 224  # pixels a side, DINOv2's usual input; 128 is no multiple of its patches
# The values of the section that errors may be about → the options that set them here, if named otherwise.
OPTIONS = {"seeds": "--sets", "neighbours": "--sets"}


def protocol(
    extractor: str, weights: str | None, feature_resolution: int | None, sets: int, search_images: int | None
) -> Evaluate:
    """Return PROTOCOL with other values; a feature_resolution of None is the extractor's usual one."""
    usual = DINOV2_SIDE if extractor == "dinov2_vits14" else PROTOCOL.feature_resolution
    changes = {"extractor": extractor, "weights": weights, "seeds": sets, "search_images": search_images}
    return PROTOCOL.model_copy(update={**changes, "feature_resolution": feature_resolution or usual})


def score(
    real: Path, fake: Path, held_out: Path | None, params: Evaluate, device: str, as_json: bool
) -> Metrics:
    """Print how close one set of images is to another, in the numbers of metrics.json, or only these as JSON.

    Each path is a folder, zip, tar or .npy of images: the reference, the images to score and, for the floors,
    further real images.

    Raises UserError: images cannot be read or compared, or weights are missing.
    """
    paths = {"--real": real, "--fake": fake} | ({"--held-out": held_out} if held_out else {})
    images = {}
    for option, path in paths.items():
        try:
            images[option] = read_images(path)
        except UserError as error:
            raise UserError(f"{option}: {error}") from None
        if images[option].shape[1:] != images["--real"].shape[1:]:
            shapes = (images[name].shape for name in (option, "--real"))
            found, expected = (f"{w}×{h} px in {'colour' if c == 3 else 'grey'}" for _, h, w, c in shapes)
            remedy = "convert both in the same way before: resizing and greyscale change the numbers"
            raise UserError(f"{option}: {path}: found {found}, but those of --real have {expected}; {remedy}")
    reference = images["--real"]
    others = images.get("--held-out", reference[:0])
    rows, other_rows = np.arange(len(reference)), np.arange(len(others))
    digest = hashlib.sha256(repr(reference.shape[1:]).encode())  # of pixels and shape, whatever the file
    for image in reference:
        digest.update(image.tobytes())
    known = RealImages(reference, rows, others, other_rows, digest.hexdigest())
    try:
        scores = score_images(known, images["--fake"], params, device)
    except ParamError as error:
        option = OPTIONS.get(error.param, f"--{error.param.replace('_', '-')}")
        raise UserError(f"{option}: {error.reason}") from None
    if as_json:
        print(json.dumps(scores.metrics, indent=2))
    else:
        print(summary(scores))
        if not held_out:
            print("No floors and no check for copies: they need --held-out, real images not trained on")
    return scores.metrics


def read_images(path: Path) -> np.ndarray:
    """Read images of one size, uint8 N×H×W×C in [0, 255], memory-mapped; C is 1 if all of them are grey.

    They are read from a folder with its subfolders, a zip or tar of image files (files without an image's
    suffix are left out, which is reported), or a .npy of uint8 N×H×W×C or N×H×W.

    Raises UserError: it cannot be read, an image is damaged, they differ in size, or there is none.
    """
    if not path.exists():
        raise UserError(f"{path}: no such folder or file")
    if path.suffix == ".npy":
        return _read_array(path)
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}
    with listing(path) as files:
        openers = dict(sorted((name, o) for name, o in files if Path(name).suffix.lower() in suffixes))
        if skipped := len(files) - len(openers):
            print(f"{path}: left out {skipped:,} files without an image's suffix", file=sys.stderr)
        if not openers:
            raise UserError(f"{path}: found no images")
        return _decode(path, openers)


def _read_array(path: Path) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: not a readable .npy file ({error})") from None
    if array.ndim == 3:
        array = array[..., None]
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] not in (1, 3) or not array.size:
        found = f"{array.dtype} {'×'.join(map(str, array.shape))}"
        raise UserError(f"{path}: found {found}, expected images uint8 N×H×W×C in [0, 255], C 1 or 3")
    return array


def _decode(path: Path, openers: dict[str, Opener]) -> np.ndarray:
    """Decode every image once, into an unnamed file, so that memory does not grow with their number."""
    grey, width, height = True, 0, 0
    with temporary_space(), Progress(f"read {path.name}", len(openers)) as progress, TemporaryFile() as file:
        for name, opener in openers.items():
            with opener() as stream:
                data = stream.read()
            try:
                image = decoded(data)
            except Rejected as reason:
                raise UserError(f"{path}: {name}: {reason}; repair or remove it") from None
            width, height = (width, height) if width else image.size
            if image.size != (width, height):
                raise UserError(
                    f"{path}: {name} has {image.width}×{image.height} pixels, but earlier images have "
                    f"{width}×{height}; resize all to one size before: resizing changes the numbers"
                )
            grey &= image.mode == "L"
            # Three equal channels for grey, as long as it is unknown whether all images are grey.
            file.write(image.convert("RGB").tobytes())
            progress.advance()
        file.flush()
        array = np.memmap(file, np.uint8, "r", shape=(len(openers), height, width, 3))
    return array[..., :1] if grey else array
