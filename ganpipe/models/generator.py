"""Snapshots: the weights of a generator to sample from, and the images that they give."""

import io
import json
import math
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import nn
from torch.nn import functional

from ganpipe import models
from ganpipe.common import files
from ganpipe.common import seeds as rng
from ganpipe.common.errors import UserError
from ganpipe.models.pixels import to_uint8
from ganpipe.params import Model

# Images that pass the network at once. As fast as 64 on a CPU, and 16 of 1,024 px fit anywhere.
BATCH = 16
# What may be asked for: images at a time, the factor on z, and seeds.
MOST = 10_000_000  # images at a time
MOST_SCALE = 100.0
SEEDS = 2**63


def save(G: nn.Module, path: Path) -> None:
    """Write a generator's weights and batch norm statistics in the safetensors format."""
    with files.whole(path) as temporary:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in G.state_dict().items()}
        safetensors.torch.save_file(tensors, temporary)


def description(path: Path) -> tuple[Model, int, int]:
    """Read what the generator is: its section of the params, its resolution and its channels.

    Raises:
        UserError: the file is missing or says something else.
    """
    try:
        return parse_description(path.read_text(encoding="utf-8"), path)
    except OSError as error:
        raise UserError(f"{path}: no readable description ({error}); run the train stage") from None


def parse_description(text: str, place: Path) -> tuple[Model, int, int]:
    """Read the same from JSON that stands at a place, model.json or the header of weights.

    Raises:
        UserError: it says something else.
    """
    try:
        found = json.loads(text)
        model = Model(**{key: found[key] for key in Model.model_fields})
        return model, int(found["resolution"]), int(found["channels"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{place}: no readable description ({error}); run the train stage") from None


def load(path: Path, model: Model, resolution: int, channels: int) -> nn.Module:
    """Build a generator and read its weights, in eval mode on the CPU.

    Raises:
        UserError: the file is missing, damaged or of another network.
    """
    G = models.build_generator(model, resolution, channels)
    try:
        G.load_state_dict(safetensors.torch.load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path}: no weights of this generator ({reason}); run the train stage again"
        ) from None
    return G.eval().requires_grad_(False)


@torch.inference_mode()
def images_of(G: nn.Module, z: torch.Tensor) -> np.ndarray:
    """Turn latent vectors float32 N×nz into images uint8 N×H×W×C in [0, 255], in batches.

    The network is in eval mode meanwhile, so that an image depends on its z alone and nothing in it changes.
    Every batch is a full one, the last filled up with zeros: CPU kernels round otherwise for odd batch sizes,
    and image i of 3 would differ from image i of 500.
    """
    device, training = next(G.parameters()).device, G.training
    G.eval()
    full = functional.pad(z, (0, 0, 0, -len(z) % BATCH))
    images = np.concatenate([to_uint8(G(part.to(device))) for part in full.split(BATCH)])[: len(z)]
    G.train(training)
    return images


def draw_z(params: Model, count: int, source: torch.Generator) -> torch.Tensor:
    """Draw `count` latent vectors, float32 count×nz on the CPU, from the distribution in `params`."""
    shape, limit = (count, params.nz), params.z_limit
    if params.z_distribution == "uniform":
        assert limit is not None
        return (torch.rand(shape, generator=source) * 2 - 1) * limit
    z = torch.randn(shape, generator=source)
    while limit is not None and (beyond := z.abs() > limit).any():
        z = torch.where(beyond, torch.randn(shape, generator=source), z)
    return z


def z_of_seeds(model: Model, first_seed: int, count: int, z_scale: float) -> torch.Tensor:
    """Draw one latent vector for each seed from first_seed on, times z_scale; float32 count×nz on the CPU."""
    z = [draw_z(model, 1, rng.generator(first_seed + i, "sample")) for i in range(count)]
    return z_scale * torch.cat(z)


def check(n: int, seed: int, z_scale: float, most: int = MOST) -> None:
    """Refuse values that make no images.

    Raises:
        UserError: one sentence.
    """
    if not 1 <= n <= most:
        raise UserError(f"n: found {n}, but it must be between 1 and {most:,}")
    if not 0 <= seed <= SEEDS - n:
        raise UserError(f"seed: found {seed}, but seeds are between 0 and 2^63 - 1, the last image's too")
    if not (math.isfinite(z_scale) and 0 < z_scale <= MOST_SCALE):
        raise UserError(f"z_scale: found {z_scale}, but it must be above 0 and at most {MOST_SCALE:g}")


def png(image: np.ndarray) -> bytes:
    """Return an image uint8 H×W×C in [0, 255] as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()
