"""Ranks: processes on one machine that train together over gloo."""

import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

import pytest
import safetensors.torch
import torch
import torch._dynamo  # what optimizers import when first built: once, before the ranks are forked
from conftest import updated
from torch import nn

from ganpipe import models
from ganpipe.common import seeds as rng
from ganpipe.models import generator as snapshot
from ganpipe.models.layers import NetworkSpec
from ganpipe.params import Params
from ganpipe.train import ranks
from ganpipe.train.ranks import Ranks

B = 10  # divides by neither 3 nor 4
State = dict[str, torch.Tensor]


def together(count: int, work: Callable[..., Any], *words: Any) -> list[Any]:
    """Run work(ranks, *words) in so many forked processes; return what each gave, or its exit code."""
    context = multiprocessing.get_context("fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def begin(rank: int, give: Any) -> None:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count))
        with ranks.joined("cpu") as joined:
            give.send(work(joined, *words))

    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    processes = [context.Process(target=begin, args=(r, give)) for r, (_, give) in enumerate(pipes)]
    for process in processes:
        process.start()
    for _, give in pipes:
        give.close()
    found: list[Any] = []
    for process, (take, _) in zip(processes, pipes, strict=True):
        try:
            found.append(take.recv())
        except EOFError:
            found.append(None)
        process.join(60)
        found[-1] = process.exitcode if process.exitcode else found[-1]
    return found


def training(
    place: Ranks, params: Params, steps: range, sync: bool, state: State | None
) -> tuple[State, list[list[float]]]:
    """Train G and D as the loop does, on this rank's part of the batch; return the state and the losses."""
    torch.manual_seed(0)
    spec = NetworkSpec(params.model, 16, 1)
    G, D = models.build_generator(spec), models.build_discriminator(spec)
    if sync:
        ranks.synchronise(G, place)
        ranks.synchronise(D, place)
    optimizers = [torch.optim.Adam(net.parameters(), 2e-3, (0.5, 0.999), fused=True) for net in (D, G)]
    whole = nn.ModuleList([G, D])
    if state is not None:
        whole.load_state_dict({k: v for k, v in state.items() if not k.startswith("adam")})
        for i, optimizer in enumerate(optimizers):
            for j, parameter in enumerate(optimizer.param_groups[0]["params"]):
                names = ("step", "exp_avg", "exp_avg_sq")
                optimizer.state[parameter] = {n: state[f"adam/{i}/{j}/{n}"].clone() for n in names}
    numbers, part = [], place.part(B)
    criterion = nn.BCEWithLogitsLoss(reduction="sum")
    for step in steps:
        source = rng.generator(0, "test", step)
        real = torch.rand(B, 1, 16, 16, generator=source)[part] * 2 - 1
        fake = G(snapshot.draw_z(params.model, B, source)[part])
        optimizers[0].zero_grad()
        on_real = criterion(D(real), torch.ones(len(real)))
        on_fake = criterion(D(fake.detach()), torch.zeros(len(real)))
        d_loss = (on_real + on_fake) / B
        d_loss.backward()
        d_sum = place.add_up(D.parameters(), d_loss.detach()[None])
        optimizers[0].step()
        optimizers[1].zero_grad()
        g_loss = criterion(D(fake), torch.ones(len(fake))) / B
        g_loss.backward()
        g_sum = place.add_up(G.parameters(), g_loss.detach()[None])
        optimizers[1].step()
        numbers.append([d_sum.item(), g_sum.item()])
    ended = dict(whole.state_dict())
    for i, optimizer in enumerate(optimizers):
        for j, values in enumerate(optimizer.state.values()):
            ended |= {f"adam/{i}/{j}/{name}": value for name, value in values.items()}
    return {name: tensor.detach().clone() for name, tensor in ended.items()}, numbers


def trained(place: Ranks, params: Params, steps: range, sync: bool, state: bytes | None) -> Any:
    """Train in a process of together(); the state travels as bytes, which stand for themselves."""
    before = safetensors.torch.load(state) if state else None
    after, numbers = training(place, params, steps, sync, before)
    return safetensors.torch.save(after), numbers


@pytest.mark.parametrize("count", [2, 3])
def test_resume_is_exact(small_params: Params, count: int) -> None:
    """Gradients that add up in another order in new processes end in another generator."""
    whole = together(count, trained, small_params, range(6), False, None)
    first = together(count, trained, small_params, range(3), False, None)
    second = together(count, trained, small_params, range(3, 6), False, first[0][0])
    assert second[0][0] == whole[0][0] and first[0][1] + second[0][1] == whole[0][1]
    assert all(numbers == whole[0][1] for _, numbers in whole)


@pytest.mark.parametrize("count", [2, 3])
def test_synchronised_ranks_equal_one_process(small_params: Params, count: int) -> None:
    """The same global batch must give the same training, however many share it; parts are of unequal size."""
    alone, numbers = training(Ranks(), small_params, range(6), False, None)
    for state, their_numbers in together(count, trained, small_params, range(6), True, None):
        theirs = safetensors.torch.load(state)
        torch.testing.assert_close(torch.tensor(their_numbers), torch.tensor(numbers), rtol=1e-4, atol=1e-5)
        for name, tensor in alone.items():
            if "adam" not in name:
                torch.testing.assert_close(theirs[name], tensor, rtol=0.01, atol=2e-4, msg=name)


def test_ranks_hold_the_same_weights(small_params: Params) -> None:
    """Weights that drift apart would train as many networks as ranks, and save one."""
    found = together(3, trained, small_params, range(6), False, None)
    first, *others = (safetensors.torch.load(state) for state, _ in found)
    for name, values in first.items():
        if "running" not in name:  # of a rank's own part, where batch norm is not synchronised
            assert all(torch.equal(other[name], values) for other in others), name


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_parts_make_the_batch(count: int) -> None:
    """An image of two ranks, or of none, would change what a batch is."""
    parts = [Ranks(rank, count).part(B) for rank in range(count)]
    assert [i for part in parts for i in range(B)[part]] == list(range(B))
    lengths = [part.stop - part.start for part in parts]
    assert max(lengths) - min(lengths) <= 1


def asked(place: Ranks) -> list[int]:
    """A signal comes to rank 1 in step 2, and another word to rank 0 in step 3."""
    words = [{(1, 2): signal.SIGTERM, (0, 3): 1000}.get((place.rank, step), 0) for step in range(5)]
    return [place.agreed(int(word)) for word in words]


def test_all_ranks_stop_after_the_same_step() -> None:
    """One that left a step before the others would leave them waiting for ever."""
    expected = [0, 0, signal.SIGTERM, 1000, 0]
    assert together(3, asked) == [expected] * 3
    assert Ranks().agreed(signal.SIGINT) == signal.SIGINT


def killed(place: Ranks) -> None:
    """Rank 1 dies between two updates."""
    place.agreed(0)
    if place.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    place.agreed(0)


def test_a_killed_rank_ends_the_others() -> None:
    """They would wait for it until somebody looks."""
    codes = together(3, killed)
    assert codes[1] == -signal.SIGKILL and codes[0] == codes[2] == 1


def test_the_device_follows_the_rank(monkeypatch: pytest.MonkeyPatch, small_params: Params) -> None:
    """All ranks would share the first GPU."""
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert [ranks.device_of(name) for name in ("cuda", "cuda:1", "cpu")] == ["cuda:2", "cuda:1", "cpu"]
    norms = models.build_generator(NetworkSpec(updated(small_params, model__ngf=2).model, 16, 1))
    names = list(norms.state_dict())
    ranks.synchronise(norms, Ranks(0, 2))
    assert list(norms.state_dict()) == names
    assert any(isinstance(module, ranks.SyncBatchNorm2d) for module in norms.modules())
