"""Several processes, the ranks, that train the same networks on parts of each batch (torch.distributed).

All ranks hold the same weights and draw the same random numbers; each computes its part of the global batch.
One flat all-reduce an update adds up gradients and numbers, always in the same order: with as many ranks as
before, an interrupted training goes on to the same bytes; buckets that follow the backward pass would not do.
"""

import datetime
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.nn.functional import all_reduce

from ganpipe.common.errors import UserError

# A rank that is killed is noticed at once, by its connection; this is for one that hangs. Longer than any
# work that rank 0 does alone while the others wait: a judgement of G, a checkpoint, a grid.
TIMEOUT = datetime.timedelta(minutes=10)


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those that train together; alone, nothing below does anything.

    Attributes:
        rank: from 0; rank 0 alone writes files.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def part(self, batch_size: int) -> slice:
        """Return which of the global batch's images are this rank's; parts differ by one image at most."""
        return slice(self.rank * batch_size // self.count, (self.rank + 1) * batch_size // self.count)

    def add_up(self, parameters: Iterable[nn.Parameter], numbers: torch.Tensor) -> torch.Tensor:
        """Give every rank the sums over the ranks: of gradients, in place, and of numbers.

        A rank's loss must be the *global* batch's mean, less the terms of other ranks' images. Weighting the
        gradients afterwards is not the same: through a synchronised batch norm they come from all losses.

        Args:
            parameters: whose gradients are added up.
            numbers: float32 K, without gradient.

        Returns:
            float32 K.
        """
        if self.count == 1:
            return numbers
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), numbers])
        distributed.all_reduce(flat)
        *sums, numbers = flat.split([*(gradient.numel() for gradient in gradients), len(numbers)])
        for gradient, total in zip(gradients, sums, strict=True):
            gradient.copy_(total.view(gradient.shape))
        return numbers

    def shared(self, content: bytes) -> bytes:
        """Return the first rank's bytes in all ranks; what others give is not looked at."""
        if self.count == 1:
            return content
        size = torch.tensor([len(content)])
        distributed.broadcast(size, 0)
        data = torch.zeros(int(size), dtype=torch.uint8)
        if self.first and content:
            data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        distributed.broadcast(data, 0)
        return data.numpy().tobytes()

    def agreed(self, word: int) -> int:
        """Return the largest of the ranks' words: all leave the loop after the same step, or none.

        It travels between the CPUs, so that no GPU is waited for, and fails where a rank has died.

        Args:
            word: 0 to go on, or a number that says why not.
        """
        if self.count == 1:
            return word
        words = torch.tensor([word])
        distributed.all_reduce(words, distributed.ReduceOp.MAX)
        return int(words)


def device_of(device: str) -> str:
    """Return the device of this rank: where "cuda" is asked for, the GPU of its number on this machine."""
    local = os.environ.get("LOCAL_RANK")
    return f"cuda:{local}" if device == "cuda" and local is not None else device


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the ranks that torchrun's variables (RANK, WORLD_SIZE, MASTER_ADDR …) tell of, if they do.

    Raises:
        UserError: another rank died, in the middle of whatever needs it.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks()
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    distributed.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield Ranks(distributed.get_rank(), count)
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and "onnection" not in str(error):
            raise
        raise UserError(
            f"device {distributed.get_rank() + 1} of {count} ends because another one did; run it again to "
            "go on from the last checkpoint"
        ) from None
    finally:
        # No barrier: what ends this rank may be that another one is gone.
        distributed.destroy_process_group()


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the global batch: the statistics of all ranks' parts together.

    torch.nn.SyncBatchNorm does the same on GPUs alone, and insists on counting batches.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise N×C×H×W; gradients flow through the statistics into all ranks' images."""
        if not self.training:
            return super().forward(x)
        values = x.float()
        count = torch.full_like(values[:1, :1, 0, 0], values.numel() / values.shape[1])[0]
        total = all_reduce(torch.cat([values.sum((0, 2, 3)), count]))
        mean, count = total[:-1] / total[-1], total[-1].detach()
        centred = values - mean[:, None, None]
        var = all_reduce(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
            if self.running_mean is not None and self.running_var is not None and self.momentum is not None:
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var * count / (count - 1), self.momentum)
        scale = (var + self.eps).rsqrt() * self.weight
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def synchronise(network: nn.Module, ranks: Ranks) -> None:
    """Make every batch norm of a network see the global batch; its state and its names stay as they are."""
    if ranks.count > 1:
        for module in network.modules():
            if type(module) is nn.BatchNorm2d:
                # The same parameters, buffers and hooks with another forward pass: nothing to copy.
                converted: Any = module
                converted.__class__ = SyncBatchNorm2d
