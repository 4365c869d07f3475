"""Random numbers that depend only on (seed, purpose, step)."""

import torch

from ganpipe.common import seeds
from ganpipe.models.generator import draw_z
from ganpipe.params import Params


def test_numbers_depend_on_seed_purpose_and_step_alone() -> None:
    """Earlier draws would matter, so that a resumed run would differ from an uninterrupted one."""
    first = torch.rand(3, generator=seeds.generator(1, "z", 5))
    torch.rand(100)
    assert torch.equal(first, torch.rand(3, generator=seeds.generator(1, "z", 5)))
    for other in ((2, "z", 5), (1, "flip", 5), (1, "z", 6)):
        assert not torch.equal(first, torch.rand(3, generator=seeds.generator(*other)))


def test_golden_seed() -> None:
    """A changed derivation would silently change every experiment."""
    assert seeds.derived_seed(0, "init") == 2783952298198786259


def test_z_distributions(default_params: Params) -> None:
    """The generator would be sampled where it was not trained."""

    def draw(distribution: str, limit: float | None) -> torch.Tensor:
        model = default_params.model.model_copy(update={"z_distribution": distribution, "z_limit": limit})
        return draw_z(model, 200, seeds.generator(0, "z"))

    normal = draw("normal", None)
    assert normal.shape == (200, 100)
    assert abs(normal.mean().item()) < 0.03 and abs(normal.std().item() - 1) < 0.03 and normal.abs().max() > 3
    cut = draw("normal", 2.0)
    # The standard deviation of N(0, 1) cut off at ±2.
    assert cut.abs().max() <= 2 and abs(cut.std().item() - 0.8796) < 0.02
    uniform = draw("uniform", 0.5)
    assert uniform.abs().max() <= 0.5 and abs(uniform.std().item() - 0.5 * 3**-0.5) < 0.01
