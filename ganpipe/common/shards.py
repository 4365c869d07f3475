"""Images that outgrow one file, read as one array."""

import mmap
import os
from collections.abc import Sequence
from typing import cast

import numpy as np


class Shards:
    """Images in several memory-mapped files, read as if they were one array uint8 N×H×W×C."""

    dtype = np.dtype(np.uint8)

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self.parts = [np.asarray(part) for part in parts]  # a row of a np.memmap takes twice as long
        self.ends = np.cumsum([len(part) for part in parts])
        self.shape = (int(self.ends[-1]), *parts[0].shape[1:])
        self.nbytes = sum(part.nbytes for part in parts)
        if self.nbytes > mmap.PAGESIZE * os.sysconf("SC_PHYS_PAGES"):
            for part in parts:  # Else the kernel would read far more than an image, for a cache that is full.
                cast(mmap.mmap, part.base).madvise(mmap.MADV_RANDOM)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice | np.ndarray) -> np.ndarray:
        """Return copies: of one image, H×W×C, or of those of a slice or of rows int64 B, B×H×W×C."""
        rows = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else np.asarray(rows)
        images = np.empty((rows.size, *self.shape[1:]), np.uint8)
        return self.take(rows.reshape(-1), 0, images).reshape(*rows.shape, *self.shape[1:])

    def take(self, rows: np.ndarray, axis: int, out: np.ndarray, mode: str = "raise") -> np.ndarray:
        """Copy the images of rows, int64 B, to `out` and return it, as NumPy's `take` does with axis 0."""
        places = np.searchsorted(self.ends, rows, side="right")
        for i, (place, row) in enumerate(zip(places.tolist(), rows.tolist(), strict=True)):
            out[i] = self.parts[place][row - self.ends[place]]  # counted from the file's end
        return out


Images = np.ndarray | Shards
