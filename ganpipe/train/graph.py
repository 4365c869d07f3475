"""A step recorded once as a CUDA graph and replayed: the device waits for no launch in between.

Off by default, because it has not run on a GPU yet: the tests replay by calling the step again, on the CPU.
"""

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from ganpipe.train.ranks import Ranks

# One update on a batch and its latent vectors; what it returns are numbers without gradient.
Update = Callable[[torch.Tensor, torch.Tensor], list[torch.Tensor]]
# Makes of a call without arguments one that repeats it on the same memory.
Record = Callable[[Callable[[], None]], Callable[[], None]]
WARM_UP = 3  # steps before the recording, in which libraries choose their algorithms and take their memory
# How far the numbers of a recorded step may be from the eager one's, as a share of them and at least as much:
# some kernels add up in any order.
TOLERANCE = {"float32": 2e-3, "bfloat16": 5e-2}


def possible(device: torch.device, place: Ranks) -> bool:
    """Say whether a step can be recorded here, and on stderr why not."""
    why = "" if device.type == "cuda" else "it needs a GPU"
    why = why or (f"{place.count} devices share each batch" if place.count > 1 else "")
    if why:
        print(f"train: no graph of the step: {why}; it goes on without", file=sys.stderr)
    return not why


def recorded(
    update: Update,
    networks: Sequence[nn.Module],
    optimizers: Sequence[torch.optim.Optimizer],
    example: tuple[torch.Tensor, torch.Tensor],
    precision: str,
    record: Record | None = None,
) -> Update:
    """Record an update, compare it with the eager one, and leave weights and optimizers as they were.

    Args:
        update: changes `networks` through `optimizers`, and nothing else.
        networks: in train mode.
        optimizers: torch.optim.Adam of their parameters; on a GPU made with `capturable=True`.
        example: a batch, float32 B×C×H×W, and latent vectors, float32 B×nz, of the shapes of all later ones.
        precision: of the networks, a key of TOLERANCE.
        record: how; None: as a CUDA graph.

    Returns:
        What to call instead: the replay, or `update` itself, which a line on stderr then says and why.
    """
    inputs = [tensor.clone() for tensor in example]
    found: list[torch.Tensor] = []

    def step() -> None:
        found[:] = update(*inputs)

    try:
        with _kept(networks, optimizers):
            numbers = [[number.clone() for number in update(*example)] for _ in range(2)]
        with _kept(networks, optimizers):
            replay = (record or _cuda_graph)(step)
        with _kept(networks, optimizers):
            again = []
            for _ in range(2):
                replay()
                again.append([number.clone() for number in found])
        apart = _apart(*(torch.cat([*itertools.chain(*each)]) for each in (numbers, again)))
    except (RuntimeError, NotImplementedError) as error:
        print(
            f"train: no graph of the step: {str(error).splitlines()[0]}; it goes on without", file=sys.stderr
        )
        return update
    if not apart <= TOLERANCE[precision]:
        print(f"train: the graph's numbers are {apart:.2g} off; training goes on without it", file=sys.stderr)
        return update
    print(
        f"train: each step is a graph, whose numbers are those of the step within {apart:.1g}",
        file=sys.stderr,
    )

    def replayed(real: torch.Tensor, z: torch.Tensor) -> list[torch.Tensor]:
        for kept, new in zip(inputs, (real, z), strict=True):
            kept.copy_(new)
        replay()
        return [number.clone() for number in found]  # the next replay writes to the same memory

    return replayed


def _cuda_graph(step: Callable[[], None]) -> Callable[[], None]:
    """Warm up beside the current stream, as recording demands, and record."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def _apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the largest difference of two vectors, as a share of the larger number or of 1; NaN with one."""
    difference = (a - b).abs() / torch.maximum(a.abs(), b.abs()).clamp(min=1)
    return float(difference.max())


@contextmanager
def _kept(networks: Sequence[nn.Module], optimizers: Sequence[torch.optim.Optimizer]) -> Iterator[None]:
    """Put weights, statistics and moments back afterwards, in place: a graph knows their addresses."""
    tensors = [t for network in networks for t in (*network.parameters(), *network.buffers())]
    before = [t.detach().clone() for t in tensors]
    known = {id(t): t.clone() for t in _states(optimizers)}
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
            for tensor in _states(optimizers):
                tensor.copy_(known[id(tensor)]) if id(tensor) in known else tensor.zero_()  # as Adam begins
        for network in networks:
            network.zero_grad()


def _states(optimizers: Sequence[torch.optim.Optimizer]) -> list[torch.Tensor]:
    return [tensor for each in optimizers for state in each.state.values() for tensor in state.values()]
