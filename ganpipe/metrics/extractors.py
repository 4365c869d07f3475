"""The networks that compute features of images, with weights that are read and checked, never downloaded."""

import io
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ganpipe.common.errors import ParamError, UserError
from ganpipe.metrics.lite0 import Extractor, Lite0, Lite2, grid_means, read_weights, resized

FOLDER_VARIABLE = "GANPIPE_WEIGHTS"
PATCH_SIDE = 14  # of DINOv2, in pixels
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and sd of each colour, for DINOv2
# Pixels of a batch. 16 images of 128 px are fastest on the CPU; the bound also limits the memory.
BATCH_PIXELS = 16 * 128**2


class Weights(NamedTuple):
    """A published file of weights."""

    file: str
    sha256: str
    address: str


WEIGHTS = {
    "inception": Weights(
        "weights-inception-2015-12-05-6726825d.pth",
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/",
    ),
    "dinov2_vits14": Weights(
        "dinov2_vits14_pretrain.pth",
        "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9",
        "https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/",
    ),
}


class Inception(Extractor):
    """The Inception network of the FID, ported from TensorFlow with its own bilinear resize, at 299 px."""

    name = "inception"
    resolution, dimension = 299, 2048

    def __init__(self, weights: str | None) -> None:
        super().__init__()
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError:
            problem = "inception needs another package; install it with: pip install 'ganpipe[fid]'"
            raise ParamError("extractor", problem) from None
        tensors = _published_weights(self.name, weights)
        # The package unpickles a file without weights_only, so it gets a copy of the tensors read safely.
        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        buffer.seek(0)
        try:
            self.network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], buffer)
        except RuntimeError:
            raise _misfit("torch-fidelity", self.name) from None
        self.protocol = (
            f"Inception-v3 of the FID sha256:{WEIGHTS[self.name].sha256[:8]}, pooled 2048, "
            "299 px TensorFlow 1 bilinear, (x-128)/128"
        )

    def with_layout(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features and `grid_means` of the maps before the pooling."""
        maps: list[torch.Tensor] = []
        with self.network.Mixed_7c.register_forward_hook(lambda _module, _inputs, out: maps.append(out)):
            (features,) = self.network(images.expand(-1, 3, -1, -1))
        return features, grid_means(maps[0])


class DinoV2(Extractor):
    """DINOv2's small vision transformer (Oquab et al. 2023) as timm builds it; its class token."""

    name = "dinov2_vits14"
    dimension = 384

    def __init__(self, resolution: int, weights: str | None) -> None:
        import timm
        from timm.models.vision_transformer import checkpoint_filter_fn

        super().__init__()
        if resolution % PATCH_SIDE:
            below = resolution // PATCH_SIDE * PATCH_SIDE
            needed = f"dinov2_vits14 needs a multiple of its patches of {PATCH_SIDE} px"
            nearest = f"the nearest are {below} and {below + PATCH_SIDE}, and 224 is usual"
            raise ParamError("feature_resolution", f"found {resolution}, but {needed}; {nearest}")
        self.resolution = resolution
        network: Any = timm.create_model("vit_small_patch14_dinov2", img_size=resolution, num_classes=0)
        tensors = _published_weights(self.name, weights)
        try:
            network.load_state_dict(checkpoint_filter_fn(tensors, network))
        except (RuntimeError, KeyError):
            raise _misfit("timm", self.name) from None
        self.network = network
        mean, sd = (torch.tensor(colours).mul(255)[:, None, None] for colours in IMAGENET)
        self.mean, self.sd = torch.nn.Buffer(mean, persistent=False), torch.nn.Buffer(sd, persistent=False)
        self.protocol = (
            f"DINOv2 ViT-S/14 sha256:{WEIGHTS[self.name].sha256[:8]}, class token 384, {resolution} px "
            "float bilinear antialias, ImageNet's mean and sd"
        )
        self.eval().requires_grad_(False)

    def with_layout(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features and `grid_means` of the patches' tokens."""
        tokens = self.network.forward_features((resized(images, self.resolution) - self.mean) / self.sd)
        patches = tokens[:, self.network.num_prefix_tokens :].transpose(1, 2)
        maps = patches.unflatten(2, (self.resolution // PATCH_SIDE, -1))
        return self.network.forward_head(tokens), grid_means(maps)


class Pixels(Extractor):
    """The pixels themselves as features, for tests: brightness in [0, 1] at a resolution."""

    name = "pixels"

    def __init__(self, resolution: int) -> None:
        super().__init__()
        self.resolution, self.dimension = resolution, 3 * resolution**2
        self.protocol = f"pixels, {resolution} px float bilinear antialias, x/255"

    def with_layout(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the pixels twice: they know their places."""
        return (features := resized(images, self.resolution).expand(-1, 3, -1, -1).flatten(1) / 255), features


class Seen(torch.nn.Module):
    """All that is measured of an image in one pass: features, their layout, and the image's contrast."""

    def __init__(self, extractor: Extractor) -> None:
        super().__init__()
        self.extractor = extractor

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map uint8 N×C×H×W in [0, 255] to float32 N×(d + 1 + k): features, contrast, layout.

        The contrast is the standard deviation of the pixels, the root mean square over the colours.
        """
        contrast = images.float().var((2, 3), correction=0).mean(1, keepdim=True).sqrt()
        features, layout = self.extractor.with_layout(images)
        return torch.cat([features, contrast, layout], 1)


def build(name: str, resolution: int, weights: str | None) -> Extractor:
    """Build an extractor.

    Args:
        name: lite0, lite2, inception, dinov2_vits14 or pixels.
        resolution: pixels a side at which it sees the images; inception always sees 299.
        weights: a file, or a folder that holds it under its published name. None: the folder GANPIPE_WEIGHTS,
            else the installed package that contains it.

    Raises:
        UserError: the name is unknown, the resolution does not suit the network, the weights are missing or
            not the published ones, or a package is not installed.
    """
    match name:
        case "lite0" | "lite2":
            network = Lite0 if name == "lite0" else Lite2
            return network(resolution, _path(network.package_file().name, weights))
        case "inception":
            return Inception(weights)
        case "dinov2_vits14":
            return DinoV2(resolution, weights)
        case "pixels":
            return Pixels(resolution)
    known = "lite0, lite2, inception, dinov2_vits14 or pixels"
    raise ParamError("extractor", f"found {name!r}, expected {known}")


def batch_size(extractor: Extractor) -> int:
    """Return how many images an extractor should see at once."""
    return max(1, BATCH_PIXELS // extractor.resolution**2)


def _path(file: str, weights: str | None) -> Path | None:
    """Return where the user put a file of weights, existing or not; None: nowhere."""
    if weights:
        return Path(weights) / file if Path(weights).is_dir() else Path(weights)
    folder = os.environ.get(FOLDER_VARIABLE)
    path = Path(folder or "") / file
    return path if folder and path.is_file() else None


def _published_weights(name: str, weights: str | None) -> dict[str, torch.Tensor]:
    published = WEIGHTS[name]
    remedy = f"download {published.file} (sha256 {published.sha256}) from {published.address}"
    path = _path(published.file, weights)
    if path is None or not path.is_file():
        folder = os.environ.get(FOLDER_VARIABLE, "not set")
        reason = f"{path} does not exist" if path else f"not given, nor in {FOLDER_VARIABLE} ({folder})"
        raise ParamError(
            "weights", f"no weights of {name}: {reason}; {remedy}, and give it here or put it in that folder"
        )
    return read_weights(path, published.sha256, name, remedy)


def _misfit(package: str, name: str) -> UserError:
    problem = f"{package}: its network does not fit the weights of {name}"
    return UserError(f"{problem}; install a version of it that pyproject.toml allows")
