"""The light evaluation of a generator during training."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from conftest import digits
from torch import nn

from ganpipe.params import Params
from ganpipe.train.plan import plan_training
from ganpipe.train.probe import Probe


class Replay(nn.Module):
    """Returns given images instead of generating them."""

    def __init__(self, images: np.ndarray, rows: Callable[[int], torch.Tensor]) -> None:
        super().__init__()
        self.weight, self.rows = nn.Parameter(torch.zeros(1)), rows
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
        self.at = 0

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Return the next len(z) images, float32 N×C×H×W in [-1, 1]."""
        self.at += len(z)
        return self.images[self.rows(self.at)[-len(z) :]]


def test_ranks_good_bad_and_collapsed_generators(
    tmp_path: Path, small_params: Params, write_packed: Callable[..., Path]
) -> None:
    """Other weights than the best would be kept, and a collapse would stay unnoticed."""
    images, count = np.random.default_rng(1).permutation(digits())[:256], 64
    write_packed(tmp_path, np.roll(images, len(images) - count, axis=0), held_out=len(images) - count)
    probe = Probe(plan_training(small_params.model, small_params.train, tmp_path), "cpu")
    noise = np.random.default_rng(0).integers(0, 256, images.shape, dtype=np.uint8)
    good, bad, collapsed = (
        probe(Replay(source, rows))
        for source, rows in [
            (images, lambda end: torch.arange(count, count + end)),
            (noise, lambda end: torch.arange(end)),
            (images, lambda end: torch.full((end,), 3)),
        ]
    )
    assert good[0] < 0.3 * min(bad[0], collapsed[0])
    assert abs(good[1] / probe.real_spread - 1) < 0.1 and collapsed[1] < 1e-3 * probe.real_spread
