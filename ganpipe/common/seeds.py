"""Random numbers that depend only on (seed, purpose, step), so that no generator's state is ever saved."""

import hashlib

import torch


def derived_seed(seed: int, purpose: str, step: int = 0) -> int:
    """Return a 64-bit seed for one purpose at one step; different purposes are independent."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def generator(seed: int, purpose: str, step: int = 0) -> torch.Generator:
    """Return a CPU generator for one purpose, such as "z" or "shuffle", at one step, epoch or index."""
    return torch.Generator().manual_seed(derived_seed(seed, purpose, step))
