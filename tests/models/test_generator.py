"""Weights files, latent vectors and generated images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from ganpipe import models
from ganpipe.common.errors import UserError
from ganpipe.models import generator
from ganpipe.models.generator import BATCH, images_of, load_generator, save_generator, z_of_seeds
from ganpipe.models.layers import NetworkSpec
from ganpipe.params import Model

MODEL = Model(
    architecture="dcgan",
    nz=8,
    z_distribution="normal",
    z_limit=None,
    ngf=4,
    ndf=4,
    first_channels=None,
    d_first_channels=None,
    discriminator_norm="batch",
    last_stride=2,
    trunk_halvings=5,
    conditional=False,
)

SPEC = NetworkSpec(MODEL, 16, 1)


@pytest.fixture(scope="module")
def G() -> torch.nn.Module:
    """A generator in train mode whose batch norm statistics have moved from their initial values."""
    torch.manual_seed(0)
    G = models.build_generator(NetworkSpec(MODEL, 16, 1)).to(memory_format=torch.channels_last)
    G(torch.randn(16, 8))
    return G


def test_weights_survive_the_file(G: torch.nn.Module, tmp_path: Path) -> None:
    """A failure means that the sample stage uses another generator than the trained one."""
    save_generator(G, SPEC, tmp_path / "g.safetensors")
    loaded = load_generator(tmp_path / "g.safetensors")
    assert loaded.spec == SPEC
    z = z_of_seeds(MODEL, 0, 5, 1.0)
    assert np.array_equal(images_of(loaded.network, z), images_of(G, z))


def test_the_file_knows_nothing_of_the_discriminators_width(G: torch.nn.Module, tmp_path: Path) -> None:
    """A failure means that weights of before that param must be trained again, or that equal files differ."""
    for wide in (None, 64):
        spec = NetworkSpec(MODEL.model_copy(update={"d_first_channels": wide}), 16, 1)
        save_generator(G, spec, tmp_path / f"{wide}.safetensors")
    assert (tmp_path / "64.safetensors").read_bytes() == (tmp_path / "None.safetensors").read_bytes()
    header = (tmp_path / "64.safetensors").read_bytes()[:1000]
    assert not any(name in header for name in (b"d_first_channels", b"last_stride", b"trunk_halvings"))


@pytest.mark.parametrize(
    ("changes", "side"),
    [({"last_stride": 3}, 24), ({"architecture": "residual", "trunk_halvings": 2}, 32)],
)
def test_the_file_knows_the_readings_of_a_paper(changes: dict[str, Any], side: int, tmp_path: Path) -> None:
    """A failure means that a generator of another reading than the default cannot be sampled from."""
    spec = NetworkSpec(MODEL.model_copy(update=changes), side, 1)
    save_generator(models.build_generator(spec), spec, tmp_path / "g.safetensors")
    assert load_generator(tmp_path / "g.safetensors").spec == spec


def test_sampling_neither_changes_the_network_nor_mixes_images(G: torch.nn.Module) -> None:
    """A failure means train mode: images depend on their batch, and sampling moves the statistics."""
    before = {name: tensor.clone() for name, tensor in G.state_dict().items()}
    z = z_of_seeds(MODEL, 0, 70, 1.0)
    images = images_of(G, z)
    assert images.shape == (70, 16, 16, 1) and images.dtype == np.uint8 and G.training
    assert np.array_equal(images[66:], images_of(G, z[66:]))
    for name, tensor in G.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("count", [1, 3, 7, 16, 17, 33])
def test_an_image_does_not_depend_on_the_count(
    G: torch.nn.Module, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """A failure means that image 2 of 3 differs from image 2 of 500 by the kernels' rounding."""
    sizes: list[int] = []
    handle = G.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    monkeypatch.setattr(generator, "to_uint8", lambda images: images.numpy())
    z = z_of_seeds(MODEL, 0, 40, 1.0)
    few, all_of_them = images_of(G, z[:count]), images_of(G, z)
    handle.remove()
    assert few.dtype == np.float32 and few.tobytes() == all_of_them[:count].tobytes()
    assert set(sizes) == {BATCH}


def test_one_seed_for_each_image() -> None:
    """A failure means that image 7 of 10 is not image 7 of 10,000."""
    z = z_of_seeds(MODEL, 0, 10, 1.0)
    assert torch.equal(z[7:8], z_of_seeds(MODEL, 7, 1, 1.0))
    assert torch.equal(0.5 * z, z_of_seeds(MODEL, 0, 10, 0.5))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", "not a readable .safetensors file"),
        ("cut", "not a readable .safetensors file"),
        ("no header", "the header lacks the key 'ganpipe'"),
        ("not JSON", "the header's description is not readable"),
        ("other width", "the weights do not fit the header's network"),
    ],
)
def test_unusable_weights_get_one_sentence(
    G: torch.nn.Module, tmp_path: Path, damage: str, message: str
) -> None:
    """A failure means that the user sees a traceback from PyTorch instead of the file's name and problem."""
    path = tmp_path / "g.safetensors"
    if damage != "missing":
        params = MODEL.model_copy(update={"ngf": 5} if damage == "other width" else {})
        save_generator(G, NetworkSpec(params, 16, 1), path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    if damage in ("no header", "not JSON"):
        header = {generator.HEADER: "[" * 9} if damage == "not JSON" else None
        tensors = {name: tensor.contiguous() for name, tensor in G.state_dict().items()}
        safetensors.torch.save_file(tensors, path, header)
    with pytest.raises(UserError, match=rf"g\.safetensors: {message}"):
        load_generator(path)
