"""The sample stage: samples.npy, intervals.npy and the pictures."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, digits, updated
from PIL import Image

from ganpipe import models
from ganpipe.common.errors import UserError
from ganpipe.common.sheets import sheet
from ganpipe.models.generator import images_of, load_generator, save_generator, z_of_seeds
from ganpipe.models.layers import NetworkSpec
from ganpipe.params import Params
from ganpipe.sample.latent_paths import slerp
from ganpipe.sample.stage import sample
from ganpipe.train.options import TrainOptions
from ganpipe.train.plan import plan_training
from ganpipe.train.stage import train


@pytest.fixture(scope="module")
def root(
    tmp_path_factory: pytest.TempPathFactory, write_packed: Callable[..., Path], small_params: Params
) -> Path:
    """A checkout with the outputs of training and a generator whose large weights make images differ."""
    folder = tmp_path_factory.mktemp("checkout")
    write_packed(folder, digits()[::100, 6:22, 6:22])
    (folder / "ganpipe").symlink_to(ROOT / "ganpipe")
    params = updated(small_params, train__epochs=1, train__batch_size=50)
    train(plan_training(params.model, params.train, folder), folder, TrainOptions())
    torch.manual_seed(0)
    G = models.build_generator(NetworkSpec(params.model, 16, 1))
    for parameter in G.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.3)
    path = folder / "stages/train/generator.safetensors"
    save_generator(G, NetworkSpec(params.model, 16, 1), path)
    return folder


def samples(root: Path, params: Params) -> np.ndarray:
    """Run the stage and return samples.npy."""
    sample(params.sample, root)
    images: np.ndarray = np.load(root / "stages/sample/samples.npy", mmap_mode="r")
    return images


def test_samples_and_grid(root: Path, small_params: Params) -> None:
    """A failure means that evaluate judges other images than the grid shows."""
    images = samples(root, updated(small_params, sample__count=70))
    assert images.shape == (70, 16, 16, 1) and images.dtype == np.uint8
    grid = np.asarray(Image.open(root / "stages/sample/grid.png"))
    assert grid.shape == (128, 128) and np.array_equal(grid[16:32, 32:48], images[10, :, :, 0])


def test_an_image_belongs_to_its_seed(root: Path, small_params: Params) -> None:
    """A failure means that image 7 of two runs differs when only the count differs."""
    few = np.array(samples(root, updated(small_params, sample__count=3, sample__seed=5)))
    many = samples(root, updated(small_params, sample__count=20, sample__seed=0))
    assert np.array_equal(few, many[5:8])


def test_z_scale_narrows(root: Path, small_params: Params) -> None:
    """A failure means that sample.z_scale, Marchesi's narrower interval, has no effect."""
    wide = samples(root, updated(small_params, sample__count=64)).astype(float).std(axis=0).mean()
    narrow = samples(root, updated(small_params, sample__count=64, sample__z_scale=0.1)).astype(float)
    assert narrow.std(axis=0).mean() < 0.5 * wide


