"""The losses, against their formulas written with logarithms."""

import math

import pytest
import torch

from ganpipe.train import losses


@pytest.mark.parametrize("label", [1.0, 0.9, 0.1, 0.0])
def test_cross_entropy_equals_its_formula(label: float) -> None:
    """A failure means that the discriminator learns from other targets than the labels in params.yaml."""
    logits = [-3.0, -0.5, 0.0, 2.0]
    D = [1 / (1 + math.exp(-x)) for x in logits]
    expected = -sum(label * math.log(p) + (1 - label) * math.log(1 - p) for p in D) / len(D)
    for loss in (losses.d_loss_real, losses.d_loss_fake):
        assert loss(torch.tensor(logits), label).item() == pytest.approx(expected, rel=1e-6)


def test_g_loss_is_the_non_saturating_one() -> None:
    """The saturating form has almost no gradient where D is sure; the generator would not start to learn."""
    logits = torch.tensor([-12.0], requires_grad=True)
    losses.g_loss(logits).backward()
    assert logits.grad is not None and logits.grad.item() == pytest.approx(-1, abs=1e-4)


def test_g_label_is_the_target_of_g() -> None:
    """With the real label as G's target, as the usual code has it, G would still aim at 1."""
    logits = torch.tensor([0.3, -1.2, 2.0])
    assert torch.equal(losses.g_loss(logits, 0.9), losses.d_loss_real(logits, 0.9))
    assert torch.equal(losses.g_loss(logits, 1.0), losses.g_loss(logits))


def test_extreme_logits_stay_finite() -> None:
    """log(0) would end a training whose discriminator is merely very sure."""
    logits = torch.tensor([-1e4, 1e4])
    assert torch.isfinite(losses.d_loss_real(logits, 1.0)) and torch.isfinite(losses.d_loss_fake(logits, 0.0))
