"""The device that networks run on."""

import ctypes
import os
import re
import sys
from pathlib import Path

from ganpipe.common.errors import UserError


def resolve(name: str) -> str:
    """Return a usable torch device; "auto" is the GPU if there is one, else the CPU.

    Raises UserError: torch does not know the name, or this machine does not have the device.
    """
    import torch  # here, so that the command line starts without it

    keep_freed_memory()  # here, because every command that computes resolves its device first
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name).cpu()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {name!r} cannot be used here ({reason}); use --device auto or cpu") from None
    return name


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors, unless the environment configures its allocator.

    By default it returns large blocks to the kernel, and each step waits while the kernel clears them again.
    """
    if sys.platform == "linux" and not re.search("^(MALLOC_|GLIBC_TUNABLES$)", "\n".join(os.environ), re.M):
        for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 2**28)):
            # By the numbers of malloc.h: M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD.
            ctypes.CDLL(None).mallopt(option, value)


def visible_gpus() -> list[str]:
    """List the NVIDIA GPUs that a process of this machine sees, as CUDA_VISIBLE_DEVICES names them."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in chosen.split(",") if name.strip()]
    return sorted(path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))
