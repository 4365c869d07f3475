"""A trained generator: its weights file, latent vectors from seeds, and the images generated from them."""

import difflib
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn import functional

from ganpipe import models
from ganpipe.common import files, seeds
from ganpipe.common.errors import UserError
from ganpipe.models.layers import NetworkSpec
from ganpipe.models.pixels import to_uint8
from ganpipe.params import Model

BATCH = 16  # images per forward pass: as fast as 64 on a CPU, and 16 of 1,024 px fit in any memory
# Upper limits of a request: number of images, factor on z, and seeds (exclusive).
MAX_IMAGES = 10_000_000
MAX_Z_SCALE = 100.0
SEEDS = 2**63
HEADER = "ganpipe"  # key of the safetensors metadata whose value is the specification as JSON
# Params that the header has only with other values, and never those of D: so that a generator's bytes do not
# depend on D, and those of weights from before these params stay.
UNSTATED: dict[str, Any] = {"d_first_channels": None, "last_stride": 2, "trunk_halvings": 5}
UNSTATED |= {"conditional": False, "classes": {}}
# Length of a class beside z, in units of √nz, the length of a normal z. After 1,391 steps on digits, with
# 0.1, 0.3 and 1, 81, 97 and 65 % of the images were of their class; with 1 each class was nearly one image.
CLASS_LENGTH = 0.3
CLASS_ROWS = 16  # of a grid that has a row for each class, or fewer at a resolution above 64 px


@dataclass(frozen=True)
class TrainedGenerator:
    """A generator loaded from a weights file, in eval mode on the CPU, without gradients."""

    network: nn.Module  # float32 N×`spec.inputs` → float32 N×C×H×W in [-1, 1]
    spec: NetworkSpec


def save_generator(G: nn.Module, spec: NetworkSpec, path: Path) -> None:
    """Write weights and batch norm statistics as safetensors, with the network's specification in the header.

    The bytes depend on the weights and the specification alone.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in G.state_dict().items()}
    values = spec.params.model_dump(exclude={"d_first_channels"}) | {"resolution": spec.resolution}
    values |= {"channels": spec.channels, "classes": dict(spec.classes)}
    description = {k: v for k, v in values.items() if k not in UNSTATED or v != UNSTATED[k]}
    header = {HEADER: json.dumps(description, separators=(",", ":"))}
    with files.whole(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, header)


def load_generator(path: Path) -> TrainedGenerator:
    """Build the generator that a weights file's header describes, and load its weights.

    Raises UserError: the file is missing or damaged, its header describes no network, or another network.
    """
    try:
        with safe_open(path, "pt") as file:
            header = (file.metadata() or {}).get(HEADER)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not a readable .safetensors file ({error}); run the train stage") from None
    if header is None:
        raise UserError(f"{path}: the header lacks the key {HEADER!r}; give a file that ganpipe wrote")
    try:
        description = UNSTATED | json.loads(header)
        params = Model(**{name: description[name] for name in Model.model_fields})
        classes = {str(name): int(count) for name, count in description["classes"].items()}
        if params.conditional != (len(classes) > 1) or min(classes.values(), default=1) < 1:
            raise ValueError(f"conditional is {params.conditional}, with {len(classes)} classes")
        spec = NetworkSpec(params, int(description["resolution"]), int(description["channels"]), classes)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: the header's description is not readable ({error}); train again") from None
    G = models.build_generator(spec)
    try:
        G.load_state_dict(safetensors.torch.load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = f"the weights do not fit the header's network ({str(error).splitlines()[0]})"
        raise UserError(f"{path}: {reason}; train again") from None
    return TrainedGenerator(G.eval().requires_grad_(False), spec)


@torch.inference_mode()
def images_of(G: nn.Module, z: torch.Tensor) -> np.ndarray:
    """Generate images uint8 N×H×W×C in [0, 255] from latent vectors, in batches of BATCH.

    The network runs in eval mode, so that each image depends only on its row of `z`, float32 N×inputs, and
    the network does not change. The last batch is padded with zeros to the full size, because CPU kernels
    round differently for other batch sizes: image i of 3 would differ from image i of 500.
    """
    device, training = next(G.parameters()).device, G.training
    G.eval()
    padded = functional.pad(z, (0, 0, 0, -len(z) % BATCH))
    images = np.concatenate([to_uint8(G(part.to(device))) for part in padded.split(BATCH)])[: len(z)]
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


def z_of_seeds(params: Model, first_seed: int, count: int, z_scale: float) -> torch.Tensor:
    """Draw one latent vector per seed from first_seed on, times z_scale; float32 count×nz on the CPU."""
    z = [draw_z(params, 1, seeds.generator(first_seed + i, "sample")) for i in range(count)]
    return z_scale * torch.cat(z)


def with_classes(spec: NetworkSpec, z: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Join z, float32 N×nz, with the numbers of classes, int64 N: latent vectors float32 N×inputs.

    A class has CLASS_LENGTH instead of 1, or G would let z decide more than the class.
    """
    length = CLASS_LENGTH * math.sqrt(spec.params.nz)
    return torch.cat([z, length * torch.eye(len(spec.classes))[numbers]], 1)


