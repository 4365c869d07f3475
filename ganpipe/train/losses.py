"""The players' losses as functions of logits (Goodfellow et al. 2014, in the non-saturating form)."""

import torch
from torch.nn.functional import binary_cross_entropy_with_logits


def cross_entropy(logits: torch.Tensor, target: float) -> torch.Tensor:
    """Return −[t log D + (1 − t) log(1 − D)], D = sigmoid(logits), averaged over logits N, as a scalar."""
    return binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def d_loss_real(real_logits: torch.Tensor, real_label: float) -> torch.Tensor:
    """Return D's loss on real images; a real_label below 1 is label smoothing."""
    return cross_entropy(real_logits, real_label)


def d_loss_fake(fake_logits: torch.Tensor, fake_label: float) -> torch.Tensor:
    """Return D's loss on generated images; a fake_label above 0 is label smoothing."""
    return cross_entropy(fake_logits, fake_label)


def g_loss(fake_logits: torch.Tensor, g_label: float = 1.0) -> torch.Tensor:
    """Return G's loss, −log D(G(z)) for the target 1, whatever D's labels are."""
    return cross_entropy(fake_logits, g_label)
