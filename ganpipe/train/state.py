"""The state of a training as named tensors of its networks and Adam optimizers."""

import torch
from torch import nn

from ganpipe.train.devices.ranks import Ranks
from ganpipe.train.players import Players

State = dict[str, torch.Tensor]


def state_of(players: Players) -> State:
    """Name every tensor of the networks and optimizers: "G/layers.0.weight", "G_optimizer/0/exp_avg".

    An Adam has no state before its first step; the zeros that it would start from are listed instead, so that
    a freshly built training has the same names as a running one.
    """
    state = {
        f"{name}/{key}": tensor
        for name, network in players.networks.items()
        for key, tensor in network.state_dict().items()
    }
    for name, optimizer in players.optimizers.items():
        for i, parameter in enumerate(_parameters(optimizer)):
            values = optimizer.state.get(parameter) or {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
            state |= {f"{name}/{i}/{key}": tensor for key, tensor in values.items()}
    return state


def restore_state(state: State, players: Players) -> None:
    """Load tensors named by `state_of`, in place; the optimizers keep their learning rates.

    The optimizers may keep tensors of `state` as their own.
    """
    for name, network in players.networks.items():
        network.load_state_dict(_below(state, name))
    for name, optimizer in players.optimizers.items():
        moments = {i: _below(state, f"{name}/{i}") for i in range(len(_parameters(optimizer)))}
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": moments, "param_groups": groups})


def share_state(ranks: Ranks, step: int, players: Players) -> int:
    """Give all ranks the first rank's step and state; return that step. At step 0 all states are equal."""
    if ranks.count > 1:
        state = on_cpu(state_of(players)) if step else {}
        step, state = ranks.broadcast((step, state))
        if step:
            restore_state(state, players)
    return step


def on_cpu(state: State) -> State:
    """Return the tensors on the CPU, without gradient, with the same strides."""
    return {name: tensor.detach().cpu() for name, tensor in state.items()}


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _below(state: State, name: str) -> State:
    return {key.removeprefix(f"{name}/"): t for key, t in state.items() if key.startswith(f"{name}/")}
