"""Random numbers that depend on (seed, purpose, step) alone, so that no generator's state is ever saved."""

import hashlib

import torch


def derived_seed(seed: int, purpose: str, step: int = 0) -> int:
    """Return a seed of 64 bits for one purpose at one step."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def generator(seed: int, purpose: str, step: int = 0) -> torch.Generator:
    """Return a CPU generator for one purpose at one step.

    Args:
        seed: an experiment's seed, or an image's.
        purpose: what the numbers are for, such as "z" or "shuffle"; different purposes are independent.
        step: the step, epoch or index at which they are drawn.
    """
    return torch.Generator().manual_seed(derived_seed(seed, purpose, step))
