"""How a network computes: its kernels, and modules that replace its modules and keep its weights' names."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.distributed.nn.functional import all_reduce
from torch.utils.checkpoint import checkpoint

from ganpipe.models.resize import Double
from ganpipe.params import Train
from ganpipe.train.devices.ranks import Ranks
from ganpipe.train.environment import has_bfloat16
from ganpipe.train.options import TrainOptions


def exact_kernels() -> AbstractContextManager[None]:
    """Let cuDNN use only kernels that repeat to the bit; on a GPU float32 training would not, otherwise."""
    return torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=True)


def prepare_network(network: nn.Module, params: Train, options: TrainOptions, ranks: Ranks) -> nn.Module:
    """Return a network that computes as params and options say, built of the parts of `network`."""
    if params.sync_batch_norm and ranks.count > 1:
        network = replace_modules(network, synchronize)
    if options.save_memory:
        network = replace_modules(network, recompute)
    if params.precision == "bfloat16":
        network = Bfloat16(network, torch.device(options.device).type)
    return network


def precision_warning(precision: str, device: str) -> str | None:
    """Warn of bfloat16 on a CPU that has no instructions for it; None otherwise."""
    if precision != "bfloat16" or torch.device(device).type != "cpu" or has_bfloat16() in (True, None):
        return None
    reason = "this processor has no instructions for bfloat16, such as AVX512_BF16, and computes it slowly"
    return f"train.precision: {reason}; use float32"


def replace_modules(network: nn.Module, replacement: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Replace every module, the inner ones first, by `replacement(module)`, possibly the module itself."""
    for name, module in network.named_children():
        setattr(network, name, replace_modules(module, replacement))
    return replacement(network)


class Bfloat16(nn.Module):
    """A network that computes in bfloat16 where torch.autocast does; its input and weights stay float32."""

    def __init__(self, network: nn.Module, device_type: str) -> None:
        super().__init__()
        # The network itself is no child, because that would put its name before those of the weights.
        self.network_forward, self.device_type = network.forward, device_type
        for name, module in network.named_children():
            self.add_module(name, module)

    def forward(self, *x: torch.Tensor) -> torch.Tensor:
        """Compute what the network computes, float32 → float32."""
        with torch.autocast(self.device_type, torch.bfloat16):
            return self.network_forward(*x).float()


# A segment begins at each of these; the layers after it may change its output in place.
HEAVY = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.Upsample, Double)


class Recomputed(nn.Sequential):
    """Layers that store only the inputs of their segments and recompute the rest in the backward pass."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__(OrderedDict(layers.named_children()))
        starts = [i for i, layer in enumerate(layers) if i == 0 or isinstance(layer, HEAVY)]
        ends = [*starts[1:], len(layers)]
        self.segments = [layers[start:end] for start, end in zip(starts, ends, strict=True)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute what the layers compute."""
        how: Any = {"use_reentrant": False, "preserve_rng_state": False}
        for segment in self.segments:
            # Batch norm's statistics count each batch once.
            x = checkpoint(segment, x, context_fn=lambda: (nullcontext(), keep_statistics(self)), **how)
        return x


def recompute(module: nn.Module) -> nn.Module:
    """Return a Recomputed for an innermost nn.Sequential, and any other module as it is."""
    if isinstance(module, nn.Sequential) and not any(isinstance(m, nn.Sequential) for m in module):
        return Recomputed(module)
    return module


@contextmanager
def keep_statistics(network: nn.Module) -> Iterator[None]:
    """Leave batch norm's running statistics as they are while a network in train mode runs."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        # Untracked, it would store fewer tensors for the backward pass, which checkpoint refuses.
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the global batch: the statistics of all ranks' parts together.

    torch.nn.SyncBatchNorm does the same only on GPUs, and cannot run with its batch count off.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize N×C×H×W; gradients flow through the statistics into all ranks' images."""
        if not self.training:
            return super().forward(x)
        values = x.float()
        count = torch.full_like(values[:1, :1, 0, 0], values.numel() / values.shape[1])[0]
        total = all_reduce(torch.cat([values.sum((0, 2, 3)), count]))
        mean, count = total[:-1] / total[-1], total[-1].detach()
        centred = values - mean[:, None, None]
        var = all_reduce(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
            if self.running_mean is not None and self.running_var is not None and self.momentum is not None:
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var * count / (count - 1), self.momentum)
        scale = (var + self.eps).rsqrt() * self.weight
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def synchronize(module: nn.Module) -> nn.Module:
    """Return a SyncBatchNorm2d with the same state for a batch norm, and any other module as it is."""
    if type(module) is not nn.BatchNorm2d:
        return module
    synchronized = SyncBatchNorm2d(module.num_features, module.eps, module.momentum)
    synchronized.load_state_dict(module.state_dict(), assign=True)
    return synchronized
