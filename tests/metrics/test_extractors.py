"""The networks of the metrics, with weights made here: the published ones cannot be had without a network."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import digits
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from ganpipe.common import files
from ganpipe.common.errors import UserError
from ganpipe.metrics import extractors, lite0
from ganpipe.metrics.extractors import WEIGHTS, Weights


def known(monkeypatch: pytest.MonkeyPatch, name: str, path: Path) -> None:
    """Take a file made here for the published one."""
    monkeypatch.setitem(WEIGHTS, name, Weights(path.name, files.sha256(path), "https://example.org/"))


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights with the published file's keys: those of 518 px, with the mask that training used."""
    torch.manual_seed(0)
    tensors = timm.create_model("vit_small_patch14_dinov2", num_classes=0).state_dict()
    path = tmp_path_factory.mktemp("weights") / "dinov2_vits14_pretrain.pth"
    torch.save(tensors | {"mask_token": torch.zeros(1, 384)}, path)
    return path


def test_dinov2_sees_what_timm_does(monkeypatch: pytest.MonkeyPatch, dinov2: Path) -> None:
    """Weights would be left out, or images come in another range; grey and colour differ."""
    known(monkeypatch, "dinov2_vits14", dinov2)
    with pytest.raises(UserError, match=r"patches of 14 px; found 128, the nearest sides are 126 and 140"):
        extractors.build("dinov2_vits14", 128, str(dinov2))
    found = extractors.build("dinov2_vits14", 56, str(dinov2.parent))
    assert isinstance(found, extractors.DinoV2)
    theirs = timm.create_model("vit_small_patch14_dinov2", img_size=56, num_classes=0).eval()
    theirs.load_state_dict(found.network.state_dict())
    large = torch.load(dinov2, weights_only=True)
    assert all(torch.equal(v, large[k]) for k, v in theirs.state_dict().items() if k != "pos_embed")
    images = torch.randint(0, 256, (2, 3, 56, 56), dtype=torch.uint8)
    x = (images / 255 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor(
        [0.229, 0.224, 0.225]
    )[:, None, None]
    with torch.no_grad():
        assert torch.allclose(found(images), theirs(x), atol=1e-4)
        assert torch.equal(found(images[:, :1]), found(images[:, :1].repeat(1, 3, 1, 1)))


@pytest.mark.long
def test_inception_is_torch_fidelitys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """FID would be of another network than the published one's, or read the file unsafely."""
    torch.manual_seed(0)
    path = tmp_path / "weights.pth"
    blank = FeatureExtractorInceptionV3.__init__

    def tensors() -> dict[str, torch.Tensor]:
        kept: dict[str, torch.Tensor] = {}
        monkeypatch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, _: kept)
        monkeypatch.setattr(torch, "load", lambda *_, **__: {})
        network = FeatureExtractorInceptionV3("x", ["2048"], "none")
        monkeypatch.undo()
        return network.state_dict()

    assert blank is FeatureExtractorInceptionV3.__init__
    torch.save(tensors(), path)
    known(monkeypatch, "inception", path)
    found = extractors.build("inception", 64, str(path))
    theirs = FeatureExtractorInceptionV3("x", ["2048"], str(path))
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    with torch.no_grad():
        (expected,) = theirs(images)
        assert torch.equal(found(images), expected) and found.resolution == 299
        assert found(images[:, :1]).shape == (2, 2048)
    assert "sha256" in found.protocol and "299 px" in found.protocol
    torch.save({"fc.weight": torch.zeros(1)}, path)
    known(monkeypatch, "inception", path)
    with pytest.raises(UserError, match="does not fit the weights of inception"):
        extractors.build("inception", 64, str(path))


def test_weights_are_looked_for_in_order_and_checked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dinov2: Path
) -> None:
    """Other weights would be read in silence, or a damaged file; or people not learn how to get them."""
    known(monkeypatch, "dinov2_vits14", dinov2)
    monkeypatch.delenv("GANPIPE_WEIGHTS", raising=False)
    words = r"not there .*get dinov2_vits14_pretrain.pth \(sha256 [0-9a-f]{64}\) from https://example.org/"
    with pytest.raises(UserError, match=words):
        extractors.build("dinov2_vits14", 56, None)
    monkeypatch.setenv("GANPIPE_WEIGHTS", str(dinov2.parent))
    extractors.build("dinov2_vits14", 56, None)
    with pytest.raises(UserError, match=f"{tmp_path}/none.*"):
        extractors.build("dinov2_vits14", 56, str(tmp_path / "none"))
    content = bytearray(dinov2.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / dinov2.name).write_bytes(content)
    with pytest.raises(UserError, match="damaged or others: sha256") as error:
        extractors.build("dinov2_vits14", 56, str(tmp_path))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="EfficientNet-Lite0's weights are damaged"):
        extractors.build("lite0", 32, str(tmp_path / dinov2.name))


def test_published_digests() -> None:
    """A slip in the constants would refuse the right file; the first digits stand in Inception's name."""
    assert WEIGHTS["inception"].file.rpartition("-")[2] == f"{WEIGHTS['inception'].sha256[:8]}.pth"
    assert all(len(each.sha256) == 64 for each in WEIGHTS.values())


def test_pixels_are_pixels_and_grey_is_repeated() -> None:
    """Tests that count on them would measure something else."""
    found = lite0.extract(extractors.build("pixels", 28, None), digits()[:3], 2, "cpu")
    expected = np.repeat(digits()[:3].reshape(3, 1, -1), 3, axis=1).reshape(3, -1) / 255
    assert found == pytest.approx(expected, abs=1e-6)
    with pytest.raises(UserError, match="found 'vgg', known are lite0"):
        extractors.build("vgg", 32, None)
