"""Checkpoints: exact, whole or absent, damage never loaded."""

import errno
import hashlib
import io
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ganpipe.common import files
from ganpipe.train.environment import describe
from ganpipe.train.players import Players, restore_state, state_of
from ganpipe.train.resume import checkpoint


def trained(steps: int) -> Players:
    """Two small channels_last networks and their Adams after some steps."""
    torch.manual_seed(0)
    G, D = (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
        for _ in "GD"
    )
    G_optimizer, D_optimizer = (torch.optim.Adam(net.parameters(), 0.1, fused=True) for net in (G, D))
    players = Players(G, D, G_optimizer, D_optimizer)
    step(players, steps)
    return players


def step(players: Players, steps: int) -> None:
    """Train on images that are always the same."""
    images = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
    pairs = ((players.G, players.G_optimizer), (players.D, players.D_optimizer))
    for network, optimizer in pairs * steps:
        optimizer.zero_grad()
        network(images).square().mean().backward()
        optimizer.step()


def test_a_restored_training_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    """The state lacks something, so that a resumed run differs from an uninterrupted one."""
    expected = state_of(trained(7))
    checkpoint.save(tmp_path, 3, state_of(trained(3)), describe("cpu"))
    players = trained(0)
    loaded = checkpoint.load(tmp_path, state_of(players))
    assert loaded is not None and loaded.step == 3 and loaded.environment == describe("cpu")
    restore_state(loaded.state, players)
    step(players, 4)
    state = state_of(players)
    assert state.keys() == expected.keys() and "G_optimizer/0/exp_avg_sq" in state
    for name, tensor in state.items():
        assert torch.equal(tensor, expected[name]), name
        assert tensor.stride() == expected[name].stride(), name


def test_resume_reports_where_and_how_exactly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A user would not know that a training resumed, or that its numbers may differ."""
    players, environment = trained(0), describe("cpu")
    folders = tmp_path / "empty", tmp_path / "full"
    assert checkpoint.resume(folders, players, environment, 9) == 0
    assert capsys.readouterr().err == ""
    checkpoint.save(folders[1], 3, state_of(trained(3)), environment | {"torch": "2.0"})
    assert checkpoint.resume(folders, players, environment, 9) == 3
    assert all(torch.equal(tensor, state_of(trained(3))[name]) for name, tensor in state_of(players).items())
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("train: resuming after step 3 of 9")
    assert lines[1].startswith("train: not bit-exact, because torch was 2.0")


def test_an_optimizer_keeps_its_rate() -> None:
    """After a rescue the training would continue with the learning rate that made it diverge."""
    players = trained(0)
    players.G_optimizer.param_groups[0]["lr"] = 0.05
    restore_state(state_of(trained(3)), players)
    assert [o.param_groups[0]["lr"] for o in players.optimizers.values()] == [0.05, 0.1]


A = {"a": torch.zeros(100)}


def full(value: float) -> dict[str, torch.Tensor]:
    """A state of one tensor."""
    return {"a": torch.full((100,), float(value))}


def steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder."""
    return sorted(int(path.stem) for path in folder.glob("*.checkpoint"))


class Code:
    """What a hostile file holds: it creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        """Return the call that pickle makes."""
        return Path.touch, (self.path,)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "longer", "digest", "garbage", "code"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other weights than were saved, or code from a file, would be loaded without a word."""
    for number in (1, 2, 3):
        checkpoint.save(tmp_path, number, full(number), {"torch": "x"})
    newest = tmp_path / "000000003.checkpoint"
    whole = newest.read_bytes()
    code = pickle.dumps(Code(tmp_path / "ran"), protocol=2)
    newest.write_bytes(
        {
            "flip": whole[:-7] + bytes([whole[-7] ^ 1]) + whole[-6:],
            "cut": whole[:-1],
            "empty": b"",
            "longer": whole + b"x",
            "digest": b"?" + whole[1:],
            "garbage": hashlib.sha256(b"garbage").digest() + b"garbage",
            "code": hashlib.sha256(code).digest() + code,
        }[damage]
    )
    loaded = checkpoint.load(tmp_path, A)
    assert loaded is not None and loaded.step == 2 and loaded.state["a"][0] == 2
    assert loaded.environment == {"torch": "x"} and not (tmp_path / "ran").exists()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and f"{newest} is damaged" in lines[0]
    checkpoint.save(tmp_path, 3, full(3), {})
    assert steps(tmp_path) == [2, 3]


