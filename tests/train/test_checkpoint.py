"""Checkpoints: exact, whole or absent, never of damaged bytes."""

import errno
import io
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ganpipe.common import files
from ganpipe.train import checkpoint


def trained(steps: int) -> tuple[dict[str, nn.Module], dict[str, torch.optim.Optimizer]]:
    """A small channels_last network and its Adam after some steps on fixed data."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), 0.1, fused=True)
    step(net, optimizer, steps)
    return {"net": net}, {"optimizer": optimizer}


def step(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Train on images that depend on nothing."""
    images = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
    for _ in range(steps):
        optimizer.zero_grad()
        net(images).square().mean().backward()
        optimizer.step()


def test_a_restored_training_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    """Anything left out of the state makes a resumed run another run."""
    networks, optimizers = trained(7)
    expected = checkpoint.state_of(networks, optimizers)

    networks, optimizers = trained(3)
    checkpoint.save(tmp_path, 3, checkpoint.state_of(networks, optimizers), {})
    networks, optimizers = trained(0)
    found = checkpoint.load(tmp_path, checkpoint.state_of(networks, optimizers))
    assert found is not None and found.step == 3
    checkpoint.restore(found.tensors, networks, optimizers)
    step(networks["net"], optimizers["optimizer"], 4)
    state = checkpoint.state_of(networks, optimizers)
    assert state.keys() == expected.keys() and "optimizer/0/exp_avg_sq" in state
    for name, tensor in state.items():
        assert torch.equal(tensor, expected[name]), name
        assert tensor.stride() == expected[name].stride(), name


A = {"a": torch.zeros(100)}


def full(value: float) -> dict[str, torch.Tensor]:
    """A state of one tensor."""
    return {"a": torch.full((100,), float(value))}


def steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder."""
    return sorted(int(path.stem) for path in folder.glob("*.checkpoint"))


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "longer", "header", "length"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The safetensors library loads flipped bits in silence; the network would be another one."""
    for number in (1, 2, 3):
        checkpoint.save(tmp_path, number, full(number), {"torch": "x"})
    newest = tmp_path / "000000003.checkpoint"
    whole = newest.read_bytes()
    newest.write_bytes(
        {
            "flip": whole[:-7] + bytes([whole[-7] ^ 1]) + whole[-6:],
            "cut": whole[:-1],
            "empty": b"",
            "longer": whole + b"x",
            "header": whole[:41] + b"?" + whole[42:],
            "length": whole[:32] + b"\xff" * 8 + whole[40:],
        }[damage]
    )
    found = checkpoint.load(tmp_path, A)
    assert found is not None and found.step == 2 and found.tensors["a"][0] == 2
    assert found.environment == {"torch": "x"}
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and f"{newest} is damaged" in lines[0]
    checkpoint.save(tmp_path, 3, full(3), {})
    assert steps(tmp_path) == [2, 3]


def test_every_flipped_bit_and_every_length_is_noticed(tmp_path: Path) -> None:
    """One unnoticed bit is another network. All single bits of a small file, and all its truncations."""
    checkpoint.save(tmp_path, 1, {"a": torch.ones(3)}, {"torch": "x"})
    path = tmp_path / "000000001.checkpoint"
    whole = path.read_bytes()
    for place in range(8 * len(whole)):
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        path.write_bytes(content)
        assert checkpoint.load(tmp_path, {"a": torch.ones(3)}) is None, place
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert checkpoint.load(tmp_path, {"a": torch.ones(3)}) is None, length
    path.write_bytes(whole)
    assert checkpoint.load(tmp_path, {"a": torch.ones(3)}) is not None


