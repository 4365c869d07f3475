"""Features of real images, computed once for a protocol and data set; `.ganpipe/features` may be deleted."""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from filelock import FileLock

from ganpipe.common import files


def cached(root: Path | None, key: tuple[str, ...], compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the array that is cached under a key, everything that determines it, or compute and cache it.

    If several processes ask for it, one computes it and the others wait. A damaged file is computed again.
    Without `root`, the checkout in which the command runs, nothing is cached.
    """
    if root is None:
        return compute()
    folder = files.main_checkout(root) / ".ganpipe" / "features"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.npz"
    with FileLock(path.with_suffix(".lock")):
        if path.exists():
            try:
                with np.load(path, allow_pickle=False) as arrays:  # checks the zip's CRC-32
                    return arrays["features"]
            except Exception:  # whatever the damage makes of the zip's and the array's headers
                print(f"{path}: damaged, computed again", file=sys.stderr)
        array = compute()
        with files.whole(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, features=array)
        return array