def test_damage_anywhere_is_noticed(tmp_path: Path) -> None:
    """Weights with a wrong bit would be loaded. A bit in each byte of a small file, and all truncations."""
    checkpoint.save(tmp_path, 1, {"a": torch.ones(3)}, {"torch": "x"})
    path = tmp_path / "000000001.checkpoint"
    whole = path.read_bytes()
    for i in range(len(whole)):
        content = bytearray(whole)
        content[i] ^= 1 << i % 8
        path.write_bytes(content)
        assert checkpoint.load(tmp_path, {"a": torch.ones(3)}) is None, i
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
def test_another_layout_is_refused(
    tmp_path: Path, like: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    """The state of another training would be loaded into the wrong tensors."""
    checkpoint.save(tmp_path, 1, full(1), {})
    assert checkpoint.load(tmp_path, like) is None
    assert "its tensors differ" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["000000001.damaged"]


def test_a_huge_file_is_refused_unread(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A damaged file of many gigabytes would fill the memory."""
    checkpoint.save(tmp_path, 1, full(1), {})
    with open(tmp_path / "000000002.checkpoint", "wb") as file:
        file.truncate(10**12)
    loaded = checkpoint.load(tmp_path, A)
    assert loaded is not None and loaded.step == 1
    assert "found 1,000,000,000,000 bytes, expected at most" in capsys.readouterr().err


def test_a_file_that_the_disk_cannot_read_gives_way_to_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bad sector would end the training; a file without permission would be taken for a bad sector."""
    for number in (1, 2):
        checkpoint.save(tmp_path, number, full(number), {})
    read_bytes = Path.read_bytes

    def unreadable(path: Path, error: int) -> bytes:
        if path.stem == "000000002":
            raise OSError(error, os.strerror(error), str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", lambda path: unreadable(path, errno.EACCES))
    with pytest.raises(PermissionError):
        checkpoint.load(tmp_path, A)
    monkeypatch.setattr(Path, "read_bytes", lambda path: unreadable(path, errno.EIO))
    loaded = checkpoint.load(tmp_path, A)
    assert loaded is not None and loaded.step == 1
    assert "the disk cannot read it" in capsys.readouterr().err


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    """A long training would fill the disk with checkpoints."""
    assert checkpoint.load(tmp_path, A) is None
    for number in (9, 10, 100):
        checkpoint.save(tmp_path, number, A, {})
    assert steps(tmp_path) == [10, 100]


def test_going_back_drops_the_later(tmp_path: Path) -> None:
    """After a return to an earlier step, the next start would resume from a later one that was abandoned."""
    for number in (1, 2, 3, 4):
        checkpoint.save(tmp_path, number, A, {}, keep=4)
    checkpoint.prune(tmp_path, 3, keep=4)
    checkpoint.prune(tmp_path, 3, keep=4)
    assert steps(tmp_path) == [1, 2, 3]
    checkpoint.save(tmp_path, 2, full(7), {})
    loaded = checkpoint.load(tmp_path, A)
    assert steps(tmp_path) == [1, 2] and loaded is not None and loaded.state["a"][0] == 7


def test_a_fresh_training_has_the_layout_of_a_running_one() -> None:
    """No checkpoint would be accepted, or Adam would start otherwise from listed zeros than from no state."""
    fresh, running = state_of(trained(0)), state_of(trained(2))
    assert {k: (v.shape, v.dtype) for k, v in fresh.items()} == {
        k: (v.shape, v.dtype) for k, v in running.items()
    }
    players = trained(0)
    restore_state(fresh, players)
    step(players, 2)
    assert all(torch.equal(tensor, running[name]) for name, tensor in state_of(players).items())


FAILPOINTS = ["before write", "mid write", "before fsync", "before rename", "after rename", "before prune"]


def save_until(folder: Path, where: str, fail: Callable[[], None]) -> None:
    """Save step 3 beside 1 and 2, and call `fail` at a point within."""

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
        patch.setattr(checkpoint, "prune", before(checkpoint.prune))
    try:
        checkpoint.save(folder, 3, full(3), {})
    finally:
        patch.undo()


def survivor(folder: Path) -> int:
    """The step of the checkpoint that would be loaded, its content checked."""
    loaded = checkpoint.load(folder, A)
    assert loaded is not None and torch.equal(loaded.state["a"], full(loaded.step)["a"])
    return loaded.step


@pytest.mark.parametrize("where", FAILPOINTS)
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_an_error_in_a_save_leaves_a_whole_checkpoint(tmp_path: Path, where: str, error: int) -> None:
    """A full disk would cost the whole training."""

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
