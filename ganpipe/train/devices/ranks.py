"""The processes, called ranks, that train together on parts of each batch (torch.distributed)."""

import datetime
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn

from ganpipe.common.errors import UserError
from ganpipe.train.devices.launch import RESUME

# For a rank that hangs; a dead one closes its connection. Rank 0 may evaluate G while the others wait.
TIMEOUT = datetime.timedelta(minutes=10)


@dataclass(frozen=True)
class Ranks:
    """This process, number `rank` from 0 of `count` that train together; alone it does not communicate.

    All ranks hold the same weights and draw the same random numbers.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is rank 0, the only one that writes files."""
        return self.rank == 0

    def part(self, batch_size: int) -> slice:
        """Return this rank's part of a global batch; parts differ by at most one image."""
        return slice(self.rank * batch_size // self.count, (self.rank + 1) * batch_size // self.count)

    def sum_gradients(self, parameters: Iterable[nn.Parameter], numbers: torch.Tensor) -> torch.Tensor:
        """Sum the gradients of parameters over the ranks in place, and return the sums of numbers float32 K.

        Each rank's loss must be its images' share of the *global* batch's mean. Weighting the gradients
        afterwards is not the same: through a synchronized batch norm they come from all ranks' losses. One
        flat all-reduce sums in a fixed order, which DDP does not guarantee, so that a resume is exact.
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

    def broadcast(self, content: Any) -> Any:
        """Return rank 0's object on every rank; the other ranks' argument is ignored."""
        contents = [content]
        if self.count > 1:
            distributed.broadcast_object_list(contents, device=torch.device("cpu"))
        return contents[0]

    def maximum(self, number: int) -> int:
        """Return the largest of the ranks' numbers, through the CPUs, so that no GPU is waited for."""
        largest = torch.tensor([number])
        if self.count > 1:
            distributed.all_reduce(largest, distributed.ReduceOp.MAX)
        return int(largest)


def rank_device(device: str) -> str:
    """Return the device of this rank: for "cuda", the GPU whose number is its local rank."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device


@contextmanager
def join_ranks(device: str) -> Iterator[Ranks]:
    """Join the other ranks, if torchrun's variables (RANK, WORLD_SIZE, MASTER_ADDR …) announce several.

    Raises UserError: another rank died, and this one needed it.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks()
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    distributed.init_process_group(backend, timeout=TIMEOUT)
    rank = distributed.get_rank()
    try:
        yield Ranks(rank, count)
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and "onnection" not in str(error):
            raise
        raise UserError(f"rank {rank} of {count} stops because another rank died; {RESUME}") from None
    finally:
        # No barrier: another rank may already be dead.
        distributed.destroy_process_group()
