"""The state of a training as named tensors: of networks, of Adam optimizers, and as bytes."""

import io
from typing import Any

import torch
from torch import nn

from ganpipe.train.ranks import Ranks

Tensors = dict[str, torch.Tensor]
Networks = dict[str, nn.Module]
Optimizers = dict[str, torch.optim.Optimizer]


def share_state(ranks: Ranks, step: int, networks: Networks, optimizers: Optimizers) -> int:
    """Give all ranks the first rank's step and state; return that step. At step 0 all states are equal."""
    if ranks.count == 1:
        return step
    content = {"step": step, "tensors": state_of(networks, optimizers) if step else {}}
    received = ranks.broadcast(bytes(packed(content)) if ranks.first else b"")
    content = torch.load(io.BytesIO(received), weights_only=True)
    if content["step"]:
        restore_state(content["tensors"], networks, optimizers)
    return int(content["step"])


def state_of(networks: Networks, optimizers: Optimizers) -> Tensors:
    """Name every tensor of networks and of Adam optimizers: "G/layers.0.weight", "G_optimizer/0/exp_avg".

    An Adam has no state before its first step; the zeros that it would start from are listed instead, so that
    a freshly built training has the same names as a running one.
    """
    state = {
        f"{name}/{key}": tensor for name, net in networks.items() for key, tensor in net.state_dict().items()
    }
    for name, optimizer in optimizers.items():
        for i, parameter in enumerate(_parameters(optimizer)):
            values = optimizer.state.get(parameter) or {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
            state |= {f"{name}/{i}/{key}": tensor for key, tensor in values.items()}
    return state


def restore_state(state: Tensors, networks: Networks, optimizers: Optimizers) -> None:
    """Load tensors named by `state_of`, on each parameter's device; the optimizers' own rates stay.

    The optimizers may keep tensors of `state` as theirs.
    """
    for name, network in networks.items():
        network.load_state_dict(_below(state, name))
    for name, optimizer in optimizers.items():
        moments = {i: _below(state, f"{name}/{i}") for i in range(len(_parameters(optimizer)))}
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": moments, "param_groups": groups})


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _below(state: Tensors, name: str) -> Tensors:
    """Return the tensors whose names begin with `name`/, without that."""
    return {key.removeprefix(f"{name}/"): t for key, t in state.items() if key.startswith(f"{name}/")}


def packed(content: dict[str, Any]) -> memoryview:
    """Serialize values, and tensors on any device as tensors on the CPU with the same strides."""
    tensors = {name: tensor.detach().cpu() for name, tensor in content["tensors"].items()}
    buffer = io.BytesIO()
    torch.save(content | {"tensors": tensors}, buffer)
    return buffer.getbuffer()
