"""Checkpoints: the resumable state of a training, written whole or not at all, verified before it is loaded.

A file is the sha256 of its payload (32 bytes), then the payload: a dict of tensors and of the environment
that computed them, as `torch.save` writes it. `torch.load` reads it with weights_only, which runs no code.
"""

import errno
import hashlib
import io
import pickle
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ganpipe.common import files
from ganpipe.train.environment import differences
from ganpipe.train.players import Players, State, on_cpu, restore_state, state_of

KEEP = 2
DIGEST = 32  # bytes of a sha256
# Upper bound of what torch.save adds: PER_TENSOR + 2·len(name) bytes a tensor, OVERHEAD for the rest.
PER_TENSOR, OVERHEAD = 1024, 65_536


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` steps, on the CPU, and the environment that computed it."""

    step: int
    state: State
    environment: dict[str, str]


class _DamagedError(Exception):
    """What is wrong with a file."""


def save(folder: Path, step: int, state: State, environment: dict[str, str], keep: int = KEEP) -> None:
    """Write the state after `step` steps; then `prune` the folder.

    A kill at any moment, or an OSError, which names the file, leaves the earlier checkpoints intact; the new
    one is complete or absent.
    """
    buffer = io.BytesIO()
    torch.save({"state": on_cpu(state), "environment": environment}, buffer)
    payload = buffer.getbuffer()
    with files.whole(folder / f"{step:09d}.checkpoint") as temporary, open(temporary, "wb") as file:
        file.write(hashlib.sha256(payload).digest())
        file.write(payload)
    prune(folder, step, keep)


def load(folder: Path, like: State) -> Checkpoint | None:
    """Read the newest undamaged checkpoint, None if there is none; one process at a time.

    A damaged one is reported in a line on stderr and renamed to *.damaged, so that it no longer counts. So is
    one whose tensors have other names, shapes or dtypes than `like`, the state of a freshly built training; a
    file too large for that state is refused before it is read.

    Raises OSError: a file may not be read.
    """
    for path in _paths(folder):
        try:
            return _read(path, like)
        except _DamagedError as problem:
            print(f"train: {path} is damaged ({problem}); trying the one before it", file=sys.stderr)
            path.replace(path.with_suffix(".damaged"))
    return None


def resume(folders: Iterable[Path], players: Players, environment: dict[str, str], steps: int) -> int:
    """Load the last checkpoint of the first folder that has one into the players; return its step, else 0.

    A line on stderr reports it, and another one how the environment differs from the checkpoint's.
    """
    like = state_of(players)
    last = next((loaded for folder in folders if (loaded := load(folder, like))), None)
    if last is None:
        return 0
    restore_state(last.state, players)
    print(f"train: resuming after step {last.step} of {steps} (GANPIPE_FRESH=1 starts anew)", file=sys.stderr)
    if different := differences(last.environment, environment):
        print(f"train: not bit-exact, because {different}", file=sys.stderr)
    return last.step


def prune(folder: Path, step: int, keep: int = KEEP) -> None:
    """Remove the checkpoints of steps after `step`, and all but the newest `keep` of the others.

    Later steps go first, newest first, so that a kill always leaves a consistent earlier state.
    """
    paths = _paths(folder)
    later = [path for path in paths if int(path.stem) > step]
    for path in later + paths[len(later) + keep :]:
        path.unlink()
    if later:
        files.sync(folder)  # a power cut must not bring them back


def _paths(folder: Path) -> list[Path]:
    """List the checkpoints of a folder, the newest first."""
    return sorted(folder.glob("*.checkpoint"), reverse=True)


def _read(path: Path, like: State) -> Checkpoint:
    limit = DIGEST + OVERHEAD + sum(t.nbytes + 2 * len(name) + PER_TENSOR for name, t in like.items())
    try:
        if (size := path.stat().st_size) > limit:
            raise _DamagedError(f"found {size:,} bytes, expected at most {limit:,}")
        content = memoryview(path.read_bytes())
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise _DamagedError("the disk cannot read it") from None
    if hashlib.sha256(content[DIGEST:]).digest() != content[:DIGEST]:
        raise _DamagedError("its sha256 differs")
    try:
        payload = torch.load(io.BytesIO(content[DIGEST:]), weights_only=True)
        checkpoint = Checkpoint(int(path.stem), payload["state"], payload["environment"])
    except (pickle.UnpicklingError, EOFError, LookupError, TypeError) as error:
        raise _DamagedError(f"it is not a checkpoint: {type(error).__name__}") from None
    if _layout(checkpoint.state) != _layout(like):
        raise _DamagedError("its tensors differ from this training's in names, shapes or dtypes")
    return checkpoint


def _layout(state: State) -> dict[str, Any]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}
