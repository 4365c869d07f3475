"""Random numbers by (seed, purpose, step)."""

import torch

from ganpipe import rng


def test_numbers_depend_on_seed_purpose_and_step_alone() -> None:
    """If earlier draws mattered, a resumed run would not be the same run."""
    first = torch.rand(3, generator=rng.generator(1, "z", 5))
    torch.rand(100)
    assert torch.equal(first, torch.rand(3, generator=rng.generator(1, "z", 5)))
    for other in ((2, "z", 5), (1, "flip", 5), (1, "z", 6)):
        assert not torch.equal(first, torch.rand(3, generator=rng.generator(*other)))


def test_golden_seed() -> None:
    """A changed derivation changes every experiment silently."""
    assert rng.derived_seed(0, "init") == 2783952298198786259


def test_z_distributions() -> None:
    """A wrong distribution would sample where the generator was not trained."""
    normal = rng.draw_z("normal", (20_000,), rng.generator(0, "z"))
    uniform = rng.draw_z("uniform", (20_000,), rng.generator(0, "z"))
    assert abs(normal.mean().item()) < 0.03 and abs(normal.std().item() - 1) < 0.03
    assert uniform.min() >= -1 and uniform.max() <= 1 and abs(uniform.std().item() - 3**-0.5) < 0.01
