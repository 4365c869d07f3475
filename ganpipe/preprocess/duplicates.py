"""Copies in a set of training images: same bytes, or the same picture saved, scaled or lit another way."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# Pairs whose difference hashes differ in at most MOST_BITS of 64 bits are compared pixel by pixel; those that
# correlate at least this much are copies. docs/data.md says what these values find.
MOST_BITS, LEAST_CORRELATION = 4, 0.98
# Two hashes that differ in MOST_BITS agree in one of MOST_BITS + 1 parts. Of the hashes that agree in a part,
# each is compared with this many neighbours: among thousands of similar pictures all would take hours.
NEIGHBOURS = 32
# Pairs whose pixels are compared at a time, and the pixels a side that are compared.
PAIRS, SIDE = 256, 128


def originals(sha256: list[str], hashes: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Return the row of the first image that each is a copy of, int64 N; its own row if it is no copy.

    `sha256` are those of their files, `hashes` their difference hashes (uint64), `images` uint8 N×H×W×C.
    """
    codes = pd.factorize(np.array(sha256, dtype=object))[0]
    original = np.unique(codes, return_index=True)[1][codes]
    for a, b in _candidates(hashes, np.flatnonzero(original == np.arange(len(original)))):
        unknown = original[a] != original[b]
        a, b = a[unknown], b[unknown]
        starts = range(0, len(a), PAIRS)
        correlations = [_correlations(images, a[i : i + PAIRS], b[i : i + PAIRS]) for i in starts]
        alike = np.concatenate([np.zeros(0, np.float32), *correlations]) >= LEAST_CORRELATION
        if alike.any():
            links = coo_array((alike[alike], (original[a[alike]], original[b[alike]])), (len(original),) * 2)
            groups = connected_components(links, directed=False)[1]
            original = np.unique(groups, return_index=True)[1][groups][original]
    return original


def _candidates(hashes: np.ndarray, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield pairs of rows whose hashes differ in few bits, as two arrays each time."""
    for shift in range(0, 64, -(-64 // (MOST_BITS + 1))):
        # Sorted by their bits rotated to this part: the longer two hashes agree, the nearer they are.
        turned = (hashes[rows] << np.uint64(shift)) | (hashes[rows] >> np.uint64((64 - shift) % 64))
        order = np.argsort(turned, kind="stable")
        parts, ordered = turned[order] >> np.uint64(64 - 64 // (MOST_BITS + 1)), rows[order]
        for step in range(1, min(NEIGHBOURS + 1, len(rows))):
            a, b = ordered[:-step], ordered[step:]
            near = (parts[:-step] == parts[step:]) & (np.bitwise_count(hashes[a] ^ hashes[b]) <= MOST_BITS)
            yield a[near], b[near]


def _correlations(images: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the correlation of each pair of images, float32; 1 where they hardly differ."""
    step = max(1, images.shape[1] // SIDE)
    left, right = (images[rows, ::step, ::step].reshape(len(rows), -1).astype(np.float32) for rows in (a, b))
    same = np.abs(left - right).max(axis=1, initial=0) <= 2
    left -= left.mean(axis=1, keepdims=True)
    right -= right.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return np.where(same, 1, (left * right).sum(axis=1) / np.maximum(norms, 1e-6))
