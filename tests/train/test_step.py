"""The updates of the two players, whole and in parts."""

import copy

import pytest
import torch
from torch import nn

from ganpipe.train.ranks import Ranks
from ganpipe.train.step import statistics_kept, update_d, update_g

LABELS = (0.9, 0.1)


def players(norm: bool) -> tuple[nn.Module, nn.Module]:
    """A small generator and a small discriminator, with or without batch norm."""
    torch.manual_seed(0)
    layers = [nn.BatchNorm1d(6)] if norm else []
    G = nn.Sequential(nn.Linear(4, 6), *copy.deepcopy(layers), nn.Tanh(), nn.Linear(6, 5))
    D = nn.Sequential(
        nn.Linear(5, 6), *copy.deepcopy(layers), nn.LeakyReLU(0.2), nn.Linear(6, 1), nn.Flatten(0)
    )
    return G, D


def updated(norm: bool, part: int, shared: bool) -> tuple[torch.Tensor, torch.Tensor, nn.Module, nn.Module]:
    """Make one update of each player on a fixed batch of 10; return the numbers and the players."""
    G, D = players(norm)
    source = torch.Generator().manual_seed(1)
    real, z = torch.randn(10, 5, generator=source), torch.randn(10, 4, generator=source)
    D_optimizer, G_optimizer = (torch.optim.SGD(net.parameters(), lr=0.5) for net in (D, G))
    fake = G(z) if shared else None
    numbers = update_d(G, D, D_optimizer, real, z, fake, LABELS, part, Ranks(), 10)
    return numbers, update_g(G, D, G_optimizer, z, fake, part, Ranks(), 10), G, D


@pytest.mark.parametrize("part", [1, 3, 5])
def test_parts_add_up_to_the_batch(part: int) -> None:
    """A batch larger than memory would train another model than the same batch whole."""
    whole_d, whole_g, whole_G, whole_D = updated(norm=False, part=10, shared=True)
    numbers, loss, G, D = updated(norm=False, part=part, shared=False)
    torch.testing.assert_close(numbers, whole_d)
    torch.testing.assert_close(loss, whole_g)
    for ours, theirs in zip(
        [*G.parameters(), *D.parameters()], [*whole_G.parameters(), *whole_D.parameters()], strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_generating_anew_equals_sharing() -> None:
    """With one part the images are the same ones, so every number must be the same one."""
    shared, anew = updated(norm=True, part=10, shared=True), updated(norm=True, part=10, shared=False)
    assert torch.equal(shared[0], anew[0]) and torch.equal(shared[1], anew[1])
    for name, tensor in shared[2].state_dict().items():
        assert torch.equal(tensor, anew[2].state_dict()[name]), name


def test_g_s_update_leaves_d_alone() -> None:
    """D would learn from G's loss, against itself."""
    G, D = players(norm=False)
    before = copy.deepcopy(D.state_dict())
    update_g(G, D, torch.optim.SGD(G.parameters(), lr=0.5), torch.randn(10, 4), None, 10, Ranks(), 10)
    assert all(torch.equal(before[name], tensor) for name, tensor in D.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in D.parameters())


def test_statistics_kept() -> None:
    """Images generated for D would count twice in the statistics that samples are made with."""
    G, _ = players(norm=True)
    before = copy.deepcopy(G.state_dict())
    with statistics_kept(G):
        inside = G(torch.randn(10, 4, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(before[name], tensor) for name, tensor in G.state_dict().items())
    assert torch.equal(inside, G(torch.randn(10, 4, generator=torch.Generator().manual_seed(0))))
    assert not torch.equal(before["1.running_mean"], G.state_dict()["1.running_mean"])
