"""Networks that compute in bfloat16, recompute their activations, or synchronize their batch norms."""

import copy

import pytest
import torch
from torch import nn

from ganpipe import models
from ganpipe.models.layers import NetworkSpec
from ganpipe.params import Params
from ganpipe.train.devices.compute import (
    Bfloat16,
    Recomputed,
    SyncBatchNorm2d,
    precision_warning,
    prepare_network,
    recompute,
    replace_modules,
)
from ganpipe.train.devices.ranks import Ranks
from ganpipe.train.options import TrainOptions


@pytest.mark.parametrize("which", ["generator", "discriminator"])
@pytest.mark.parametrize("architecture", ["dcgan", "residual", "resize"])
def test_recomputing_gives_the_same_gradients_and_statistics_and_stores_less(
    default_params: Params, which: str, architecture: str
) -> None:
    """A flag that saves memory must not change what is learnt, and must save some."""
    params = default_params.model.model_copy(update={"architecture": architecture, "ngf": 16, "ndf": 16})
    results = []
    for saving in (False, True):
        torch.manual_seed(0)
        net = getattr(models, f"build_{which}")(NetworkSpec(params, 32, 1))
        net.to(memory_format=torch.channels_last)
        net = replace_modules(net, recompute) if saving else net
        x = torch.randn(8, params.nz) if which == "generator" else torch.randn(8, 1, 32, 32)
        stored = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal stored
            stored += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = net(x)
        out.square().sum().backward()
        tensors = [out, *(p.grad for p in net.parameters()), *net.buffers()]
        results.append((stored, tensors))
    (stored_before, before), (stored_after, after) = results
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert stored_after < 0.6 * stored_before


def test_layers_compute_in_bfloat16_and_give_float32() -> None:
    """Nothing would be faster, or losses would be computed with three digits."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 1))
    seen = []
    network[0].register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    x = torch.randn(4, 3, 8, 8)
    expected = network(x)
    out = Bfloat16(network, "cpu")(x)
    out.sum().backward()
    assert seen == [torch.float32, torch.bfloat16] and out.dtype == torch.float32
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in network.parameters())
    torch.testing.assert_close(out, expected, rtol=0.05, atol=0.05)
    assert not torch.equal(out, expected)


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16", "bf16"])
def test_a_slow_processor_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Someone would wait twice as long for a night's training, or be told to change a fast one."""
    for found in (False, True):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: {name: found}, raising=False)
        text = precision_warning("bfloat16", "cpu")
        assert text is None if found else text and "use float32" in text
        assert precision_warning("float32", "cpu") is precision_warning("bfloat16", "cuda:0") is None


def test_nothing_is_replaced_without_being_requested(small_params: Params) -> None:
    """A plain training would not be what it was."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    modules = list(network.modules())
    params = small_params.train.model_copy(update={"sync_batch_norm": True})  # of one rank: nothing to do
    assert prepare_network(network, params, TrainOptions(), Ranks()) is network
    assert list(network.modules()) == modules


@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
@pytest.mark.parametrize("which", ["generator", "discriminator"])
def test_every_name_of_a_weight_stays(default_params: Params, which: str, architecture: str) -> None:
    """A checkpoint or a generator could not be read by a training with other options."""
    side = 28 if architecture == "upsample" else 32
    update = {"architecture": architecture, "ngf": 8, "ndf": 8, "first_channels": None}
    model = default_params.model.model_copy(update=update)
    network = getattr(models, f"build_{which}")(NetworkSpec(model, side, 1))
    before = copy.deepcopy(network.state_dict())
    update = {"sync_batch_norm": True, "precision": "bfloat16"}
    train = default_params.train.model_copy(update=update)
    prepared = prepare_network(network, train, TrainOptions(save_memory=True), Ranks(0, 2))
    after = prepared.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    assert all(p.requires_grad for p in prepared.parameters())
    modules = list(prepared.modules())
    assert isinstance(prepared, Bfloat16) and any(isinstance(module, Recomputed) for module in modules)
    norms = [module for module in modules if isinstance(module, nn.BatchNorm2d)]
    assert all(type(module) is SyncBatchNorm2d for module in norms)


def test_a_prepared_network_can_be_copied_and_evaluated(default_params: Params) -> None:
    """Samples of a generator without an average are made with the network that is trained."""
    model = default_params.model.model_copy(update={"ngf": 8})
    train = default_params.train.model_copy(update={"precision": "bfloat16"})
    G = prepare_network(
        models.build_generator(NetworkSpec(model, 32, 1)), train, TrainOptions(save_memory=True), Ranks()
    )
    z, copied = torch.randn(4, model.nz), copy.deepcopy(G)
    G.eval(), copied.eval()
    with torch.inference_mode():
        images = G(z)
        assert torch.equal(images, copied(z)) and images.dtype == torch.float32
        for parameter in G.parameters():
            parameter.zero_()
        assert not torch.equal(G(z), images) and torch.equal(copied(z), images)
