"""What the evaluate stage reads from the sample and train stages: images, and generators of snapshots."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ganpipe.common.errors import UserError
from ganpipe.common.stages import stage_file
from ganpipe.models.generator import images_of, latents_of_seeds, load_generator
from ganpipe.params import Sample


@dataclass(frozen=True)
class Interval:
    """Images of one factor of sample.intervals, uint8 N×H×W×C in [0, 255]."""

    factor: float
    z: str  # its distribution in words
    images: np.ndarray


@dataclass(frozen=True)
class Snapshot:
    """Images uint8 N×H×W×C of a generator, generated when read: those of all epochs may not fit in memory."""

    G: nn.Module
    z: torch.Tensor

    def __len__(self) -> int:
        return len(self.z)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return images_of(self.G, self.z[rows])


def load_samples(root: Path, shape: tuple[int, ...], name: str = "samples.npy") -> np.ndarray:
    """Open generated images, uint8, memory-mapped; `shape` is that of one element of the array."""
    path = stage_file(root, name)
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable ({error}); run the sample stage first") from None
    if images.dtype != np.uint8 or images.shape[1:] != shape:
        found = f"found {images.dtype} {images.shape[1:]}, expected uint8 {shape} as in earlier files"
        raise UserError(f"{path}: {found}; run `dvc repro`, which makes all from the same params")
    return images


def load_intervals(root: Path, shape: tuple[int, ...]) -> list[Interval]:
    """Open the images of each factor on z; `shape` is that of samples.npy, N×H×W×C."""
    images, path = load_samples(root, shape, "intervals.npy"), stage_file(root, "intervals.json")
    try:
        described = zip(json.loads(path.read_text()), images, strict=True)
        return [Interval(float(entry["factor"]), str(entry["z"]), part) for entry, part in described]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no description of intervals.npy ({error}); run the sample stage") from None


def open_snapshots(root: Path, sample: Sample, count: int, device: str) -> dict[int, Snapshot]:
    """Open a training's generators: epoch → images of the samples' first `count` z, in rising order."""
    folder = stage_file(root, "snapshots")
    paths = {int(path.stem): path for path in folder.glob("*.safetensors")}
    if not paths:
        raise UserError(f"{folder}: no snapshots of the training; run the train stage")
    generators = {epoch: load_generator(paths[epoch]) for epoch in sorted(paths)}
    z = latents_of_seeds(next(iter(generators.values())).spec, sample.seed, count, sample.z_scale)
    return {epoch: Snapshot(generator.network.to(device), z) for epoch, generator in generators.items()}