@pytest.mark.parametrize("content", [None, b"{"])
def test_without_a_model(tmp_path: Path, small_params: Params, content: bytes | None) -> None:
    """A failure means that a user who runs stages out of order is not told which comes first."""
    (tmp_path / "stages/train").mkdir(parents=True)
    if content is not None:
        (tmp_path / "stages/train/generator.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"generator\.safetensors: not a readable .* run the train stage"):
        sample(small_params.sample, tmp_path)


def cells(path: Path, columns: int, rows: int) -> np.ndarray:
    """Cut the images of 16 px, enlarged to 64, from a labelled picture; uint8 rows×columns×16×16."""
    picture = np.asarray(Image.open(path).convert("L"))
    top, left = picture.shape[0] - rows * 66 + 2, picture.shape[1] - columns * 66 + 2
    assert (picture[top:, : left - 8] < 128).any(), "no labels"
    assert (picture[: top - 2] < 128).any(), "no caption"
    return np.array(
        [
            [picture[top + 66 * r :, left + 66 * c :][:64, :64][::4, ::4] for c in range(columns)]
            for r in range(rows)
        ]
    )


def generate(root: Path, params: Params, z: torch.Tensor) -> np.ndarray:
    """Generate images of z with the stage's generator, uint8 N×16×16."""
    G = load_generator(root / "stages/train/generator.safetensors").network
    return images_of(G, z)[:, :, :, 0]


def test_intervals_are_the_samples_of_each_factor(root: Path, small_params: Params) -> None:
    """A failure means that intervals differ in more than the factor, or are in another order."""
    one = np.array(samples(root, updated(small_params, sample__intervals=[0.5, 1.0])))
    intervals = np.load(root / "stages/sample/intervals.npy", mmap_mode="r")
    assert intervals.shape == (2, 20, 16, 16, 1) and intervals.dtype == np.uint8
    assert np.array_equal(intervals[1], one)
    assert np.array_equal(intervals[0], samples(root, updated(small_params, sample__z_scale=0.5)))
    assert np.load(root / "stages/sample/intervals.npy", mmap_mode="r").shape == (0, 20, 16, 16, 1)
    assert json.loads((root / "stages/sample/intervals.json").read_text()) == []


@pytest.mark.parametrize(
    ("distribution", "limit", "descriptions"),
    [
        ("uniform", 1.0, ["[-0.4, 0.4]", "[-1, 1]"]),
        ("normal", None, ["normal, sd 0.4", "normal, sd 1"]),
        ("normal", 2.5, ["normal, sd 0.4, within [-1, 1]", "normal, sd 1, within [-2.5, 2.5]"]),
    ],
)
def test_z_stays_in_its_interval_and_intervals_json_describes_it(
    root: Path,
    tmp_path: Path,
    small_params: Params,
    monkeypatch: pytest.MonkeyPatch,
    distribution: str,
    limit: float | None,
    descriptions: list[str],
) -> None:
    """A failure means images of z unseen in training, or a label that names another interval."""
    shutil.copytree(root / "stages", tmp_path / "stages")
    path = tmp_path / "stages/train/generator.safetensors"
    generator = load_generator(path)
    section = generator.spec.params.model_copy(update={"z_distribution": distribution, "z_limit": limit})
    save_generator(generator.network, NetworkSpec(section, 16, 1), path)
    vectors: list[torch.Tensor] = []

    def recording(G: torch.nn.Module, z: torch.Tensor) -> np.ndarray:
        vectors.append(z)
        return images_of(G, z)

    monkeypatch.setattr("ganpipe.sample.images.images_of", recording)
    sample(updated(small_params, sample__intervals=[0.4, 1.0]).sample, tmp_path)
    intervals = json.loads((tmp_path / "stages/sample/intervals.json").read_text())
    assert [interval["z"] for interval in intervals] == descriptions
    if limit is not None:
        assert torch.cat(vectors).abs().max() == limit


def test_traversal_rows_change_the_named_elements(root: Path, small_params: Params) -> None:
    """A failure means that a row is labelled with another element, or varies more than one."""
    sample(updated(small_params, sample__traversal_elements=[3, 0], sample__seed=4).sample, root)
    rows = cells(root / "stages/sample/traversal.png", 9, 2)
    for row, element in zip(rows, (3, 0), strict=True):
        z = z_of_seeds(small_params.model, 4, 1, 1.0).repeat(9, 1)
        z[:, element] = torch.tensor([-2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2])
        assert np.array_equal(row, generate(root, small_params, z))


def test_traversal_of_null_shows_the_most_influential_elements_first(
    root: Path, small_params: Params
) -> None:
    """A failure means that the picture shows elements of little influence."""
    influences = []
    for element in range(8):
        low, high = (z_of_seeds(small_params.model, 0, 4, 1.0) for _ in range(2))
        low[:, element], high[:, element] = -2, 2
        difference = generate(root, small_params, high).astype(float) - generate(root, small_params, low)
        influences.append(np.abs(difference).mean())
    order = [int(element) for element in np.argsort(influences)[::-1]]
    sample(small_params.sample, root)
    chosen = cells(root / "stages/sample/traversal.png", 9, 8)
    sample(updated(small_params, sample__traversal_elements=order).sample, root)
    assert np.array_equal(chosen, cells(root / "stages/sample/traversal.png", 9, 8))


def test_interpolation_goes_from_seed_to_seed_and_back(root: Path, small_params: Params) -> None:
    """A failure means that rows do not join images of samples.npy, or that the animation jumps."""
    # Images differ much at this scale, so that the tolerance below covers the lossy format alone.
    images = samples(root, updated(small_params, sample__z_scale=8.0))[:, :, :, 0]
    rows = cells(root / "stages/sample/interpolation.png", 9, 8)
    assert np.array_equal(rows[:, 0], images[:8])
    assert np.array_equal(rows[:, -1], np.roll(images[:8], -1, axis=0))
    with Image.open(root / "stages/sample/interpolation.webp") as animation:
        assert animation.info["loop"] == 0
        frames = []
        for i in range(getattr(animation, "n_frames", 1)):
            animation.seek(i)
            frame = np.asarray(animation.convert("L"), float)[4::8, 4::8]
            # The format stores equal neighbours as one frame of a longer duration.
            frames += [frame] * (int(animation.info["duration"]) // 60)
    z = z_of_seeds(small_params.model, 0, 8, 8.0)
    t = torch.arange(16) / 16
    path = torch.cat([slerp(a, b, t) for a, b in zip(z, z.roll(-1, 0), strict=True)])
    errors = np.abs(np.array(frames) - generate(root, small_params, path)).mean(axis=(1, 2))
    assert len(frames) == 128 and errors.max() < 1.2


def test_epochs_show_the_trainings_grids_in_order(root: Path, tmp_path: Path, small_params: Params) -> None:
    """A failure means that epoch 10 is above epoch 2, or that a column mixes several z."""
    shutil.copytree(root / "stages", tmp_path / "stages")
    shutil.rmtree(tmp_path / "stages/train/grids")
    (tmp_path / "stages/train/grids").mkdir()
    grids = {
        epoch: np.random.default_rng(epoch).integers(0, 256, (64, 16, 16, 1), np.uint8) for epoch in (10, 2)
    }
    for epoch, images in grids.items():
        sheet(images, 8).save(tmp_path / f"stages/train/grids/{epoch}.png")
    sample(small_params.sample, tmp_path)
    rows = cells(tmp_path / "stages/sample/epochs.png", 8, 2)
    assert np.array_equal(rows, np.stack([grids[2], grids[10]])[:, :8, :, :, 0])


def test_a_rerun_writes_the_same_bytes(root: Path, small_params: Params) -> None:
    """A failure means that DVC sees a change where nothing changed, and runs evaluate again."""
    params = updated(small_params, sample__intervals=[0.5])
    runs = []
    for _ in range(2):
        sample(params.sample, root)
        runs.append({path.name: path.read_bytes() for path in (root / "stages/sample").iterdir()})
    assert runs[0] == runs[1]
    assert set(runs[0]) == {
        *("samples.npy", "grid.png", "intervals.npy", "intervals.json", "traversal.png"),
        *("interpolation.png", "interpolation.webp", "epochs.png"),
    }


def test_mistakes_get_one_sentence(root: Path, tmp_path: Path, small_params: Params) -> None:
    """A failure means a traceback, or a message only after all images were generated."""
    for elements, words in (([3, 8], r"found \[3, 8\]"), ([], "found an empty list")):
        with pytest.raises(UserError, match=rf"sample\.traversal_elements: {words}, but .* 0 to 7 ") as error:
            sample(updated(small_params, sample__traversal_elements=elements).sample, root)
        assert "\n" not in str(error.value)
    shutil.copytree(root / "stages/train", tmp_path / "stages/train")
    (tmp_path / "stages/train/grids/1.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"grids/1\.png: not a readable grid .* run the train stage again"):
        sample(small_params.sample, tmp_path)
    (tmp_path / "stages/train/grids/1.png").unlink()
    with pytest.raises(UserError, match=r"grids: found no grids from training; run the train stage"):
        sample(small_params.sample, tmp_path)
