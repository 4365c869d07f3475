"""Checkpoints: the resumable state of a training, whole or absent, checked before it is loaded.

A file is the sha256 of the rest (32 bytes), then the tensors in the safetensors format, which holds no code
and is not compressed. Its metadata say in what environment it was computed.
"""

import errno
import hashlib
import json
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from ganpipe.common import files
from ganpipe.train.ranks import Ranks

KEEP = 2
DIGEST, LENGTH = 32, 8  # bytes of the sha256 and of the header's length
METADATA = 16_384  # bytes that the environment may take


@dataclass(frozen=True)
class Checkpoint:
    """A state as it was read.

    Attributes:
        step: steps done.
        tensors: on the CPU.
        environment: where it was computed, see `environment`.
    """

    step: int
    tensors: dict[str, torch.Tensor]
    environment: dict[str, str]


class _DamagedError(Exception):
    """What is wrong with a file."""


def save(
    folder: Path,
    step: int,
    tensors: dict[str, torch.Tensor],
    environment: dict[str, str],
    keep: int = KEEP,
) -> None:
    """Write the state after `step` steps; then drop those of later steps, and all but the newest `keep`.

    A kill at any moment leaves the checkpoints before, or them and this one; so does an error.

    Raises:
        OSError: full disk, read-only folder, defect; names the file.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    payload = safetensors.torch.save(plain, environment)
    with files.whole(_path(folder, step)) as temporary, open(temporary, "wb") as file:
        file.write(hashlib.sha256(payload).digest())
        file.write(payload)
    drop_after(folder, step)
    for path in _paths(folder)[keep:]:
        path.unlink()


def load(folder: Path, like: dict[str, torch.Tensor]) -> Checkpoint | None:
    """Read the newest checkpoint that is undamaged; by one process alone.

    A damaged one is told in a line on stderr and renamed to *.damaged: it does not count among those kept.

    Args:
        folder: where `save` wrote.
        like: the state of the freshly built training; a file with other names, shapes or dtypes, or of a size
            that is not theirs to the byte, is refused before it is read whole.

    Returns:
        None where there is no undamaged checkpoint.

    Raises:
        OSError: a file may not be read.
    """
    for path in _paths(folder):
        try:
            tensors, metadata = _read(path, like)
        except _DamagedError as problem:
            print(f"train: {path} is damaged ({problem}); going back to the one before", file=sys.stderr)
            path.replace(path.with_suffix(".damaged"))
            continue
        return Checkpoint(int(path.stem), tensors, metadata)
    return None


def drop_after(folder: Path, step: int) -> None:
    """Remove the checkpoints of later steps, for a return to an earlier one.

    The newest goes first: what a kill half-way leaves is an earlier state of the same training.
    """
    later = [path for path in _paths(folder) if int(path.stem) > step]
    for path in later:
        path.unlink()
    if later:
        files.sync(folder)  # a power cut must not bring them back


def environment(device: str, recorded: bool = False) -> dict[str, str]:
    """Describe what decides the last bits of a step on a device, besides the code and the params.

    Args:
        device: a torch device.
        recorded: whether the step is replayed as a graph.
    """
    ranks = 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        ranks = torch.distributed.get_world_size()
    found = {
        "torch": torch.__version__,
        "the device": torch.device(device).type,
        "the number of ranks": str(ranks),
        "the processor": _processor(),
        "the instruction set": torch.backends.cpu.get_cpu_capability(),
        "the thread count": str(torch.get_num_threads()),
        "oneDNN": f"{'on' if _onednn() else 'off'}{os.environ.get('ONEDNN_MAX_CPU_ISA', '')}",
    }
    if torch.device(device).type == "cuda":
        found["the GPU"] = torch.cuda.get_device_name(device)
        found["the step"] = "recorded" if recorded else "plain"
        found["CUDA"] = str(torch.version.cuda)
        found["cuDNN"] = str(torch.backends.cudnn.version())
    return found


def device_of(environment: dict[str, str]) -> str:
    """Name the hardware of an environment: the GPU, or the processor and how many threads."""
    processor, threads = environment["the processor"], environment["the thread count"]
    name = environment.get("the GPU", f"{processor}, {threads} thread{'s' if threads != '1' else ''}")
    ranks = int(environment["the number of ranks"])
    return f"{ranks} × {name}" if ranks > 1 else name


def differences(saved: dict[str, str], now: dict[str, str]) -> str:
    """Say what differs: "the thread count was 2 and is 1; torch was …"; nothing for equal environments."""
    names = [name for name in saved | now if saved.get(name) != now.get(name)]
    return "; ".join(f"{name} was {saved.get(name, 'none')} and is {now.get(name, 'none')}" for name in names)


def _path(folder: Path, step: int) -> Path:
    return folder / f"{step:09d}.checkpoint"


def _paths(folder: Path) -> list[Path]:
    """List the checkpoints of a folder, the newest first."""
    found = [path for path in folder.glob("*.checkpoint") if path.stem.isdecimal()]
    return sorted(found, key=lambda path: int(path.stem), reverse=True)


def _read(path: Path, like: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        with open(path, "rb") as file:
            start = file.read(DIGEST + LENGTH)
            length = int.from_bytes(start[DIGEST:], "little")
            limit = len(json.dumps(_layout(like))) + 200 * len(like) + METADATA
            data = sum(tensor.numel() * tensor.element_size() for tensor in like.values())
            size, expected = os.fstat(file.fileno()).st_size, DIGEST + LENGTH + length + data
            if len(start) < DIGEST + LENGTH or length > limit or size != expected:
                raise _DamagedError(f"{size:,} bytes where {data:,} and a header belong")
            header = file.read(length)
            metadata, layout = _parsed(header)
            if layout != _layout(like):
                raise _DamagedError("it holds other tensors than this training has")
            payload = start[DIGEST:] + header + file.read()
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise _DamagedError("the disk cannot read it") from None
    if hashlib.sha256(payload).digest() != start[:DIGEST]:
        raise _DamagedError("its sha256 differs")
    return safetensors.torch.load(payload), metadata


def _parsed(header: bytes) -> tuple[dict[str, str], dict[str, Any]]:
    """Return metadata, and name → dtype and shape, of a safetensors header."""
    try:
        entries = json.loads(header)
        metadata = entries.pop("__metadata__", {})
        return metadata, {name: [entry["dtype"], entry["shape"]] for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _DamagedError("its header is not readable") from None


def _layout(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return name → dtype, as safetensors spells it, and shape."""
    empty = safetensors.torch.save({name: t.new_empty(0, device="cpu") for name, t in tensors.items()})
    dtypes = json.loads(empty[LENGTH : LENGTH + int.from_bytes(empty[:LENGTH], "little")])
    return {name: [dtypes[name]["dtype"], list(tensor.shape)] for name, tensor in tensors.items()}


