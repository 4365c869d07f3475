"""The two players, G and D, with their optimizers and the copies of G that samples are made with."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ganpipe import models
from ganpipe.common.seeds import derived_seed
from ganpipe.train.compute import prepare_network
from ganpipe.train.ema import EMA
from ganpipe.train.options import TrainOptions
from ganpipe.train.plan import Plan
from ganpipe.train.ranks import Ranks


@dataclass(frozen=True)
class Players:
    """Everything that training changes; all of it lives on one device and is saved in each checkpoint.

    Attributes:
        G: the generator, float32 N×nz → float32 N×C×H×W in [-1, 1].
        D: the discriminator, float32 N×C×H×W in [-1, 1] → logits float32 N.
        G_optimizer: of G's parameters.
        D_optimizer: of D's parameters.
        G_ema: the moving average of G; None without train.ema_halflife_kimg.
        G_best: the best network so far of those that were sampled from; None unless train.keep is "best".
    """

    G: nn.Module
    D: nn.Module
    G_optimizer: Optimizer
    D_optimizer: Optimizer
    G_ema: EMA | None = None
    G_best: nn.Module | None = None

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks that exist, under their names in checkpoints."""
        averaged = self.G_ema.model if self.G_ema else None
        networks = {"G": self.G, "D": self.D, "G_ema": averaged, "G_best": self.G_best}
        return {name: network for name, network in networks.items() if network is not None}

    @property
    def optimizers(self) -> dict[str, Optimizer]:
        """Both optimizers, under their names in checkpoints."""
        return {"G_optimizer": self.G_optimizer, "D_optimizer": self.D_optimizer}

    @property
    def sampled(self) -> nn.Module:
        """The network that images are sampled from: the average of G if there is one, else G."""
        return self.G_ema.model if self.G_ema else self.G


def build_players(plan: Plan, attempt: int, options: TrainOptions, ranks: Ranks) -> Players:
    """Build the players as they are before the first step, with the same weights on every rank.

    Each attempt after the first halves both learning rates.
    """
    params = plan.train
    layout: Any = {"device": options.device, "memory_format": torch.channels_last}
    torch.manual_seed(derived_seed(params.seed, "init"))
    G = models.build_generator(plan.spec).to(**layout)
    D = models.build_discriminator(plan.spec).to(**layout)
    G_ema = (
        EMA(G, params.ema_halflife_kimg, plan.batch_size) if params.ema_halflife_kimg is not None else None
    )
    G_best = copy.deepcopy(G_ema.model if G_ema else G) if params.keep == "best" else None

    # The networks' copies above are sampled from in float32; G itself, without an average, as it is trained.
    G, D = (prepare_network(network, params, options, ranks) for network in (G, D))
    adam: Any = {"betas": (params.beta1, params.beta2), "fused": True, "capturable": options.graph}
    G_optimizer = torch.optim.Adam(G.parameters(), params.glr * 0.5**attempt, **adam)
    D_optimizer = torch.optim.Adam(D.parameters(), params.dlr * 0.5**attempt, **adam)
    return Players(G, D, G_optimizer, D_optimizer, G_ema, G_best)
