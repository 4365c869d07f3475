"""Checkpoints: exact, whole or absent, never of damaged bytes."""

from pathlib import Path

import pytest
import torch
from torch import nn

from ganpipe import checkpoint


def trained(steps: int) -> tuple[dict[str, nn.Module], dict[str, torch.optim.Optimizer]]:
    """A small channels_last network and its Adam after some steps on fixed data."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), 0.1, fused=True)
    step(net, optimizer, steps)
    return {"net": net}, {"optimizer": optimizer}


def step(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Train on images that depend on nothing."""
    images = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
    for _ in range(steps):
        optimizer.zero_grad()
        net(images).square().mean().backward()
        optimizer.step()


def test_a_restored_training_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    """Anything left out of the state makes a resumed run another run."""
    networks, optimizers = trained(7)
    expected = checkpoint.state_of(networks, optimizers)

    networks, optimizers = trained(3)
    checkpoint.save(tmp_path, 3, checkpoint.state_of(networks, optimizers))
    networks, optimizers = trained(0)
    found = checkpoint.load(tmp_path)
    assert found is not None and found[0] == 3
    checkpoint.restore(found[1], networks, optimizers)
    step(networks["net"], optimizers["optimizer"], 4)
    state = checkpoint.state_of(networks, optimizers)
    assert state.keys() == expected.keys() and "optimizer/0/exp_avg_sq" in state
    for name, tensor in state.items():
        assert torch.equal(tensor, expected[name]), name
        assert tensor.stride() == expected[name].stride(), name


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, damage: str) -> None:
    """The safetensors library loads flipped bits in silence; the network would be another one."""
    for number in (1, 2, 3):
        checkpoint.save(tmp_path, number, {"a": torch.full((100,), float(number))})
    newest = sorted(tmp_path.iterdir())[-1]
    content = bytearray(newest.read_bytes())
    if damage == "flip":
        content[-7] ^= 1
    newest.write_bytes(content if damage == "flip" else content[:-1] if damage == "cut" else b"")
    found = checkpoint.load(tmp_path)
    assert found is not None and found[0] == 2 and found[1]["a"][0] == 2


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    """A long training would fill the disk with checkpoints."""
    assert checkpoint.load(tmp_path) is None
    for number in (9, 10, 100):
        checkpoint.save(tmp_path, number, {"a": torch.zeros(1)})
    assert [int(path.stem) for path in sorted(tmp_path.iterdir())] == [10, 100]
