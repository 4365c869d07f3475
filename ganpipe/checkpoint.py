"""Checkpoints: the resumable state of a training, whole or absent, checked before it is loaded.

A file is the sha256 of the rest (32 bytes), then the tensors in the safetensors format, which holds no code.
"""

import hashlib
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from ganpipe import files

KEEP = 2


def save(folder: Path, step: int, tensors: dict[str, torch.Tensor]) -> None:
    """Write the state after `step` steps, then drop all but the newest KEEP checkpoints."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    payload = safetensors.torch.save(plain)
    with files.whole(folder / f"{step:09d}.checkpoint") as temporary, open(temporary, "wb") as file:
        file.write(hashlib.sha256(payload).digest())
        file.write(payload)
    for path in sorted(folder.glob("*.checkpoint"))[:-KEEP]:
        path.unlink()


def load(folder: Path) -> tuple[int, dict[str, torch.Tensor]] | None:
    """Read the newest checkpoint whose bytes are undamaged.

    Returns:
        The steps done and the tensors on the CPU; None where there is no undamaged checkpoint.
    """
    for path in sorted(folder.glob("*.checkpoint"), reverse=True):
        content = path.read_bytes()
        if hashlib.sha256(content[32:]).digest() == content[:32]:
            return int(path.stem), safetensors.torch.load(content[32:])
    return None


def state_of(
    networks: dict[str, nn.Module], optimizers: dict[str, torch.optim.Optimizer]
) -> dict[str, torch.Tensor]:
    """Name every tensor of networks and optimizers: "G/layers.0.weight", "G_optimizer/0/exp_avg"."""
    state = {
        f"{name}/{key}": tensor for name, net in networks.items() for key, tensor in net.state_dict().items()
    }
    for name, optimizer in optimizers.items():
        for i, values in optimizer.state_dict()["state"].items():
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
                key: torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
                for key, value in saved.items()
            }
