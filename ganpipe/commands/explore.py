"""What the page of `ganpipe explore` shows: images along directions of z, picks, nearest training images."""

import json
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ganpipe import params
from ganpipe.commands.picks import Pick, file_names, picks_json
from ganpipe.commands.trained import weights_file
from ganpipe.common import dataset, files
from ganpipe.common.errors import UserError
from ganpipe.common.progress import Progress
from ganpipe.common.stages import stage_folder
from ganpipe.evaluate.extraction import RealImages, feature_key
from ganpipe.metrics import copies, extractors, lite0
from ganpipe.metrics.feature_cache import cached
from ganpipe.models.generator import images_of, latents_of_seeds, load_generator, png_bytes, z_of_seeds
from ganpipe.models.pixels import to_uint8
from ganpipe.sample.latent_paths import between
from ganpipe.tracking.model import WEIGHTS

DIRECTIONS = 6  # of each kind, with a slider each
HELD_OUT = 500  # most held-out images that show how near new images come to the training images
# Images of a film strip: between two picks, and in all (the picks themselves are always in it).
FRAMES, MAX_FRAMES = 8, 64


@dataclass(frozen=True)
class Weights:
    """A generator of one moment of the training."""

    epoch: int | None  # None: the trained generator
    G: nn.Module  # float32 N×nz → float32 N×C×H×W in [-1, 1]
    sha256: str  # of its file


@dataclass(frozen=True)
class References:
    """What picks are compared with; features are float32."""

    extractor: extractors.Extractor
    rows: np.ndarray  # int64 M, the training images searched
    train: np.ndarray  # M×d, their features
    held_out: copies.Neighbours | None  # of the held-out images; None: they are too few to judge by


