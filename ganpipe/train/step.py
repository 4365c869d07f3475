"""One update of each player: gradients of its loss on a batch, then its optimizer's step.

A batch may pass through the networks in parts, whose gradients add up, and be shared by several processes;
batch norm sees the parts.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.utils import get_total_norm

from ganpipe.train import losses
from ganpipe.train.ranks import Ranks


def update_d(
    G: nn.Module,
    D: nn.Module,
    optimizer: torch.optim.Optimizer,
    real: torch.Tensor,
    z: torch.Tensor,
    fake: torch.Tensor | None,
    labels: tuple[float, float],
    part: int,
    place: Ranks,
    total: int,
) -> torch.Tensor:
    """Update D on real images and on generated ones, in two passes as in the DCGAN paper's code.

    Args:
        G: the generator, in train mode.
        D: the discriminator, in train mode.
        optimizer: of D's parameters.
        real: float32 N×C×H×W in [-1, 1].
        z: float32 N×nz, used where `fake` is None.
        fake: the images of z, float32 N×C×H×W in [-1, 1]; None: they are generated here, part by part.
        labels: D's targets for real and for generated images, each in [0, 1].
        part: images that pass through the networks at once.
        place: of this process among those that share the batch.
        total: images in the whole batch, N where one process has all of it.

    Returns:
        float32 4, without gradient: D's loss, its mean probability of real for real and for generated images,
        and the norm of its gradients over all parameters.
    """
    real_label, fake_label = labels
    numbers = torch.zeros(3, device=real.device)
    optimizer.zero_grad()
    for i in range(0, len(real), part):
        real_part, share = real[i : i + part], min(part, len(real) - i) / total
        real_logits = D(real_part)
        loss_real = losses.d_loss_real(real_logits, real_label)
        (share * loss_real).backward()
        fake_logits = D(_generated(G, z[i : i + part]) if fake is None else fake[i : i + part].detach())
        loss_fake = losses.d_loss_fake(fake_logits, fake_label)
        (share * loss_fake).backward()
        with torch.no_grad():
            probabilities = real_logits.sigmoid().mean(), fake_logits.sigmoid().mean()
            numbers += share * torch.stack([loss_real + loss_fake, *probabilities])
    numbers = place.add_up(D.parameters(), numbers)
    norm = _gradient_norm(D)
    optimizer.step()
    return torch.cat([numbers, norm[None]])


def update_g(
    G: nn.Module,
    D: nn.Module,
    optimizer: torch.optim.Optimizer,
    z: torch.Tensor,
    fake: torch.Tensor | None,
    part: int,
    place: Ranks,
    total: int,
) -> torch.Tensor:
    """Update G through D, whose weights need no gradients meanwhile.

    Args:
        G: the generator, in train mode.
        D: the discriminator, in train mode.
        optimizer: of G's parameters.
        z: float32 N×nz, used where `fake` is None.
        fake: the images of z with their graph; None: they are generated here, part by part.
        part: images that pass through the networks at once.
        place: of this process among those that share the batch.
        total: images in the whole batch, N where one process has all of it.

    Returns:
        float32 2, without gradient: G's loss, and the norm of its gradients over all parameters.
    """
    loss = torch.zeros(1, device=z.device)
    D.requires_grad_(False)
    optimizer.zero_grad()
    for i in range(0, len(z), part):
        share = min(part, len(z) - i) / total
        part_loss = losses.g_loss(D(G(z[i : i + part]) if fake is None else fake[i : i + part]))
        (share * part_loss).backward()
        loss += share * part_loss.detach()
    loss = place.add_up(G.parameters(), loss)
    norm = _gradient_norm(G)
    optimizer.step()
    D.requires_grad_(True)
    return torch.cat([loss, norm[None]])


def _gradient_norm(network: nn.Module) -> torch.Tensor:
    """Return the norm of all gradients as one vector, a float32 scalar; not finite where one is not."""
    return get_total_norm(p.grad for p in network.parameters() if p.grad is not None)


@torch.no_grad()
def _generated(G: nn.Module, z: torch.Tensor) -> torch.Tensor:
    """Generate images for D alone: G's batch norm statistics count each z once, in G's own update."""
    with statistics_kept(G):
        images: torch.Tensor = G(z)
    return images


@contextmanager
def statistics_kept(network: nn.Module) -> Iterator[None]:
    """Leave batch norm's running statistics as they are while a network in train mode runs."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        # Untracked instead, it would keep fewer tensors for the backward pass, which checkpointing refuses.
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
