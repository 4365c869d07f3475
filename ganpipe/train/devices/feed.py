"""Real images for the networks: gathered from the packed array, made float and mirrored on the device."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Literal

import numpy as np
import torch

from ganpipe.common.shards import Images
from ganpipe.models.pixels import to_float

# Rows of the packed array, int64 B, and which of their images are mirrored, bool B on the CPU; None: none.
Draw = tuple[np.ndarray, torch.Tensor | None]
# host: gathered on request. ahead: gathered by a thread while the device works. device: all images are there.
# The numbers are the same.
Way = Literal["host", "ahead", "device"]
AHEAD = 4  # batches that the thread gathers in advance
CHUNK = 2**26  # bytes copied to the device at once, so that the host never holds all images


class Feed:
    """Batches on a device of images uint8 N×H×W×C in [0, 255], which may be memory-mapped."""

    def __init__(self, images: Images, device: torch.device, way: Way) -> None:
        self.images, self.device, self.way = images, device, way
        # Only from pinned memory is a copy to a GPU asynchronous; without a GPU torch has none.
        self.pinned = way == "ahead" and device.type == "cuda"
        if way == "device":
            self.store = torch.empty(images.shape, dtype=torch.uint8, device=device)
            count = max(1, CHUNK // images[:1].nbytes)
            for i in range(0, len(images), count):
                self.store[i : i + count].copy_(torch.from_numpy(np.array(images[i : i + count])))

    def __call__(self, rows: np.ndarray, mirrored: torch.Tensor | None) -> torch.Tensor:
        """Return the batch of a Draw, float32 B×C×H×W in [-1, 1] on the device, in channels_last memory."""
        return self._finish(self._gather(rows), mirrored)

    def batches(self, draws: Iterable[Draw]) -> Iterator[torch.Tensor]:
        """Yield `self(*draw)` for each draw; a thread, if there is one, ends with the iterator.

        Draws are taken in the caller's thread, at most AHEAD of them before their batches are requested.
        """
        if self.way != "ahead":
            yield from (self(*draw) for draw in draws)
            return
        with ThreadPoolExecutor(1, "feed") as thread:
            submitted = ((thread.submit(self._gather, rows), mirrored) for rows, mirrored in draws)
            queue = deque(islice(submitted, AHEAD))
            while queue:
                gathered, mirrored = queue.popleft()
                batch = gathered.result()
                queue.extend(islice(submitted, 1))
                yield self._finish(batch, mirrored)

    def _gather(self, rows: np.ndarray) -> torch.Tensor:
        """Return the images of rows, uint8 B×H×W×C; on the device only if all images are there."""
        if self.way == "device":
            return self.store[to_device(torch.from_numpy(rows), self.device)]
        shape = (len(rows), *self.images.shape[1:])
        # Pinned memory comes from torch's pool, which reuses it only after the copy from it has finished.
        batch = torch.empty(shape, dtype=torch.uint8, pin_memory=self.pinned)
        # mode="clip" writes to `out` without a buffer; rows are never out of range.
        self.images.take(rows, axis=0, out=batch.numpy(), mode="clip")
        return batch

    def _finish(self, batch: torch.Tensor, mirrored: torch.Tensor | None) -> torch.Tensor:
        batch = batch.to(self.device, non_blocking=self.pinned)
        if mirrored is not None:
            batch = torch.where(to_device(mirrored, self.device)[:, None, None, None], batch.flip(2), batch)
        return to_float(batch)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor on the CPU to a device; a GPU's work so far is not waited for."""
    cuda = device.type == "cuda"
    return tensor.pin_memory().to(device, non_blocking=True) if cuda else tensor.to(device)


def way_for(nbytes: int, device: torch.device, memory_gb: float | None = None) -> Way:
    """Choose how to gather `nbytes` of images: on a GPU all there, if they fit, else by a thread ahead of it.

    They fit in `memory_gb` GB (10^9 bytes); None: in a quarter of the GPU's free memory.
    """
    if device.type != "cuda":
        return "host"
    budget = torch.cuda.mem_get_info(device)[0] / 4 if memory_gb is None else memory_gb * 1e9
    return "device" if nbytes <= budget else "ahead"
