"""The two image conventions: uint8 N×H×W×C in [0, 255] on disk, float32 N×C×H×W in [-1, 1] in networks."""

import numpy as np
import torch


def to_float(images: torch.Tensor) -> torch.Tensor:
    """Turn uint8 N×H×W×C in [0, 255] into float32 N×C×H×W in [-1, 1], laid out in memory as channels_last."""
    return images.permute(0, 3, 1, 2).to(torch.float32).div_(127.5).sub_(1)


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """Turn float N×C×H×W in [-1, 1] into uint8 N×H×W×C in [0, 255]: one scale for all images, clipped."""
    scaled = images.detach().to(torch.float32).add(1).mul(127.5).round_().clamp_(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
