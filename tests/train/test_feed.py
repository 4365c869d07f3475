"""Batches of real images, whichever way they come."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from ganpipe.train import feed
from ganpipe.train.feed import Feed, Way

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 6, 6, 3), dtype=np.uint8)
CPU = torch.device("cpu")


def draws(count: int) -> Iterator[feed.Draw]:
    """Yield rows and mirroring of batches of 7."""
    for step in range(count):
        source = torch.Generator().manual_seed(step)
        rows = torch.randint(len(IMAGES), (7,), generator=source).numpy()
        yield rows, torch.rand(7, generator=source) < 0.5 if step % 3 else None


@pytest.fixture
def mapped(tmp_path: Path) -> np.ndarray:
    """The images as train sees them: memory-mapped, read-only."""
    np.save(tmp_path / "images.npy", IMAGES)
    return np.load(tmp_path / "images.npy", mmap_mode="r")


@pytest.mark.parametrize("way", ["host", "ahead", "device"])
def test_every_way_gives_the_plain_writing_s_numbers(
    mapped: np.ndarray, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other bytes on a GPU, or with less memory there, would be another training."""
    monkeypatch.setattr(feed, "CHUNK", 1000)  # the store is filled in parts
    ours = Feed(mapped, CPU, way=way)
    batches = list(ours.batches(draws(11)))
    assert len(batches) == 11
    for batch, (rows, mirrored) in zip(batches, draws(11), strict=True):
        plain = IMAGES[rows].astype(np.float32).transpose(0, 3, 1, 2) / np.float32(127.5) - 1
        if mirrored is not None:
            plain[mirrored.numpy()] = plain[mirrored.numpy()][..., ::-1]
        assert batch.dtype == torch.float32 and np.array_equal(batch.numpy(), plain)
        assert batch.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch, ours(rows, mirrored))


def test_the_thread_is_a_few_batches_ahead_and_ends_with_the_loop() -> None:
    """A thread without a bound fills the memory; one that outlives the loop keeps the process from ending."""
    asked: list[int] = []

    def counted() -> Iterator[feed.Draw]:
        for step, draw in enumerate(draws(100)):
            asked.append(step)
            yield draw

    batches = Feed(IMAGES, CPU, way="ahead").batches(counted())
    for _ in range(3):
        next(batches)
    assert len(asked) == feed.AHEAD + 3
    assert any(thread.name.startswith("feed") for thread in threading.enumerate())
    batches.close()  # type: ignore[attr-defined]
    assert not any(thread.name.startswith("feed") for thread in threading.enumerate())


def test_an_error_of_the_thread_reaches_the_loop() -> None:
    """A disk that fails would otherwise leave a loop that waits for ever."""

    class Failing(Feed):
        def _gather(self, rows: np.ndarray) -> torch.Tensor:
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        next(Failing(IMAGES, CPU, way="ahead").batches(draws(3)))


def test_the_way_follows_device_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that do not fit would end the training with the GPU out of memory."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8 * 10**9, 10**10))
    gpu = torch.device("cuda")
    assert feed._way_for(10**15, CPU, None) == "host"
    assert (
        feed._way_for(2 * 10**9, gpu, None) == "device" and feed._way_for(2 * 10**9 + 1, gpu, None) == "ahead"
    )
    assert feed._way_for(10**9, gpu, 1.0) == "device" and feed._way_for(10**9, gpu, 0.5) == "ahead"
    assert feed._way_for(1, gpu, 0) == "ahead"
