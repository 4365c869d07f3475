"""The updates of the two players, with whole batches and with micro-batches."""

import copy

import pytest
import torch
from torch import nn

from ganpipe.train.devices.compute import keep_statistics
from ganpipe.train.players import Players
from ganpipe.train.step import StepSettings, generate, update_d, update_g


def players(norm: bool) -> Players:
    """Build a small generator and a small discriminator, with or without batch norm."""
    torch.manual_seed(0)
    layers = [nn.BatchNorm1d(6)] if norm else []
    G = nn.Sequential(nn.Linear(4, 6), *copy.deepcopy(layers), nn.Tanh(), nn.Linear(6, 5))
    D = nn.Sequential(
        nn.Linear(5, 6), *copy.deepcopy(layers), nn.LeakyReLU(0.2), nn.Linear(6, 1), nn.Flatten(0)
    )
    return Players(G, D, torch.optim.SGD(G.parameters(), lr=0.5), torch.optim.SGD(D.parameters(), lr=0.5))


def updated(
    norm: bool, micro_batch: int, shared: bool, mixed: bool = False
) -> tuple[torch.Tensor, torch.Tensor, Players]:
    """Update each player once on a fixed batch of 10; return D's numbers, G's numbers and the players."""
    both, settings = players(norm), StepSettings(0.9, 0.1, 10, micro_batch, mixed=mixed)
    source = torch.Generator().manual_seed(1)
    real, z = torch.randn(10, 5, generator=source), torch.randn(10, 4, generator=source)
    fake = generate(both.G, z, settings) if shared else None
    assert (fake is not None) == shared
    return update_d(both, real, z, fake, settings), update_g(both, z, fake, settings), both


@pytest.mark.parametrize("micro_batch", [1, 3, 5])
def test_micro_batches_add_up_to_the_batch(micro_batch: int) -> None:
    """A batch larger than memory would train another model than the same batch as a whole."""
    whole_d, whole_g, whole = updated(norm=False, micro_batch=10, shared=True)
    d_numbers, g_numbers, ours = updated(norm=False, micro_batch=micro_batch, shared=False)
    torch.testing.assert_close(d_numbers, whole_d)
    torch.testing.assert_close(g_numbers, whole_g)
    for name, network in ours.networks.items():
        for parameter, expected in zip(network.parameters(), whole.networks[name].parameters(), strict=True):
            torch.testing.assert_close(parameter, expected)


def test_generating_twice_equals_sharing() -> None:
    """With one micro-batch the images are the same, so every number must be equal."""
    shared, twice = (updated(norm=True, micro_batch=10, shared=shared) for shared in (True, False))
    assert torch.equal(shared[0], twice[0]) and torch.equal(shared[1], twice[1])
    for name, tensor in shared[2].G.state_dict().items():
        assert torch.equal(tensor, twice[2].G.state_dict()[name]), name


@pytest.mark.parametrize("micro_batch", [10, 5])
def test_a_mixed_batch(micro_batch: int) -> None:
    """D would be updated on other images, or batch norm would see real and generated ones apart."""
    both, settings = players(norm=True), StepSettings(0.9, 0.1, 10, micro_batch, mixed=True)
    D, rate = copy.deepcopy(both.D), 0.5
    source = torch.Generator().manual_seed(1)
    real, z = torch.randn(10, 5, generator=source), torch.randn(10, 4, generator=source)
    with keep_statistics(both.G), torch.no_grad():
        fakes = [both.G(part) for part in z.split(micro_batch)]
    numbers = update_d(both, real, z, generate(both.G, z, settings), settings)

    loss = torch.zeros(())
    for images, fake in zip(real.split(micro_batch), fakes, strict=True):
        p = torch.sigmoid(D(torch.cat([images, fake])))
        p_real, p_fake = p[: len(images)], p[len(images) :]
        loss = loss - (0.9 * p_real.log() + 0.1 * (1 - p_real).log()).sum() / 10
        loss = loss - (0.1 * p_fake.log() + 0.9 * (1 - p_fake).log()).sum() / 10
    loss.backward()
    torch.testing.assert_close(numbers[0], loss.detach())
    for ours, theirs in zip(both.D.parameters(), D.parameters(), strict=True):
        assert theirs.grad is not None
        torch.testing.assert_close(ours, theirs - rate * theirs.grad)


def test_without_batch_norm_a_mixed_batch_changes_nothing() -> None:
    """The two readings would differ by more than batch norm's statistics."""
    separate, mixed = updated(norm=False, micro_batch=10, shared=True), updated(False, 10, True, mixed=True)
    torch.testing.assert_close(mixed[0], separate[0])
    for ours, theirs in zip(mixed[2].D.parameters(), separate[2].D.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_micro_batches_share_no_images() -> None:
    """The graph of the whole batch would be built although it does not fit in memory."""
    assert generate(players(norm=False).G, torch.randn(10, 4), StepSettings(0.9, 0.1, 10, 3)) is None


def test_the_update_of_g_leaves_d_alone() -> None:
    """D would learn from G's loss, against itself."""
    both = players(norm=False)
    before = copy.deepcopy(both.D.state_dict())
    update_g(both, torch.randn(10, 4), None, StepSettings(0.9, 0.1, 10))
    assert all(torch.equal(before[name], tensor) for name, tensor in both.D.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in both.D.parameters())


def test_keep_statistics() -> None:
    """Images generated for D would count twice in the statistics that samples are made with."""
    G = players(norm=True).G
    before = copy.deepcopy(G.state_dict())
    with keep_statistics(G):
        inside = G(torch.randn(10, 4, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(before[name], tensor) for name, tensor in G.state_dict().items())
    assert torch.equal(inside, G(torch.randn(10, 4, generator=torch.Generator().manual_seed(0))))
    assert not torch.equal(before["1.running_mean"], G.state_dict()["1.running_mean"])
