"""From images to the features that are compared, in one pass of the network, those of real images cached."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ganpipe.common import seeds
from ganpipe.common.progress import Progress
from ganpipe.common.shards import Images
from ganpipe.metrics import extractors, lite0
from ganpipe.metrics.feature_cache import cached

Pair = tuple[np.ndarray, np.ndarray]  # features N×d and details W×(1 + k) of N images, see Features
LAYOUT_IMAGES = 2048  # of a set whose layout is compared: it is 16 times as long as the features


@dataclass(frozen=True)
class RealImages:
    """Training and held-out images, uint8 N×H×W×C in [0, 255], which may be in one array; rows are int64."""

    images: Images
    train_rows: np.ndarray
    held_out: Images
    held_out_rows: np.ndarray
    digest: str  # of all of them

    def chosen(self, searched: int | None, n: int, seed: int) -> "RealImages":
        """Choose `searched` training images (None: all; at least N) and at most N held-out ones at random."""
        count = len(self.train_rows) if searched is None else max(n, searched)
        chosen = []
        for rows, most, purpose in ((self.train_rows, count, "train"), (self.held_out_rows, n, "held_out")):
            # In random order, so that the first ones are a fair sample.
            order = torch.randperm(len(rows), generator=seeds.generator(seed, f"evaluate/{purpose}"))
            chosen.append(rows[order[:most].numpy()])
        return replace(self, train_rows=chosen[0], held_out_rows=chosen[1])


@dataclass(frozen=True)
class Features:
    """Features of the images to compare, float32.

    Attributes:
        train: M×d, the training images among which copies are searched; the first N are the reference.
        fakes: sets of generated images, each N×d.
        held_out: real images held out from training, N×d or fewer rows, even none.
        details: contrast and layout (`extractors.Seen`), W×(1 + k), of the first W images of the reference,
            of each set and of the held-out images, W being at most N; None: none to compare.
    """

    train: np.ndarray
    fakes: Sequence[np.ndarray]
    held_out: np.ndarray
    details: "Features | None" = None

    @property
    def n(self) -> int:
        """N."""
        return len(self.fakes[0])

    def pairs(self) -> tuple[Pair, list[Pair], Pair]:
        """Return the reference, the sets and the held-out images."""
        details = self.details
        assert details
        sets = [*zip(self.fakes, details.fakes, strict=True)]
        return (self.train[: self.n], details.train), sets, (self.held_out, details.held_out)


def feature_key(extractor: extractors.Extractor, digest: str, device: str) -> tuple[str, ...]:
    """Return the key under which features are cached, without the images' rows, which are added to it."""
    # Other threads round differently: no number may depend on who filled the cache.
    return extractor.protocol, digest, f"{device} {torch.get_num_threads()} folded"


def extract_features(
    extractor: extractors.Extractor,
    real: RealImages,
    sets: list[list[tuple[Any, np.ndarray]]],
    device: str,
    root: Path | None,
) -> tuple[Features, list[list[Pair]]]:
    """Return the features of the real images and of the first source's sets; those of the others' sets.

    A set is a source of images and the N rows of it.
    """
    seen, size = extractors.Seen(extractor), extractors.batch_size(extractor)
    chosen = [real.train_rows, real.held_out_rows, *(rows for source in sets for _, rows in source)]
    detailed = min(LAYOUT_IMAGES, len(chosen[2]))
    # Whole batches, so that a set's features have the bytes that one pass over all of its images would give.
    first = -(-detailed // size) * size
    with Progress("evaluate", sum(map(len, chosen))) as progress:

        def extract(network: torch.nn.Module, images: Any, rows: np.ndarray) -> np.ndarray:
            return lite0.extract(network, images, size, device, progress, rows)

        def extract_both(images: Any, rows: np.ndarray, *key: str) -> Pair:
            """Return features and details. Another W leaves the cached features as they are."""
            end, folder = progress.done + len(rows), root if key else None
            head, rest = rows[:first], rows[first:]
            both = cached(folder, (*key, "details", str(head.tolist())), lambda: extract(seen, images, head))
            features = np.ascontiguousarray(both[:, : extractor.dimension])
            details = np.ascontiguousarray(both[:detailed, extractor.dimension :])
            if len(rest):
                complete = lambda: np.concatenate([features, extract(extractor, images, rest)])  # noqa: E731
                features = cached(folder, (*key, str(rows.tolist())), complete)
            progress.advance(end - progress.done)  # those that were read from the cache
            return features, details

        key = feature_key(extractor, real.digest, device)
        train, reference = extract_both(real.images, real.train_rows, *key)
        held_out = train[:0], reference[:0]
        if len(real.held_out_rows):
            held_out = extract_both(real.held_out, real.held_out_rows, *key)
        sources = [[extract_both(images, rows) for images, rows in source] for source in sets]
    details = Features(reference, [each for _, each in sources[0]], held_out[1])
    return Features(train, [each for each, _ in sources[0]], held_out[0], details), sources[1:]
