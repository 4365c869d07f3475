"""Real images for the networks: gathered from the packed array by row, made float and mirrored on the device.

Whichever way they come, the same rows give the same numbers.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Literal

import numpy as np
import torch

from ganpipe.models.pixels import to_float

# Rows of images in the packed array, and a bool for each that says whether it is mirrored; None: none is.
Draw = tuple[np.ndarray, torch.Tensor | None]
# host: gathered when asked for. ahead: by a thread while the device works. device: all images are there.
Way = Literal["host", "ahead", "device"]
AHEAD = 4  # batches that the thread gathers before they are asked for
CHUNK = 2**26  # bytes that go to the device at once, so that the host never holds all images


class Feed:
    """Batches of real images on a device.

    Args:
        images: uint8 N×H×W×C in [0, 255], memory-mapped or not.
        device: where the batches are wanted.
        memory_gb: all images are kept on a GPU where they take at most so many GB (10^9 bytes); None: at most
            a quarter of what is free there.
        way: how they come; None: as fits device and memory.
    """

    def __init__(
        self,
        images: np.ndarray,
        device: torch.device,
        memory_gb: float | None = None,
        way: Way | None = None,
    ) -> None:
        self.images, self.device = images, device
        self.way: Way = way or _way_for(images.nbytes, device, memory_gb)
        # The copy to a GPU goes on beside its work from pinned memory only, which exists beside a GPU only.
        self.pinned = self.way == "ahead" and device.type == "cuda"
        if self.way == "device":
            self.store = torch.empty(images.shape, dtype=torch.uint8, device=device)
            count = max(1, CHUNK // images[:1].nbytes)
            for i in range(0, len(images), count):
                self.store[i : i + count].copy_(torch.from_numpy(np.array(images[i : i + count])))

    def __call__(self, rows: np.ndarray, mirrored: torch.Tensor | None) -> torch.Tensor:
        """Return images of rows, float32 B×C×H×W in [-1, 1] on the device, laid out as channels_last.

        Args:
            rows: int64 B, rows of the packed array.
            mirrored: bool B on the CPU; None: none is.
        """
        return self._finish(self._gather(rows), mirrored)

    def batches(self, draws: Iterable[Draw]) -> Iterator[torch.Tensor]:
        """Yield the batch of each draw, as `self(*draw)` gives it; a thread ends with the iterator.

        Draws are taken from the caller's thread, at most AHEAD before their batches are asked for.
        """
        if self.way != "ahead":
            yield from (self(*draw) for draw in draws)
            return
        source = iter(draws)
        with ThreadPoolExecutor(1, "feed") as thread:
            coming = deque((thread.submit(self._gather, rows), m) for rows, m in islice(source, AHEAD))
            while coming:
                gathered, mirrored = coming.popleft()
                batch = gathered.result()
                coming.extend((thread.submit(self._gather, rows), m) for rows, m in islice(source, 1))
                yield self._finish(batch, mirrored)

    def _gather(self, rows: np.ndarray) -> torch.Tensor:
        """Return the bytes of rows, uint8 B×H×W×C, on the device only where all images are there."""
        if self.way == "device":
            return self.store[torch.from_numpy(rows).to(self.device, non_blocking=True)]
        shape = (len(rows), *self.images.shape[1:])
        # Pinned memory comes from torch's own pool, which gives it out again once the copy from it is done.
        batch = torch.empty(shape, dtype=torch.uint8, pin_memory=self.pinned)
        # "clip" writes to `out` at once, without a buffer in between; rows are always inside.
        np.take(self.images, rows, axis=0, out=batch.numpy(), mode="clip")
        return batch

    def _finish(self, batch: torch.Tensor, mirrored: torch.Tensor | None) -> torch.Tensor:
        batch = batch.to(self.device, non_blocking=self.pinned)
        if mirrored is not None:
            chosen = mirrored.to(self.device, non_blocking=True)[:, None, None, None]
            batch = torch.where(chosen, batch.flip(2), batch)
        return to_float(batch)


def _way_for(nbytes: int, device: torch.device, memory_gb: float | None) -> Way:
    if device.type != "cuda":
        return "host"
    budget = torch.cuda.mem_get_info(device)[0] / 4 if memory_gb is None else memory_gb * 1e9
    return "device" if nbytes <= budget else "ahead"
