"""The sample stage."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import digits, updated
from PIL import Image

from ganpipe import models, snapshot, train
from ganpipe.errors import UserError
from ganpipe.params import Params
from ganpipe.sample import sample


@pytest.fixture(scope="module")
def root(
    tmp_path_factory: pytest.TempPathFactory, write_packed: Callable[..., Path], small_params: Params
) -> Path:
    """A checkout with a generator of a training's format, its weights large so that images differ."""
    folder = tmp_path_factory.mktemp("checkout")
    write_packed(folder, digits()[::100, 6:22, 6:22])
    (folder / "ganpipe").symlink_to(Path(train.__file__).parent)
    params = updated(small_params, train__epochs=1, train__batch_size=50)
    train.train(train.plan(params.model, params.train, folder), folder)
    torch.manual_seed(0)
    G = models.generator(params.model, 16, 1)
    for parameter in G.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.3)
    snapshot.save(G, folder / "stages/train/generator.safetensors")
    return folder


def samples(root: Path, params: Params) -> np.ndarray:
    """Run the stage and read its images."""
    sample(params.sample, root)
    images: np.ndarray = np.load(root / "stages/sample/samples.npy", mmap_mode="r")
    return images


def test_samples_and_grid(root: Path, small_params: Params) -> None:
    """The evaluation would judge other images than the grid shows."""
    images = samples(root, updated(small_params, sample__count=70))
    assert images.shape == (70, 16, 16, 1) and images.dtype == np.uint8
    grid = np.asarray(Image.open(root / "stages/sample/grid.png"))
    assert grid.shape == (128, 128) and np.array_equal(grid[16:32, 32:48], images[10, :, :, 0])


def test_an_image_belongs_to_its_seed(root: Path, small_params: Params) -> None:
    """Image 7 of two runs could not be compared if the count changed it."""
    few = np.array(samples(root, updated(small_params, sample__count=3, sample__seed=5)))
    many = samples(root, updated(small_params, sample__count=20, sample__seed=0))
    assert np.array_equal(few, many[5:8])


def test_z_scale_narrows(root: Path, small_params: Params) -> None:
    """Marchesi's narrower interval must give images nearer to each other."""
    wide = samples(root, updated(small_params, sample__count=64)).astype(float).std(axis=0).mean()
    narrow = samples(root, updated(small_params, sample__count=64, sample__z_scale=0.1)).astype(float)
    assert narrow.std(axis=0).mean() < 0.5 * wide


@pytest.mark.parametrize("content", [None, "{", "{}", '{"resolution": 16}'])
def test_without_a_model(tmp_path: Path, small_params: Params, content: str | None) -> None:
    """A user who runs stages out of order needs to hear which one comes first."""
    (tmp_path / "stages/train").mkdir(parents=True)
    if content is not None:
        (tmp_path / "stages/train/model.json").write_text(content)
    with pytest.raises(UserError, match=r"model\.json: no readable description .* run the train stage"):
        sample(small_params.sample, tmp_path)
