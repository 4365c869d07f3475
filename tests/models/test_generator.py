"""Snapshots and the images that they give."""

from pathlib import Path

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
    discriminator_norm="batch",
)

SPEC = NetworkSpec(MODEL, 16, 1)


@pytest.fixture(scope="module")
def G() -> torch.nn.Module:
    """A generator in train mode with statistics of its own."""
    torch.manual_seed(0)
    G = models.build_generator(NetworkSpec(MODEL, 16, 1)).to(memory_format=torch.channels_last)
    G(torch.randn(16, 8))
    return G


def test_weights_survive_the_file(G: torch.nn.Module, tmp_path: Path) -> None:
    """The sample stage would draw from another generator than the one trained."""
    save_generator(G, SPEC, tmp_path / "g.safetensors")
    loaded = load_generator(tmp_path / "g.safetensors")
    assert loaded.spec == SPEC
    z = z_of_seeds(MODEL, 0, 5, 1.0)
    assert np.array_equal(images_of(loaded.network, z), images_of(G, z))


def test_sampling_neither_changes_the_network_nor_mixes_images(G: torch.nn.Module) -> None:
    """In train mode an image depends on its neighbours, and looking moves the batch norm statistics."""
    before = {name: tensor.clone() for name, tensor in G.state_dict().items()}
    z = z_of_seeds(MODEL, 0, 70, 1.0)
    images = images_of(G, z)
    assert images.shape == (70, 16, 16, 1) and images.dtype == np.uint8 and G.training
    assert np.array_equal(images[66:], images_of(G, z[66:]))
    for name, tensor in G.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("count", [1, 3, 7, 16, 17, 33])
def test_an_image_does_not_depend_on_how_many_are_asked_for(
    G: torch.nn.Module, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """CPU kernels round otherwise for odd batch sizes: image 2 of 3 would differ from image 2 of 500."""
    sizes: list[int] = []
    handle = G.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    monkeypatch.setattr(generator, "to_uint8", lambda images: images.numpy())
    z = z_of_seeds(MODEL, 0, 40, 1.0)
    few, all_of_them = images_of(G, z[:count]), images_of(G, z)
    handle.remove()
    assert few.dtype == np.float32 and few.tobytes() == all_of_them[:count].tobytes()
    assert set(sizes) == {BATCH}


def test_one_seed_for_each_image() -> None:
    """Image 7 must be the same image in a set of 10 and in one of 10,000."""
    z = z_of_seeds(MODEL, 0, 10, 1.0)
    assert torch.equal(z[7:8], z_of_seeds(MODEL, 7, 1, 1.0))
    assert torch.equal(0.5 * z, z_of_seeds(MODEL, 0, 10, 0.5))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", "no readable .safetensors file"),
        ("cut", "no readable .safetensors file"),
        ("no header", "its header does not describe the network"),
        ("not JSON", "its header holds no readable description"),
        ("other width", "its weights do not fit its description"),
    ],
)
def test_weights_that_cannot_be_used_are_named(
    G: torch.nn.Module, tmp_path: Path, damage: str, message: str
) -> None:
    """A user would see a traceback of PyTorch's."""
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