def classes_of_seeds(classes: Mapping[str, int], first_seed: int, count: int) -> torch.Tensor:
    """Draw a class for each seed, int64 count: as often as training images have it, so that both compare."""
    ends = torch.tensor(list(classes.values())).cumsum(0)
    sources = (seeds.generator(first_seed + i, "class") for i in range(count))
    images = [torch.randint(int(ends[-1]), (1,), generator=source) for source in sources]
    return torch.searchsorted(ends, torch.cat(images), right=True)


def latents_of_seeds(
    spec: NetworkSpec, first_seed: int, count: int, z_scale: float, number: int | None = None
) -> torch.Tensor:
    """Return latent vectors of seeds, float32 count×inputs, of class `number`; None: each draws its own."""
    z = z_of_seeds(spec.params, first_seed, count, z_scale)
    if not spec.classes:
        return z
    if number is None:
        return with_classes(spec, z, classes_of_seeds(spec.classes, first_seed, count))
    return with_classes(spec, z, torch.full((count,), number))


def class_rows(spec: NetworkSpec, z: torch.Tensor) -> torch.Tensor:
    """Join z, float32 N×nz, with each of the first classes: latent vectors of a grid with a row a class."""
    rows = torch.arange(min(len(spec.classes), max(2, min(CLASS_ROWS, 1024 // spec.resolution))))
    return with_classes(spec, z.repeat(len(rows), 1), rows.repeat_interleave(len(z)))


def class_number(spec: NetworkSpec, name: str) -> int:
    """Return the number of a class.

    Raises UserError: the generator has no class of this name.
    """
    if name in spec.classes:
        return list(spec.classes).index(name)
    if not spec.classes:
        raise UserError(f"class: found {name!r}, but the generator was trained with model.conditional=false")
    near = difflib.get_close_matches(name, spec.classes, 3, 0.4) or list(spec.classes)[:10]
    known = f"it has {len(spec.classes)}, such as {', '.join(near)}"
    raise UserError(f"class: the generator has no class {name!r}; {known}")


def check_request(n: int, seed: int, z_scale: float, max_images: int = MAX_IMAGES) -> None:
    """Check the values of a command or an HTTP request that generates images.

    Raises UserError: the number of images n, the first seed or the factor z_scale on z is out of its range.
    """
    if not 1 <= n <= max_images:
        raise UserError(f"n: found {n}, but it must be between 1 and {max_images:,}")
    if not 0 <= seed <= SEEDS - n:
        raise UserError(f"seed: found {seed}, but the seeds of all images must be between 0 and 2^63 - 1")
    if not (math.isfinite(z_scale) and 0 < z_scale <= MAX_Z_SCALE):
        raise UserError(f"z_scale: found {z_scale}, but it must be above 0 and at most {MAX_Z_SCALE:g}")


def png_bytes(image: np.ndarray, note: str = "") -> bytes:
    """Encode an image uint8 H×W×C in [0, 255] as a PNG file, with a note, if any, as its description."""
    buffer, chunks = io.BytesIO(), PngInfo()
    if note:
        chunks.add_text("Description", note)
    Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()