def directions_of(G: nn.Module, nz: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the principal components of G's first layer, and single elements of z: unit rows, float32 nz×nz.

    Both are sorted by how much the first layer's output varies along them, the most first. Härkönen et al.
    2020, "GANSpace", carry the principal components of a layer back to z. As the first layer is linear and
    the elements of z are independent and of equal variance, no sample is needed: the components are the left
    singular vectors of the layer's matrix, nz×outputs.
    """
    first = next(layer for layer in G.modules() if isinstance(layer, nn.Linear | nn.ConvTranspose2d))
    weight = first.weight if isinstance(first, nn.ConvTranspose2d) else first.weight.T
    matrix = weight[:nz].detach().flatten(1).double().cpu()  # without the rows of classes
    components = torch.linalg.svd(matrix).U.T
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    order = matrix.norm(dim=1).argsort(descending=True, stable=True)
    return (components * largest.sign()).float(), torch.eye(len(matrix))[order]


class Explorer:
    """A trained generator, its snapshots, and the training images that its picks are compared with."""

    def __init__(self, source: str | None, root: Path, device: str) -> None:
        """Load what `find_generator` finds, the snapshots beside it and, if it was trained on them, images.

        Raises UserError: as `find_generator`, or a snapshot is damaged.
        """
        self.root, self.device = root, device
        with weights_file(source, root, ("model.json", "snapshots")) as path:
            trained = load_generator(path)
            self.weights = [Weights(None, trained.network.to(device), files.sha256(path))]
            snapshots = path.parent.glob("snapshots/*.safetensors") if path.name == WEIGHTS else ()
            epochs = {int(file.stem): file for file in snapshots if file.stem.isdecimal()}
            for epoch, file in sorted(epochs.items(), reverse=True):
                snapshot, sha256 = load_generator(file), files.sha256(file)
                if snapshot.spec == trained.spec and sha256 != self.weights[-1].sha256:
                    self.weights.insert(0, Weights(epoch, snapshot.network.to(device), sha256))
            digest = next((_data_digest(f) for f in path.parents[:2] if (f / "model.json").is_file()), None)
        self.spec, self.data = trained.spec, None
        self.no_data = "There are no training images in stages/preprocess to compare with."
        with suppress(UserError):
            data = dataset.load(stage_folder(root, "preprocess"))
            self.data = data if digest == data.digest else None
            known = "other images than those" if digest else "unknown images, perhaps not those"
            self.no_data = f"Not compared: the generator was trained on {known} in stages/preprocess."
        components, elements = (
            part[:DIRECTIONS] for part in directions_of(trained.network, trained.spec.params.nz)
        )
        sd = z_of_seeds(trained.spec.params, 0, 256, 1.0).std()
        self.directions = sd * torch.cat([components, elements])  # float32 K×nz, one standard deviation long
        self.names = [f"component {i}" for i, _ in enumerate(components, 1)]
        self.names += [f"element {int(element)} of z" for element in elements.argmax(1)]

    def pick(self, seed: int, truncation: float, offsets: Sequence[float], class_name: str = "") -> Pick:
        """Return the z of a seed times `truncation`, moved along each direction, within the limits of z.

        With classes the named one follows, or without a name the seed's own, as in `ganpipe generate`.
        """
        number = [*self.spec.classes].index(class_name) if class_name else None
        z = latents_of_seeds(self.spec, seed, 1, truncation, number)[0]
        if any(offsets):
            moved, classes = z.tensor_split([self.spec.params.nz])
            moved = moved + torch.tensor(offsets, dtype=torch.float32) @ self.directions
            limit = self.spec.params.z_limit
            z = torch.cat([moved if limit is None else moved.clamp(-limit, limit), classes])
        return Pick(seed, z)

    def preview(self, pick: Pick, weights: Weights) -> np.ndarray:
        """Generate one image fast, uint8 H×W×C: without the batch of `images`, it may differ by rounding."""
        with torch.inference_mode():
            return to_uint8(weights.G(pick.z[None].to(self.device)))[0]

    def images(self, picks: Sequence[Pick], weights: Weights) -> np.ndarray:
        """Generate images uint8 N×H×W×C in [0, 255], the same bytes as `ganpipe generate`."""
        return images_of(weights.G, torch.stack([pick.z for pick in picks]))

    def film(self, picks: Sequence[Pick], weights: Weights) -> np.ndarray:
        """Generate the images between picks in their order, uint8 N×H×W×C in [0, 255]; needs two picks."""
        frames = max(2, min(FRAMES, MAX_FRAMES // (len(picks) - 1)))
        t, model = torch.arange(frames) / frames, self.spec.params
        paths = [between(a.z, b.z, t, model.nz, model.z_limit) for a, b in pairwise(picks)]
        return images_of(weights.G, torch.cat([*paths, picks[-1].z[None]]))

    @cached_property
    def references(self) -> References:
        """The features that `evaluate` compares with, from its cache or computed now, which can take minutes.

        Raises UserError: params.yaml or the extractor's weights are missing.
        """
        assert self.data is not None
        data, values = self.data, params.load(self.root / "params.yaml")
        extractor = extractors.build(
            values.evaluate.extractor, values.evaluate.feature_resolution, values.evaluate.weights
        )
        n = min(values.sample.count // values.evaluate.seeds, len(data.train_rows))
        real = RealImages(data.images, data.train_rows, data.images, data.held_out_rows, data.digest)
        # As `evaluate` chooses them, so that its features are found in the cache.
        rows = real.chosen(values.evaluate.search_images, n, values.evaluate.seed).train_rows
        held_out = real.chosen(None, HELD_OUT, values.evaluate.seed).held_out_rows
        held_out = held_out if len(held_out) >= copies.LEAST_HELD_OUT else held_out[:0]
        size = extractors.batch_size(extractor)
        with Progress("training images", len(rows) + len(held_out)) as progress:

            def features(part: np.ndarray) -> np.ndarray:
                key = (*feature_key(extractor, data.digest, self.device), str(part.tolist()))
                extract = partial(lite0.extract, extractor, data.images, size, self.device, progress, part)
                end, array = progress.done + len(part), cached(self.root, key, extract)
                progress.advance(end - progress.done)  # those from the cache
                return array

            train = features(rows)
            near = copies.neighbours(features(held_out), train) if len(held_out) else None
        return References(extractor, rows, train, near)

    def nearest(self, image: np.ndarray) -> tuple[np.ndarray, str]:
        """Return the three training images nearest to one of `images`, uint8 1×H×W×C, and what that says.

        Raises UserError: as `references`.
        """
        assert self.data is not None
        known = self.references
        features = lite0.extract(known.extractor, image, 1, self.device)
        near = copies.neighbours(features.repeat(2, axis=0), known.train)  # it wants two images or more
        relative, text = float(near.relative_distance[0]), ""
        if known.held_out is None:
            text = f"Copy or not: unknown, because fewer than {copies.LEAST_HELD_OUT} images were held out."
        else:
            expected = known.held_out.relative_distance
            share, nearer = copies.near_copies(near, known.held_out)[0], float((expected <= relative).mean())
            text = "<b>Near copy.</b>" if share else "<b>No near copy.</b>"
            text += f" {nearer:.0%} of {len(expected):,} held-out images are as near to a training image."
        if np.isfinite(relative):
            near_itself = "that image’s own distance to its nearest; 0: a copy"
            text += f" Its distance is {relative:.2f} times {near_itself}."
        if len(known.rows) < (count := len(self.data.train_rows)):
            text += f" Only {len(known.rows):,} of {count:,} training images were searched."
        return self.data.images[known.rows[near.indices[0]]], text


def write_zip(path: Path, picks: Sequence[Pick], images: np.ndarray, weights: Weights) -> None:
    """Write the images of picks, uint8 N×H×W×C, as PNG files, and the picks.json that repeats them."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, image in zip(file_names(picks), images, strict=True):
            archive.writestr(zipfile.ZipInfo(name), png_bytes(image))
        archive.writestr(zipfile.ZipInfo("picks.json"), picks_json(picks, weights.sha256, weights.epoch))


def _data_digest(folder: Path) -> str | None:
    """Return the digest of the images that a train stage's folder was trained on, None: unknown."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads((folder / "model.json").read_text(encoding="utf-8"))["data_digest"])
    return None