def _onednn() -> bool:
    # torch has no public way to read the flag alone, and mypy knows none of its attributes.
    return bool(getattr(torch.backends.mkldnn, "enabled", True)) and torch.backends.mkldnn.is_available()


def _processor() -> str:
    """Return the processor's model: oneDNN chooses its blocks by more than the instruction set."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def share(
    place: Ranks,
    step: int,
    networks: dict[str, nn.Module],
    optimizers: dict[str, torch.optim.Optimizer],
) -> int:
    """Give all ranks the first one's step and state; nothing moves where it has made no step yet."""
    if place.count == 1:
        return step
    state = {name: t.detach().cpu().contiguous() for name, t in state_of(networks, optimizers).items()}
    found = place.shared(safetensors.torch.save(state | {"step": torch.tensor(step)}) if place.first else b"")
    tensors = safetensors.torch.load(found)
    step = int(tensors.pop("step"))
    if step:
        restore(tensors, networks, optimizers)
    return step


def state_of(
    networks: dict[str, nn.Module], optimizers: dict[str, torch.optim.Optimizer]
) -> dict[str, torch.Tensor]:
    """Name every tensor of networks and of Adams: "G/layers.0.weight", "G_optimizer/0/exp_avg".

    An Adam that has made no step yet has no state; the zeros that it would begin with stand for it, so that a
    freshly built training has the same names as a running one.
    """
    state = {
        f"{name}/{key}": tensor for name, net in networks.items() for key, tensor in net.state_dict().items()
    }
    for name, optimizer in optimizers.items():
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for i, parameter in enumerate(parameters):
            values = optimizer.state.get(parameter) or {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
            state |= {f"{name}/{i}/{key}": tensor for key, tensor in values.items()}
    return state


def restore(
    state: dict[str, torch.Tensor],
    networks: dict[str, nn.Module],
    optimizers: dict[str, torch.optim.Optimizer],
) -> None:
    """Put tensors named by `state_of` back, in place and in each parameter's own memory layout and device."""
    for name, network in networks.items():
        network.load_state_dict(
            {k.removeprefix(f"{name}/"): v for k, v in state.items() if k.startswith(f"{name}/")}
        )
    for name, optimizer in optimizers.items():
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for i, parameter in enumerate(parameters):
            saved = {k.rpartition("/")[2]: v for k, v in state.items() if k.startswith(f"{name}/{i}/")}
            optimizer.state[parameter] = {
                # Moments take the parameter's strides; Adam's step count is a scalar of its own.
                key: torch.empty_like(parameter).copy_(value)
                if value.shape == parameter.shape
                else value.to(parameter.device)
                for key, value in saved.items()
            }
