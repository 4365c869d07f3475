"""Random numbers that depend on (seed, purpose, step) alone, so that no generator's state is ever saved."""

import hashlib

import torch

from ganpipe.params import Model


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


def draw_z(params: Model, count: int, source: torch.Generator) -> torch.Tensor:
    """Draw `count` latent vectors, float32 count×nz on the CPU, from the distribution in `params`."""
    shape, limit = (count, params.nz), params.z_limit
    if params.z_distribution == "uniform":
        assert limit is not None
        return (torch.rand(shape, generator=source) * 2 - 1) * limit
    z = torch.randn(shape, generator=source)
    while limit is not None and (beyond := z.abs() > limit).any():
        z = torch.where(beyond, torch.randn(shape, generator=source), z)
    return z
