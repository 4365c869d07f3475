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
from torch import nn

from ganpipe import models
from ganpipe.common.seeds import generator
from ganpipe.models.generator import draw_z
from ganpipe.models.layers import NetworkSpec
from ganpipe.params import Params
from ganpipe.train.devices.compute import replace_modules, synchronize
from ganpipe.train.devices.ranks import Ranks, join_ranks, rank_device

B = 10  # divides by neither 3 nor 4
PATIENCE = 120  # seconds until a rank without a result counts as hanging
State = dict[str, torch.Tensor]


def run_ranks(count: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Run work(ranks, *arguments) in `count` forked processes; return each result, or else the exit code."""
    context = multiprocessing.get_context("fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def begin(rank: int, sender: Any) -> None:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count))
        with join_ranks("cpu") as ranks:
            sender.send(work(ranks, *arguments))

    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    processes = [context.Process(target=begin, args=(r, sender)) for r, (_, sender) in enumerate(pipes)]
    for process in processes:
        process.start()
    for _, sender in pipes:
        sender.close()
    results: list[Any] = []
    for process, (receiver, _) in zip(processes, pipes, strict=True):
        try:
            results.append(receiver.recv() if receiver.poll(PATIENCE) else None)
        except EOFError:
            results.append(None)
        process.join(60)
        results[-1] = process.exitcode or results[-1]
    for process in processes:
        process.kill()  # one that hangs; else pytest would wait for it at its end
    return results


def training(
    ranks: Ranks, params: Params, steps: range, sync: bool, state: State | None
) -> tuple[State, list[list[float]]]:
    """Train G and D as the loop does, on this rank's part of the batch; return the state and the losses."""
    torch.manual_seed(0)
    spec = NetworkSpec(params.model, 16, 1)
    G, D = models.build_generator(spec), models.build_discriminator(spec)
    if sync:
        G, D = replace_modules(G, synchronize), replace_modules(D, synchronize)
    optimizers = [torch.optim.Adam(net.parameters(), 2e-3, (0.5, 0.999), fused=True) for net in (D, G)]
    whole = nn.ModuleList([G, D])
    if state is not None:
        whole.load_state_dict({k: v for k, v in state.items() if not k.startswith("adam")})
        for i, optimizer in enumerate(optimizers):
            for j, parameter in enumerate(optimizer.param_groups[0]["params"]):
                names = ("step", "exp_avg", "exp_avg_sq")
                optimizer.state[parameter] = {n: state[f"adam/{i}/{j}/{n}"].clone() for n in names}
    numbers, part = [], ranks.part(B)
    criterion = nn.BCEWithLogitsLoss(reduction="sum")
    for step in steps:
        source = generator(0, "test", step)
        real = torch.rand(B, 1, 16, 16, generator=source)[part] * 2 - 1
        fake = G(draw_z(params.model, B, source)[part])
        optimizers[0].zero_grad()
        on_real = criterion(D(real), torch.ones(len(real)))
        on_fake = criterion(D(fake.detach()), torch.zeros(len(real)))
        d_loss = (on_real + on_fake) / B
        d_loss.backward()
        d_sum = ranks.sum_gradients(D.parameters(), d_loss.detach()[None])
        optimizers[0].step()
        optimizers[1].zero_grad()
        g_loss = criterion(D(fake), torch.ones(len(fake))) / B
        g_loss.backward()
        g_sum = ranks.sum_gradients(G.parameters(), g_loss.detach()[None])
        optimizers[1].step()
        numbers.append([d_sum.item(), g_sum.item()])
    ended = dict(whole.state_dict())
    for i, optimizer in enumerate(optimizers):
        for j, values in enumerate(optimizer.state.values()):
            ended |= {f"adam/{i}/{j}/{name}": value for name, value in values.items()}
    return {name: tensor.detach().clone() for name, tensor in ended.items()}, numbers


def trained(ranks: Ranks, params: Params, steps: range, sync: bool, state: bytes | None) -> Any:
    """Train in a process of run_ranks; the state travels between processes as bytes."""
    before = safetensors.torch.load(state) if state else None
    after, numbers = training(ranks, params, steps, sync, before)
    return safetensors.torch.save(after), numbers


@pytest.mark.parametrize("count", [2, 3])
def test_resume_is_exact(small_params: Params, count: int) -> None:
    """Gradients that add up in another order in new processes end in another generator."""
    whole = run_ranks(count, trained, small_params, range(6), False, None)
    first = run_ranks(count, trained, small_params, range(3), False, None)
    second = run_ranks(count, trained, small_params, range(3, 6), False, first[0][0])
    assert second[0][0] == whole[0][0] and first[0][1] + second[0][1] == whole[0][1]
    assert all(numbers == whole[0][1] for _, numbers in whole)


@pytest.mark.parametrize("count", [2, 3])
def test_synchronized_ranks_equal_one_process(small_params: Params, count: int) -> None:
    """The same global batch must give the same training, however many share it; parts are of unequal size."""
    alone, numbers = training(Ranks(), small_params, range(6), False, None)
    for state, their_numbers in run_ranks(count, trained, small_params, range(6), True, None):
        theirs = safetensors.torch.load(state)
        torch.testing.assert_close(torch.tensor(their_numbers), torch.tensor(numbers), rtol=1e-4, atol=1e-5)
        for name, tensor in alone.items():
            if "adam" not in name:
                torch.testing.assert_close(theirs[name], tensor, rtol=0.01, atol=2e-4, msg=name)


def test_ranks_hold_the_same_weights(small_params: Params) -> None:
    """Weights that drift apart would train as many networks as ranks, and save one."""
    results = run_ranks(3, trained, small_params, range(6), False, None)
    first, *others = (safetensors.torch.load(state) for state, _ in results)
    for name, values in first.items():
        if "running" not in name:  # statistics of the rank's own part, without synchronized batch norm
            assert all(torch.equal(other[name], values) for other in others), name


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_parts_make_the_batch(count: int) -> None:
    """An image of two ranks, or of none, would change what a batch is."""
    parts = [Ranks(rank, count).part(B) for rank in range(count)]
    assert [i for part in parts for i in range(B)[part]] == list(range(B))
    lengths = [part.stop - part.start for part in parts]
    assert max(lengths) - min(lengths) <= 1


def largest_numbers(ranks: Ranks) -> list[int]:
    """Rank 1 gets a signal in step 2, and rank 0 another number in step 3."""
    numbers = [{(1, 2): signal.SIGTERM, (0, 3): 1000}.get((ranks.rank, step), 0) for step in range(5)]
    return [ranks.maximum(int(number)) for number in numbers]


def test_all_ranks_stop_after_the_same_step() -> None:
    """One that left a step before the others would leave them waiting for ever."""
    expected = [0, 0, signal.SIGTERM, 1000, 0]
    assert run_ranks(3, largest_numbers) == [expected] * 3
    assert Ranks().maximum(signal.SIGINT) == signal.SIGINT


def kill_rank_1(ranks: Ranks) -> None:
    """Rank 1 dies between two updates."""
    ranks.maximum(0)
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    ranks.maximum(0)


def test_a_killed_rank_ends_the_others() -> None:
    """They would wait for it until somebody looks."""
    codes = run_ranks(3, kill_rank_1)
    assert codes[1] == -signal.SIGKILL and codes[0] == codes[2] == 1


def broadcast(ranks: Ranks) -> bytes:
    """Every rank has bytes of its own, of its own length."""
    return ranks.broadcast(bytes(range(10 * ranks.rank, 100)))


def test_every_rank_gets_the_first_rank_s_bytes() -> None:
    """Ranks that read different events or checkpoints would train different networks."""
    assert run_ranks(3, broadcast) == [bytes(range(100))] * 3
    assert run_ranks(2, lambda ranks: ranks.broadcast(b"")) == [b"", b""]
    assert Ranks().broadcast(b"alone") == b"alone"


def test_the_device_follows_the_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """All ranks would share the first GPU."""
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert [rank_device(name) for name in ("cuda", "cuda:1", "cpu")] == ["cuda:2", "cuda:1", "cpu"]
