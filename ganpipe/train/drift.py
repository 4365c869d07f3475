"""The drifting loss, which pulls generated images towards real ones in the features of a frozen network.

Deng, Li, Li, Du & He 2026, "Generative Modeling via Drifting" (arXiv 2602.04770), train a generator with this
loss alone. Here it is added to the loss of the GAN, whose discriminator finishes the detail.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool1d, interpolate

from ganpipe.common import seeds
from ganpipe.metrics.feature_cache import cached
from ganpipe.metrics.lite0 import Lite0
from ganpipe.models.pixels import to_float
from ganpipe.train.augment import JITTER, jitter
from ganpipe.train.devices.feed import to_device
from ganpipe.train.plan import Plan

STAGES = [1, 2, 3, 4]  # of EfficientNet-Lite0, with 24, 40, 112 and 320 channels
PIXELS, PLACES = 8, 4  # sides of the grids over which pixels and the maps of a stage are averaged, at most
SIDES = 64, 256  # pixels a side that the network sees: the images' own, within these bounds
BATCH = 32  # real images in one pass


def drifting_loss(
    fake: torch.Tensor, real: torch.Tensor, taus: Sequence[float], apart: torch.Tensor | None = None
) -> torch.Tensor:
    """Return −⟨V, φ/s⟩, averaged over generated images and places: its gradient moves features φ along V.

    With X = φ/s and P, real features divided by s, the mean distance between both, V is a sum over τ of

        (K⁺ · ΣK⁻) P − (K⁻ · ΣK⁺) X,  divided by its root mean square norm,

    where (K⁺, K⁻) = sqrt(softmax over rows · softmax over columns) of −(‖X − P‖, ‖X − X'‖)/τ, and Σ are sums
    over rows: real features attract, those of other generated images repel. V and s have no gradient.

    Args:
        fake: φ, float32 places×n×d, n at least 2; each place is compared by itself.
        real: float32 places×m×d.
        taus: the temperatures τ, in units of s; a small one pulls towards single real images.
        apart: bool n×(m + n), for real and for generated images: pairs of two classes, whose K are 0.
    """
    n, m = fake.shape[1], real.shape[1]
    with torch.no_grad():
        scale = torch.cdist(fake, real).mean((1, 2), keepdim=True).clamp_min(1e-12)
        X, P = fake / scale, real / scale
        itself = torch.eye(n, device=fake.device) * 1e6
        distances = torch.cat([torch.cdist(X, P), torch.cdist(X, X) + itself], 2)
        if apart is not None:
            distances = distances.masked_fill(apart, 1e9)
        V = torch.zeros_like(X)
        for tau in taus:
            logits = -distances / tau
            kernel = (logits.softmax(1) * logits.softmax(2)).sqrt()
            if apart is not None:  # where a softmax has nothing else, it is not 0
                kernel = kernel.masked_fill(apart, 0.0)
            pull, push = kernel.split([m, n], 2)
            step = (pull * push.sum(2, keepdim=True)) @ P - (push * pull.sum(2, keepdim=True)) @ X
            V += step / step.square().sum(2).mean(1).sqrt().clamp_min(1e-12)[:, None, None]
    return -(V * (fake / scale)).sum(2).mean()


class FrozenFeatures(nn.Module):
    """Features of images in EfficientNet-Lite0, with gradients for the images only.

    The images have `side` pixels a side, and are resized to `seen` for the network.
    """

    def __init__(self, side: int, seen: int) -> None:
        super().__init__()
        self.network = Lite0(seen).network
        # Matrices in place of interpolate and of adaptive_avg_pool2d, whose gradients do not repeat on a GPU.
        resize = interpolate(torch.eye(side)[None, None], (seen, side), mode="bilinear", antialias=True)
        self.resize = nn.Buffer(resize[0, 0])
        self.requires_grad_(False)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Map float32 N×C×H×W in [-1, 1], C 1 or 3, to features, each float32 N×places×d.

        They are the pixels averaged over the cells of a grid, as one place; the maps of each stage averaged
        over the cells of a grid, each a place; and the means and deviations of each stage's channels.
        """
        features = [cell_means(images, PIXELS).flatten(1)[:, None]]
        seen = (self.resize @ images @ self.resize.T).add(1).mul(127.5)
        x = ((seen - 127) / 128).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        for maps in self.network.forward_intermediates(x, indices=STAGES, intermediates_only=True):
            pixels = maps.permute(0, 2, 3, 1).flatten(1, 2)
            moments = torch.cat([pixels.mean(1), (pixels.var(1, correction=0) + 1e-6).sqrt()], 1)
            features += [cell_means(maps, PLACES), moments[:, None]]
        return features


def cell_means(maps: torch.Tensor, most: int) -> torch.Tensor:
    """Average maps float N×C×side×side over a grid of at most `most` cells a side: float N×cells²×C."""
    side = maps.shape[-1]
    cells = adaptive_avg_pool1d(torch.eye(side, device=maps.device), min(most, side)).T
    rows = cells @ maps.permute(0, 2, 3, 1).flatten(2)  # N×cells×(side·C)
    return (cells @ rows.unflatten(2, (side, -1))).flatten(1, 2)


class Drift:
    """The weighted drifting losses of all features; a bank of those of real images is kept on the device."""

    def __init__(self, plan: Plan, device: torch.device) -> None:
        params, images = plan.train, plan.data.images
        self.params, self.steps = params, plan.steps
        seen = params.drift_resolution or min(max(images.shape[1], SIDES[0]), SIDES[1])
        self.network = FrozenFeatures(images.shape[1], seen).to(device)
        order = torch.randperm(len(plan.rows), generator=seeds.generator(params.seed, "drift/bank")).numpy()
        jittered = "jitter" in params.augment
        order = np.resize(order, params.drift_bank) if jittered else order[: params.drift_bank]
        rows = np.sort(plan.rows[order])
        batches = np.split(rows, range(BATCH, len(rows), BATCH))

        def compute() -> np.ndarray:
            parts, source = [], seeds.generator(params.seed, "drift/jitter")
            for part in batches:
                real = to_float(torch.from_numpy(images[part]).to(device))
                if jittered:
                    real = jitter(real, torch.rand(len(part), 4, generator=source).to(device))
                for batch in (real, real.flip(3)) if params.flip else (real,):
                    parts.append(torch.cat([f.flatten(1) for f in self.network(batch)], 1).cpu())
            return torch.cat(parts).numpy()

        root = plan.folder.parents[2]  # the main checkout, whose cache all experiments share
        # Other threads or devices round differently: a training must not depend on who filled the cache.
        kernels = f"{device.type} {torch.get_num_threads()}" + f" {params.seed} {JITTER}" * jittered
        key = f"{rows.tolist()} {params.flip} {seen} {STAGES} {PIXELS} {PLACES} {kernels}"
        with torch.no_grad():
            bank = cached(root, ("drift", Lite0.sha256, plan.data.digest, key), compute)
        self.bank = torch.from_numpy(bank).to(device)
        banked = np.concatenate([part for part in batches for _ in range(1 + params.flip)])  # as in `compute`
        self.classes = plan.latents(torch.zeros(len(banked), 0), banked).to(device).sign()
        # Of one step; tensors, because a recorded step reads them at the same address.
        self.chosen = torch.zeros(params.drift_positives, dtype=torch.int64, device=device)
        self.weight = torch.full((), params.drift_weight, device=device)

    def draw(self, seed: int, step: int) -> None:
        """Choose a step's real images and weight: full up to drift_fade_from of the training, then to 0."""
        source, start = seeds.generator(seed, "drift", step), self.params.drift_fade_from
        chosen = torch.randint(len(self.bank), (len(self.chosen),), generator=source)
        self.chosen.copy_(to_device(chosen, self.chosen.device))
        done = step / self.steps
        self.weight.fill_(self.params.drift_weight * (1.0 if done <= start else (1 - done) / (1 - start)))

    def __call__(self, images: torch.Tensor, classes: torch.Tensor | None = None) -> torch.Tensor:
        """Return the weighted sum of the losses of generated images float32 N×C×H×W in [-1, 1], a scalar.

        With their classes, float32 N×K of 0 and 1, real images attract those of their own class only.
        """
        fakes, losses, apart = self.network(images), [], None
        if classes is not None:
            apart = classes @ torch.cat([self.classes[self.chosen], classes]).T == 0
        reals = self.bank[self.chosen].split([fake[0].numel() for fake in fakes], 1)
        for fake, flat in zip(fakes, reals, strict=True):
            places = fake.transpose(0, 1), flat.view(-1, *fake.shape[1:]).transpose(0, 1)
            losses.append(drifting_loss(*places, self.params.drift_taus, apart))
        return self.weight * torch.stack(losses).sum()
