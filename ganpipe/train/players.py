"""The two players, G and D, with their optimizers and copies of G, and their state as named tensors."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Adam, Optimizer

from ganpipe import models
from ganpipe.common.seeds import derived_seed
from ganpipe.train.devices.compute import prepare_network
from ganpipe.train.devices.ranks import Ranks
from ganpipe.train.options import TrainOptions
from ganpipe.train.plan import Plan

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Players:
    """All that training changes; it lives on one device, and every checkpoint holds it."""

    G: nn.Module  # float32 N×inputs → float32 N×C×H×W in [-1, 1]
    D: nn.Module  # float32 N×C×H×W in [-1, 1], and classes N×K if any → logits float32 N
    G_optimizer: Optimizer
    D_optimizer: Optimizer
    G_ema: nn.Module | None = None  # the moving average of G, in eval mode; None without ema_halflife_kimg
    G_best: nn.Module | None = None  # the best weights so far of `sampled`; None unless train.keep is best

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks that exist, under their names in checkpoints."""
        networks = {"G": self.G, "D": self.D, "G_ema": self.G_ema, "G_best": self.G_best}
        return {name: network for name, network in networks.items() if network is not None}

    @property
    def optimizers(self) -> dict[str, Optimizer]:
        """Both optimizers, under their names in checkpoints."""
        return {"G_optimizer": self.G_optimizer, "D_optimizer": self.D_optimizer}

    @property
    def sampled(self) -> nn.Module:
        """The network that images are sampled from: the average of G if there is one, else G."""
        return self.G_ema or self.G


def build_players(plan: Plan, attempt: int, options: TrainOptions, ranks: Ranks) -> Players:
    """Build the players before the first step, the same on every rank; each attempt halves the rates."""
    params = plan.train
    layout: Any = {"device": options.device, "memory_format": torch.channels_last}
    torch.manual_seed(derived_seed(params.seed, "init"))
    G = models.build_generator(plan.spec).to(**layout)
    D = models.build_discriminator(plan.spec).to(**layout)
    G_ema = copy.deepcopy(G).eval().requires_grad_(False) if params.ema_halflife_kimg is not None else None
    G_best = copy.deepcopy(G_ema or G) if params.keep == "best" else None
    # G_ema is sampled from in float32; without it G is, in the precision that it is trained in.
    G, D = (prepare_network(network, params, options, ranks) for network in (G, D))
    adam: Any = {"betas": (params.beta1, params.beta2), "fused": True, "capturable": options.graph}
    G_optimizer = Adam(G.parameters(), params.glr * 0.5**attempt, **adam)
    D_optimizer = Adam(D.parameters(), params.dlr * 0.5**attempt, **adam)
    return Players(G, D, G_optimizer, D_optimizer, G_ema, G_best)


def state_of(players: Players) -> State:
    """Name every tensor of the networks and optimizers: "G/layers.0.weight", "G_optimizer/0/exp_avg".

    An Adam has no state before its first step; the zeros that it would start from are listed instead.
    """
    state: State = {}
    for name, network in players.networks.items():
        state |= {f"{name}/{key}": tensor for key, tensor in network.state_dict().items()}
    for name, optimizer in players.optimizers.items():
        for i, parameter in enumerate(optimizer.param_groups[0]["params"]):
            values = optimizer.state.get(parameter) or {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
            state |= {f"{name}/{i}/{key}": tensor for key, tensor in values.items()}
    return state


def restore_state(state: State, players: Players) -> None:
    """Load tensors named by `state_of`; optimizers keep their learning rates, and may keep the tensors."""
    for name, network in players.networks.items():
        network.load_state_dict(_below(state, name))
    for name, optimizer in players.optimizers.items():
        groups = optimizer.state_dict()["param_groups"]
        moments = {i: _below(state, f"{name}/{i}") for i in groups[0]["params"]}
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


def _below(state: State, name: str) -> State:
    return {key.removeprefix(f"{name}/"): t for key, t in state.items() if key.startswith(f"{name}/")}
