"""Batches of real images, gathered in each of three ways."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from ganpipe.common.shards import Images, Shards
from ganpipe.train.devices import feed
from ganpipe.train.devices.feed import Feed, Way, way_for

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 6, 6, 3), dtype=np.uint8)
CPU = torch.device("cpu")


def draws(count: int) -> Iterator[feed.Draw]:
    """Yield the rows and the mirroring of batches of 7."""
    for step in range(count):
        source = torch.Generator().manual_seed(step)
        rows = torch.randint(len(IMAGES), (7,), generator=source).numpy()
        yield rows, torch.rand(7, generator=source) < 0.5 if step % 3 else None


@pytest.fixture(params=[1, 3])
def mapped(tmp_path: Path, request: pytest.FixtureRequest) -> Images:
    """The images as train sees them: memory-mapped, read-only, in one file or several."""
    parts = []
    for number, part in enumerate(np.array_split(IMAGES, request.param)):
        np.save(tmp_path / f"{number}.npy", part)
        parts.append(np.load(tmp_path / f"{number}.npy", mmap_mode="r"))
    return Shards(parts) if len(parts) > 1 else parts[0]


@pytest.mark.parametrize("way", ["host", "ahead", "device"])
def test_every_way_gives_the_same_numbers(mapped: Images, way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training on a GPU, or on one with less memory, would see other images."""
    monkeypatch.setattr(feed, "CHUNK", 1000)  # the store is filled in parts
    ours = Feed(mapped, CPU, way)
    batches = list(ours.batches(draws(11)))
    assert len(batches) == 11
    for batch, (rows, mirrored) in zip(batches, draws(11), strict=True):
        plain = IMAGES[rows].astype(np.float32).transpose(0, 3, 1, 2) / np.float32(127.5) - 1
        if mirrored is not None:
            plain[mirrored.numpy()] = plain[mirrored.numpy()][..., ::-1]
        assert batch.dtype == torch.float32 and np.array_equal(batch.numpy(), plain)
        assert batch.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch, ours(rows, mirrored))


def test_the_thread_is_a_few_batches_ahead_and_ends_with_the_iterator() -> None:
    """A thread without a bound fills the memory; one that outlives the loop keeps the process from ending."""
    drawn: list[int] = []

    def counted() -> Iterator[feed.Draw]:
        for step, draw in enumerate(draws(100)):
            drawn.append(step)
            yield draw

    batches = Feed(IMAGES, CPU, "ahead").batches(counted())
    for _ in range(3):
        next(batches)
    assert len(drawn) == feed.AHEAD + 3
    assert any(thread.name.startswith("feed") for thread in threading.enumerate())
    batches.close()  # type: ignore[attr-defined]
    assert not any(thread.name.startswith("feed") for thread in threading.enumerate())


def test_an_error_of_the_thread_reaches_the_loop() -> None:
    """If a disk failed, the loop would wait forever."""

    class Failing(Feed):
        def _gather(self, rows: np.ndarray) -> torch.Tensor:
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        next(Failing(IMAGES, CPU, "ahead").batches(draws(3)))


def test_the_way_follows_device_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU would run out of memory."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8 * 10**9, 10**10))
    gpu = torch.device("cuda")
    assert way_for(10**15, CPU) == "host"
    assert way_for(2 * 10**9, gpu, None) == "device" and way_for(2 * 10**9 + 1, gpu, None) == "ahead"
    assert way_for(10**9, gpu, 1.0) == "device" and way_for(10**9, gpu, 0.5) == "ahead"
    assert way_for(1, gpu, 0) == "ahead"
