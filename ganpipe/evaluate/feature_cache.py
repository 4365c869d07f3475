"""Features of real images, computed once for each protocol and data set, kept in `.ganpipe/features/`.

A file is a sha256 in hexadecimal and then the .npy that it belongs to. It may be removed at any time.
"""

import hashlib
import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from filelock import FileLock

from ganpipe.common import files

DIGEST = 64


def cached(root: Path, key: tuple[str, ...], compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Return what was computed before under the key, or compute it and keep it.

    Of several processes one computes and the others wait. A damaged file is computed again.

    Args:
        root: the checkout that the command runs in.
        key: all that decides the result.
        compute: gives an array of numbers.
    """
    folder = files.main_checkout(root) / ".ganpipe" / "features"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.features"
    with FileLock(path.with_suffix(".lock")):
        if path.exists():
            content = path.read_bytes()
            if hashlib.sha256(content[DIGEST:]).hexdigest().encode() == content[:DIGEST]:
                found: np.ndarray = np.load(io.BytesIO(content[DIGEST:]), allow_pickle=False)
                return found
            print(f"{path}: damaged, computed again", file=sys.stderr)
        array = compute()
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        with files.whole(path) as temporary:
            content = buffer.getvalue()
            temporary.write_bytes(hashlib.sha256(content).hexdigest().encode() + content)
        return array
