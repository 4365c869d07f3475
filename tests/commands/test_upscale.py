"""`ganpipe generate --upscale`: Lanczos, and Real-ESRGAN where the extra `upscale` is installed."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import save_generator
from PIL import Image
from typer.testing import CliRunner

from ganpipe.cli import app
from ganpipe.commands import upscale
from ganpipe.commands.generate import GenerateOptions, generate
from ganpipe.commands.picks import Pick, picks_json
from ganpipe.common.errors import UserError
from ganpipe.common.files import sha256
from ganpipe.params import Params

needs_network = pytest.mark.skipif(find_spec("ncnn") is None, reason="needs the extra `upscale`")


@pytest.fixture
def lanczos(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the extra `upscale`, which may be installed."""
    monkeypatch.setattr(upscale, "find_spec", lambda name: None)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, small_params: Params) -> Path:
    """A checkout with a generator of 16 px."""
    folder = tmp_path_factory.mktemp("checkout")
    save_generator(folder / "stages/train", small_params)
    return folder


def photograph() -> np.ndarray:
    """A smooth coloured image with an edge, uint8 1×24×24×3."""
    y, x = np.mgrid[:24, :24] / 24
    return (255 * np.stack([x, y, (x + y > 1) * 0.8], -1)[None]).astype(np.uint8)


@pytest.mark.parametrize("factor", [2, 4])
def test_lanczos_enlarges_what_is_written(
    lanczos: None, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], factor: int
) -> None:
    """A failure means that --upscale writes other images than the generator's, or does not say how."""
    for name, times in (("small.npy", 1), ("large.npy", factor), ("large", factor)):
        generate(None, tmp_path / name, GenerateOptions(n=18, upscale=times), root)
    small, large = (np.load(tmp_path / name) for name in ("small.npy", "large.npy"))
    for before, after, png in zip(small, large, sorted((tmp_path / "large").iterdir()), strict=True):
        side = 16 * factor
        expected = Image.fromarray(before[..., 0]).resize((side, side), Image.Resampling.LANCZOS)
        assert np.array_equal(after[..., 0], np.asarray(expected))
        with Image.open(png) as picture:
            assert np.array_equal(after[..., 0], np.asarray(picture))
            assert picture.info["Description"] == "enlarged from 16 px with Lanczos"
    said = capsys.readouterr().out
    assert said.count(f"18 images of {side} px, enlarged from 16 px with Lanczos, seeds 0 to 17") == 2


def test_picks_are_enlarged(lanczos: None, root: Path, tmp_path: Path) -> None:
    """A failure means that the images chosen in the explorer cannot be enlarged, or are others."""
    weights = root / "stages/train/generator.safetensors"
    picks = [Pick(seed, torch.randn(8, generator=torch.Generator().manual_seed(seed))) for seed in (3, 4)]
    (tmp_path / "picks.json").write_text(picks_json(picks, sha256(weights), None))
    for name, times in (("small.npy", 1), ("large.npy", 2)):
        options = GenerateOptions(picks=tmp_path / "picks.json", upscale=times)
        generate(None, tmp_path / name, options, root)
    small, large = (np.load(tmp_path / name) for name in ("small.npy", "large.npy"))
    assert np.array_equal(large, upscale.enlarger(2)[0](small)) and large.shape == (2, 32, 32, 1)


def test_images_as_they_are_have_no_note(lanczos: None, root: Path, tmp_path: Path) -> None:
    """A failure means that `ganpipe generate` writes other bytes than before --upscale existed."""
    generate(None, tmp_path / "plain", GenerateOptions(n=1), root)
    png = (tmp_path / "plain/0.png").read_bytes()
    assert b"tEXt" not in png and Image.open(tmp_path / "plain/0.png").size == (16, 16)


@pytest.mark.parametrize("value", ["0", "3", "-2", "8", "big"])
def test_other_factors_are_refused(value: str) -> None:
    """A failure means a traceback, or images of a size that nobody asked for."""
    ended = CliRunner().invoke(app, ["generate", "--upscale", value])
    assert ended.exit_code == 2 and f"'{value}' is not one of '2', '4'" in ended.stderr


@needs_network
@pytest.mark.parametrize("channels", [1, 3])
def test_the_network_keeps_the_picture(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure means that colours are swapped, memory is read after it is freed, or tiles do not meet."""
    images = np.concatenate([photograph(), photograph()[:, ::-1]])[..., :channels]
    enlarge, method = upscale.enlarger(4)
    large = enlarge(images)
    assert method == "Real-ESRGAN" and large.shape == (2, 96, 96, channels) and large.dtype == np.uint8
    blocks = large.reshape(2, 24, 4, 24, 4, channels).mean((2, 4))
    assert np.abs(blocks - images).mean() < 12
    halved = upscale.enlarger(2)[0](images)
    means = large.reshape(2, 48, 2, 48, 2, channels).mean((2, 4))
    assert np.abs(halved - means).max() <= 1
    monkeypatch.setattr(upscale, "TILE", 16)
    assert np.abs(enlarge(images).astype(int) - large).mean() < 4


@needs_network
def test_damaged_weights_get_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure means that black images are written without a word."""
    (tmp_path / "models").mkdir()
    spec: Any = type("Spec", (), {"origin": str(tmp_path / "__init__.py")})
    monkeypatch.setattr(upscale, "find_spec", lambda name: spec)
    with pytest.raises(UserError, match="not readable; `pip install --force-reinstall"):
        upscale.enlarger(4)
