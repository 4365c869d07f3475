"""Snapshots: the weights of a generator to sample from, and the images that they give."""

import json
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn import functional

from ganpipe import files, models, rng
from ganpipe.errors import UserError
from ganpipe.params import Model
from ganpipe.pixels import to_uint8

# Images that pass the network at once. As fast as 64 on a CPU, and 16 of 1,024 px fit anywhere.
BATCH = 16


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
    G = models.generator(model, resolution, channels)
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


def z_of_seeds(model: Model, first_seed: int, count: int, z_scale: float) -> torch.Tensor:
    """Draw one latent vector for each seed from first_seed on, times z_scale; float32 count×nz on the CPU."""
    z = [rng.draw_z(model, 1, rng.generator(first_seed + i, "sample")) for i in range(count)]
    return z_scale * torch.cat(z)
