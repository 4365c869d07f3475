"""Computing a network's layers in bfloat16, where that is safe."""

import torch
from torch import nn


def apply(network: nn.Module, precision: str, device_type: str) -> None:
    """Make a network compute in a precision from now on; it still gives float32.

    Args:
        network: its weights, gradients and batch norm statistics stay float32.
        precision: "float32" (nothing changes) or "bfloat16": convolutions and dense layers in bfloat16, as
            torch.autocast does it.
        device_type: "cpu" or "cuda".
    """
    if precision == "float32":
        return
    plain = network.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device_type, torch.bfloat16):
            out: torch.Tensor = plain(x)
        return out.float()

    network.forward = forward
