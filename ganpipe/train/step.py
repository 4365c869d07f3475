"""One update of each player: the gradients of its loss on a batch, then a step of its optimizer."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn.utils import get_total_norm

from ganpipe.common.errors import UserError
from ganpipe.train.augment import Augment, Use
from ganpipe.train.devices.compute import keep_statistics
from ganpipe.train.devices.ranks import Ranks
from ganpipe.train.drift import Drift
from ganpipe.train.losses import d_loss_fake, d_loss_real, g_loss
from ganpipe.train.plan import Plan
from ganpipe.train.players import Players


@dataclass(frozen=True)
class StepSettings:
    """The players' targets in [0, 1], and how a batch is split over ranks, and each part into micro-batches.

    The gradients of micro-batches add up; batch norm computes its statistics on each of them.
    """

    real_label: float
    fake_label: float
    batch_size: int  # images in the global batch
    micro_batch_size: int | None = None  # images that pass at once; None: this rank's whole part
    ranks: Ranks = Ranks()
    g_label: float = 1.0
    drift: Drift | None = None  # added to G's loss
    augment: Augment | None = None  # of all images that D sees
    mixed: bool = False  # D's update sees real and generated images in one batch
    classes: int = 0  # the last elements of a latent vector, which D is told too

    def micro_batches(self, count: int) -> Iterator[tuple[slice, float]]:
        """Yield each micro-batch of this rank's `count` images, and its weight in the global batch's mean."""
        size = self.micro_batch_size or count
        for start in range(0, count, size):
            yield slice(start, start + size), min(size, count - start) / self.batch_size

    def seen(self, images: torch.Tensor, use: Use, part: slice) -> torch.Tensor:
        """Return what D sees of the images `part` of this rank's batch."""
        return self.augment(images, use, part) if self.augment else images

    def told(self, z: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return what D is told beside the images: nothing, or the classes in z, float32 N×K of 0 and 1."""
        return (z[:, -self.classes :].sign(),) if self.classes else ()

    def draw(self, seed: int, step: int) -> None:
        """Draw the random numbers of a step's drifting loss and augmentation."""
        for drawn in (self.drift, self.augment):
            if drawn:
                drawn.draw(seed, step)

    def draw_extra(self, seed: int, step: int) -> None:
        """Draw the random numbers of the extra update's augmentation; the drift keeps the step's images."""
        if self.augment:
            self.augment.draw(seed, step, "extra/augment")

    def check(self, sync_batch_norm: bool) -> None:
        """Raise UserError for more ranks than images, and for ranks that would wait in a batch norm."""
        B, count, size = self.batch_size, self.ranks.count, self.micro_batch_size or self.batch_size
        parts = {len(range(B)[Ranks(rank, count).part(B)]) for rank in range(count)}
        if 0 in parts:
            raise UserError(f"train.batch_size: found {B} for {count} ranks; use fewer ranks or more images")
        if sync_batch_norm and len({math.ceil(part / size) for part in parts}) > 1:
            found = f"{B} images over {count} ranks in micro-batches of {size}"
            reason = "give some ranks more of them than others, which train.sync_batch_norm forbids"
            raise UserError(f"train.micro_batch_size: {found} {reason}; change one of the four")


def settings_of(plan: Plan, ranks: Ranks, device: torch.device) -> StepSettings:
    """Return the settings of a training's steps on a device; UserError: ranks cannot split the batches."""
    params, B = plan.train, plan.batch_size
    labels, size = (params.real_label, params.fake_label), params.micro_batch_size
    settings = StepSettings(*labels, B, size, ranks, params.g_label)
    settings.check(params.sync_batch_norm)  # before the drift computes the features of its bank
    drift = Drift(plan, device) if params.drift_weight else None
    augment = Augment(params.augment, B, ranks.part(B), device) if params.augment else None
    mixed = params.d_batches == "mixed"
    return replace(settings, drift=drift, augment=augment, mixed=mixed, classes=len(plan.classes))


def generate(G: nn.Module, z: torch.Tensor, settings: StepSettings) -> torch.Tensor | None:
    """Generate images float32 N×C×H×W in [-1, 1] from z, float32 N×inputs, for both updates of a step.

    With micro-batches, return None: both updates generate, as the whole batch's graph does not fit in memory.
    """
    return G(z) if len(z) <= (settings.micro_batch_size or len(z)) else None


def update_d(
    players: Players, real: torch.Tensor, z: torch.Tensor, fake: torch.Tensor | None, settings: StepSettings
) -> torch.Tensor:
    """Update D on real and on generated images, in two passes as in the DCGAN paper's code, or mixed in one.

    Args:
        players: G and D in train mode.
        real: float32 N×C×H×W in [-1, 1], this rank's part of the batch.
        z: float32 N×inputs, with the classes of the real images, if any.
        fake: the images of z with their graph; None: generate them in micro-batches.
        settings: the labels, and how the batch is split.

    Returns:
        float32 4, without gradient: D's loss, its mean probability of "real" for real and for generated
        images, and the norm of all its gradients.
    """
    G, D = players.G, players.D
    numbers = torch.zeros(3, device=real.device)
    players.D_optimizer.zero_grad()
    for part, weight in settings.micro_batches(len(real)):
        if fake is None:
            with torch.no_grad(), keep_statistics(G):  # they count each z once, in G's own update
                fake_part = G(z[part])
        else:
            fake_part = fake[part].detach()
        seen_real = settings.seen(real[part], "real", part)
        seen_fake, told = settings.seen(fake_part, "fake", part), settings.told(z[part])
        if settings.mixed:
            both = torch.cat([seen_real, seen_fake])
            real_logits, fake_logits = D(both, *(classes.repeat(2, 1) for classes in told)).chunk(2)
            loss_real = d_loss_real(real_logits, settings.real_label)
            loss_fake = d_loss_fake(fake_logits, settings.fake_label)
            (weight * (loss_real + loss_fake)).backward()
        else:
            real_logits = D(seen_real, *told)
            loss_real = d_loss_real(real_logits, settings.real_label)
            (weight * loss_real).backward()
            fake_logits = D(seen_fake, *told)
            loss_fake = d_loss_fake(fake_logits, settings.fake_label)
            (weight * loss_fake).backward()
        with torch.no_grad():
            probabilities = real_logits.sigmoid().mean(), fake_logits.sigmoid().mean()
            numbers += weight * torch.stack([loss_real + loss_fake, *probabilities])
    numbers = settings.ranks.sum_gradients(D.parameters(), numbers)
    norm = _gradient_norm(D)
    players.D_optimizer.step()
    return torch.cat([numbers, norm[None]])


def update_g(
    players: Players, z: torch.Tensor, fake: torch.Tensor | None, settings: StepSettings
) -> torch.Tensor:
    """Update G through D, whose weights get no gradients meanwhile; arguments as for `update_d`.

    Returns:
        float32 2, without gradient: G's loss without the drifting loss, and the norm of all its gradients.
    """
    G, D = players.G, players.D
    loss = torch.zeros(1, device=z.device)
    D.requires_grad_(False)
    players.G_optimizer.zero_grad()
    for part, weight in settings.micro_batches(len(z)):
        images = G(z[part]) if fake is None else fake[part]
        told = settings.told(z[part])
        part_loss = g_loss(D(settings.seen(images, "g", part), *told), settings.g_label)
        total = part_loss + settings.drift(images, *told) if settings.drift else part_loss
        (weight * total).backward()
        loss += weight * part_loss.detach()
    loss = settings.ranks.sum_gradients(G.parameters(), loss)
    norm = _gradient_norm(G)
    players.G_optimizer.step()
    D.requires_grad_(True)
    return torch.cat([loss, norm[None]])


def _gradient_norm(network: nn.Module) -> torch.Tensor:
    """Return the Euclidean norm of all gradients, a float32 scalar; not finite where a gradient is not."""
    return get_total_norm(p.grad for p in network.parameters() if p.grad is not None)
