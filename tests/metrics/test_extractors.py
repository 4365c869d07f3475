"""The extractors, with weights created here: the published ones cannot be downloaded in tests."""

from pathlib import Path
from typing import Any

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


def publish(monkeypatch: pytest.MonkeyPatch, name: str, path: Path) -> None:
    """Let a file created here pass for the published one."""
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
    """If it fails, weights are left out, images have another range, or grey and colour differ."""
    publish(monkeypatch, "dinov2_vits14", dinov2)
    with pytest.raises(
        UserError, match=r"^evaluate\.feature_resolution: found 128, .* 14 px; the nearest are 126 and 140"
    ):
        extractors.build("dinov2_vits14", 128, str(dinov2))
    extractor = extractors.build("dinov2_vits14", 56, str(dinov2.parent))
    assert isinstance(extractor, extractors.DinoV2)
    theirs: Any = timm.create_model("vit_small_patch14_dinov2", img_size=56, num_classes=0).eval()
    theirs.load_state_dict(extractor.network.state_dict())
    large = torch.load(dinov2, weights_only=True)
    assert all(torch.equal(v, large[k]) for k, v in theirs.state_dict().items() if k != "pos_embed")
    images = torch.randint(0, 256, (2, 3, 56, 56), dtype=torch.uint8)
    x = (images / 255 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor(
        [0.229, 0.224, 0.225]
    )[:, None, None]
    with torch.no_grad():
        assert torch.allclose(extractor(images), theirs(x), atol=1e-4)
        features, layout = extractor.with_layout(images)
        assert torch.equal(features, extractor(images)) and layout.shape == (2, 384 * 16)
        patches = theirs.forward_features(x)[:, 1:].transpose(1, 2)
        assert torch.allclose(layout.unflatten(1, (384, 16)), patches, atol=1e-4)
        assert torch.equal(extractor(images[:, :1]), extractor(images[:, :1].repeat(1, 3, 1, 1)))


@pytest.mark.long
def test_inception_is_torch_fidelitys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """If it fails, the FID is that of another network, or the file is read unsafely."""
    torch.manual_seed(0)
    path = tmp_path / "weights.pth"
    blank = FeatureExtractorInceptionV3.__init__

    def tensors() -> dict[str, torch.Tensor]:
        stored: dict[str, torch.Tensor] = {}
        monkeypatch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, _: stored)
        monkeypatch.setattr(torch, "load", lambda *_, **__: {})
        network = FeatureExtractorInceptionV3("x", ["2048"], "none")
        monkeypatch.undo()
        return network.state_dict()

    assert blank is FeatureExtractorInceptionV3.__init__
    torch.save(tensors(), path)
    publish(monkeypatch, "inception", path)
    extractor = extractors.build("inception", 64, str(path))
    theirs = FeatureExtractorInceptionV3("x", ["2048"], str(path))
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    with torch.no_grad():
        (expected,) = theirs(images)
        assert torch.equal(extractor(images), expected) and extractor.resolution == 299
        assert extractor(images[:, :1]).shape == (2, 2048)
        features, layout = extractor.with_layout(images)
        assert torch.allclose(layout.unflatten(1, (2048, 16)).mean(2), features, atol=1e-5)
    assert "sha256" in extractor.protocol and "299 px" in extractor.protocol
    torch.save({"fc.weight": torch.zeros(1)}, path)
    publish(monkeypatch, "inception", path)
    with pytest.raises(UserError, match="does not fit the weights of inception"):
        extractors.build("inception", 64, str(path))


def test_weights_are_looked_for_in_order_and_checked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dinov2: Path
) -> None:
    """If it fails, wrong or damaged weights are used silently, or users do not learn how to get them."""
    publish(monkeypatch, "dinov2_vits14", dinov2)
    monkeypatch.delenv("GANPIPE_WEIGHTS", raising=False)
    words = r"no weights of .*download dinov2_vits14_pretrain.pth \(sha256 [0-9a-f]{64}\) from https://example.org/"
    with pytest.raises(UserError, match=words):
        extractors.build("dinov2_vits14", 56, None)
    monkeypatch.setenv("GANPIPE_WEIGHTS", str(dinov2.parent))
    extractors.build("dinov2_vits14", 56, None)
    with pytest.raises(UserError, match=f"^evaluate.weights: .*{tmp_path}/none does not exist"):
        extractors.build("dinov2_vits14", 56, str(tmp_path / "none"))
    content = bytearray(dinov2.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / dinov2.name).write_bytes(content)
    with pytest.raises(UserError, match="damaged or of another version: found sha256") as error:
        extractors.build("dinov2_vits14", 56, str(tmp_path))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="the weights of EfficientNet-Lite0 are damaged"):
        extractors.build("lite0", 32, str(tmp_path / dinov2.name))


def test_published_digests() -> None:
    """If it fails, a typing error refuses the right file; Inception's name contains the first digits."""
    assert WEIGHTS["inception"].file.rpartition("-")[2] == f"{WEIGHTS['inception'].sha256[:8]}.pth"
    assert all(len(weights.sha256) == 64 for weights in WEIGHTS.values())


def test_the_layout_is_where_the_features_are() -> None:
    """If it fails, the layout is of other maps or places, or the contrast is wrong."""
    extractor = extractors.build("lite0", 128, None)
    images = torch.from_numpy(digits()[:2]).permute(0, 3, 1, 2)
    with torch.inference_mode():
        features, layout = extractor.with_layout(images)
        assert torch.equal(features, extractor(images))
        cells = layout.unflatten(1, (1280, 16))
        assert torch.allclose(cells.mean(2), features, atol=1e-5) and cells.std(2).mean() > 0.1
        assert extractors.build("lite0", 64, None).with_layout(images)[1].shape == (2, 1280 * 4)
        assert extractors.build("lite0", 32, None).with_layout(images)[1].shape == (2, 0)
        maps = torch.arange(64.0).reshape(1, 1, 8, 8)
        assert lite0.grid_means(maps)[0, :5].tolist() == [4.5, 6.5, 8.5, 10.5, 20.5]
        seen = extractors.Seen(extractor)(images)
    assert torch.equal(seen[:, :1280], features) and torch.equal(seen[:, 1281:], layout)
    assert seen[:, 1].numel() == 2 and seen[:, 1280].tolist() == pytest.approx(
        digits()[:2].std((1, 2, 3)), 1e-5
    )


def test_pixels_are_pixels_and_grey_is_repeated() -> None:
    """If it fails, tests that rely on pixels as features measure something else."""
    features = lite0.extract(extractors.build("pixels", 28, None), digits()[:3], 2, "cpu")
    expected = np.repeat(digits()[:3].reshape(3, 1, -1), 3, axis=1).reshape(3, -1) / 255
    assert features == pytest.approx(expected, abs=1e-6)
    with pytest.raises(UserError, match="^evaluate.extractor: found 'vgg', expected lite0"):
        extractors.build("vgg", 32, None)