@pytest.mark.parametrize(
    "like",
    [
        {"a": torch.zeros(99)},
        {"a": torch.zeros(10, 10)},
        {"b": torch.zeros(100)},
        {"a": torch.zeros(100, dtype=torch.int32)},
        {"a": torch.zeros(99), "b": torch.zeros(1)},
    ],
)
def test_another_layout_is_refused_unread(
    tmp_path: Path, like: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """A file of another training, or a huge one, would fill the memory or the wrong tensors."""
    checkpoint.save(tmp_path, 1, full(1), {})
    # A failure of the sha256 would come too late: the file has been read by then.
    monkeypatch.setattr(checkpoint.hashlib, "sha256", None)
    assert checkpoint.load(tmp_path, like) is None
    assert "is damaged" in capsys.readouterr().err


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    """A long training would fill the disk with checkpoints."""
    assert checkpoint.load(tmp_path, A) is None
    for number in (9, 10, 100):
        checkpoint.save(tmp_path, number, A, {})
    assert steps(tmp_path) == [10, 100]


def test_going_back_drops_the_later(tmp_path: Path) -> None:
    """After a return to an earlier step the next start would go on from the abandoned future."""
    for number in (1, 2, 3, 4):
        checkpoint.save(tmp_path, number, A, {}, keep=4)
    checkpoint.drop_after(tmp_path, 3)
    checkpoint.drop_after(tmp_path, 3)
    assert steps(tmp_path) == [1, 2, 3]
    checkpoint.save(tmp_path, 2, full(7), {})
    found = checkpoint.load(tmp_path, A)
    assert steps(tmp_path) == [1, 2] and found is not None and found.tensors["a"][0] == 7


def test_a_fresh_training_has_the_layout_of_a_running_one() -> None:
    """Else no checkpoint would be accepted; and Adam goes on from those zeros as from nothing."""
    fresh, running = checkpoint.state_of(*trained(0)), checkpoint.state_of(*trained(2))
    assert {k: (v.shape, v.dtype) for k, v in fresh.items()} == {
        k: (v.shape, v.dtype) for k, v in running.items()
    }
    networks, optimizers = trained(0)
    checkpoint.restore(fresh, networks, optimizers)
    step(networks["net"], optimizers["optimizer"], 2)
    assert all(torch.equal(v, running[k]) for k, v in checkpoint.state_of(networks, optimizers).items())


def test_environments_are_compared_in_words() -> None:
    """A run that cannot be exact must say why, and one that can must not cry wolf."""
    now = checkpoint.environment("cpu")
    assert now["the thread count"] == str(torch.get_num_threads()) and now["torch"] == torch.__version__
    assert checkpoint.differences(now, dict(now)) == ""
    before = now | {"the thread count": "64", "torch": "2.0"}
    assert checkpoint.differences(before, now) == (
        f"torch was 2.0 and is {torch.__version__}; the thread count was 64 and is {torch.get_num_threads()}"
    )


FAILPOINTS = ["before write", "mid write", "before fsync", "before rename", "after rename", "before prune"]


def save_until(folder: Path, where: str, fail: Callable[[], None]) -> None:
    """Save step 3 beside 1 and 2, and let `fail` happen at a place within."""

    def before(original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            fail()
            return original(*args, **kwargs)

        return call

    def after(original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            original(*args, **kwargs)
            fail()

        return call

    class Half(io.FileIO):
        def write(self, content: Any) -> int:
            if len(content) == 32:
                return super().write(content)
            super().write(content[: len(content) // 2])
            fail()
            raise AssertionError

    patch = pytest.MonkeyPatch()
    if where == "before write":
        patch.setattr(checkpoint, "open", before(open), raising=False)
    elif where == "mid write":
        patch.setattr(checkpoint, "open", lambda path, mode: Half(path, mode), raising=False)
    elif where == "before fsync":
        patch.setattr(files.os, "fsync", before(os.fsync))
    elif where == "before rename":
        patch.setattr(files.os, "replace", before(os.replace))
    elif where == "after rename":
        patch.setattr(files.os, "replace", after(os.replace))
    elif where == "before prune":
        patch.setattr(checkpoint, "drop_after", before(checkpoint.drop_after))
    try:
        checkpoint.save(folder, 3, full(3), {})
    finally:
        patch.undo()


def survivor(folder: Path) -> int:
    """The step of the checkpoint that would be loaded, its content checked."""
    found = checkpoint.load(folder, A)
    assert found is not None and torch.equal(found.tensors["a"], full(found.step)["a"])
    return found.step


@pytest.mark.parametrize("where", FAILPOINTS)
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_an_error_in_a_save_leaves_a_whole_checkpoint(tmp_path: Path, where: str, error: int) -> None:
    """A full disk would cost the training that it interrupts."""

    def fail() -> None:
        raise OSError(error, os.strerror(error), str(tmp_path) if where == "before prune" else None)

    for number in (1, 2):
        checkpoint.save(tmp_path, number, full(number), {})
    with pytest.raises(OSError) as caught:
        save_until(tmp_path, where, fail)
    assert caught.value.errno == error and caught.value.filename
    assert survivor(tmp_path) == (3 if where in ("after rename", "before prune") else 2)
    checkpoint.save(tmp_path, 3, full(3), {})
    assert survivor(tmp_path) == 3 and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("where", FAILPOINTS)
def test_kill_9_in_a_save_leaves_a_whole_checkpoint(tmp_path: Path, where: str) -> None:
    """A badly timed kill would cost the training."""
    for number in (1, 2):
        checkpoint.save(tmp_path, number, full(number), {})
    child = multiprocessing.get_context("fork").Process(target=_save_and_die, args=(tmp_path, where))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert survivor(tmp_path) == (3 if where in ("after rename", "before prune") else 2)
    checkpoint.save(tmp_path, 3, full(3), {})
    assert survivor(tmp_path) == 3 and len(list(tmp_path.iterdir())) == 2


def _save_and_die(folder: Path, where: str) -> None:
    save_until(folder, where, lambda: os.kill(os.getpid(), signal.SIGKILL))


def test_the_hardware_is_named() -> None:
    """The model card would say how long a training took, but not on what."""
    found = {"the processor": "EPYC", "the thread count": "2", "the number of ranks": "1"}
    assert checkpoint.device_of(found) == "EPYC, 2 threads"
    assert checkpoint.device_of(found | {"the thread count": "1"}) == "EPYC, 1 thread"
    assert checkpoint.device_of(found | {"the GPU": "H200", "the number of ranks": "4"}) == "4 × H200"
