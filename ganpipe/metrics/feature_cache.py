"""Features of real images, computed once for each protocol and data set, cached in `.ganpipe/features/`.

A file contains a sha256 in hexadecimal and then the .npy that it belongs to. It may be deleted at any time.
"""

import hashlib
import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from filelock import FileLock

from ganpipe.common import files

DIGEST_LENGTH = 64


def cached(root: Path | None, key: tuple[str, ...], compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the array that is cached under a key, everything that determines it, or compute and cache it.

    If several processes ask for it, one computes it and the others wait. A damaged file is computed again.
    Without `root`, the checkout in which the command runs, nothing is cached.
    """
    if root is None:
        return compute()
    folder = files.main_checkout(root) / ".ganpipe" / "features"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.features"
    with FileLock(path.with_suffix(".lock")):
        if path.exists():
            content = path.read_bytes()
            digest, npy = content[:DIGEST_LENGTH], content[DIGEST_LENGTH:]
            if hashlib.sha256(npy).hexdigest().encode() == digest:
                return np.load(io.BytesIO(npy), allow_pickle=False)
            print(f"{path}: damaged, computed again", file=sys.stderr)
        array = compute()
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        npy = buffer.getvalue()
        with files.whole(path) as temporary:
            temporary.write_bytes(hashlib.sha256(npy).hexdigest().encode() + npy)
        return array
