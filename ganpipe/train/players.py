"""The two players, G and D, with their optimizers and the copies of G that images are sampled from."""

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


@dataclass(frozen=True)
class Players:
    """All that training changes; it lives on one device, and every checkpoint holds it.

    Attributes:
        G: float32 N×nz → float32 N×C×H×W in [-1, 1].
        D: float32 N×C×H×W in [-1, 1] → logits float32 N.
        G_ema: the moving average of G, in eval mode; None without train.ema_halflife_kimg.
        G_best: the best weights so far of the network that is sampled from; None unless train.keep is best.
    """

    G: nn.Module
    D: nn.Module
    G_optimizer: Optimizer
    D_optimizer: Optimizer
    G_ema: nn.Module | None = None
    G_best: nn.Module | None = None

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
