"""A step recorded once as a CUDA graph and replayed, so that the device does not wait for kernel launches.

Replays give the bytes of plain steps (tests/trials/gpu.py). Where there is no GPU, the tests replay by
calling the step again.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ganpipe.train.devices.ranks import Ranks
from ganpipe.train.players import Players, state_of
from ganpipe.train.step import StepSettings, generate, update_d, update_g

# Takes a batch and its latent vectors, and returns the numbers of `update_d` and of `update_g`.
Replay = Callable[[torch.Tensor, torch.Tensor], list[torch.Tensor]]
WARM_UP = 3  # steps before the recording, in which libraries choose algorithms and allocate memory
# Relative and absolute tolerance of a replay's numbers. Those of cuDNN's exact kernels agree to the bit.
TOLERANCE = {"float32": 2e-3, "bfloat16": 5e-2}


def can_record(device: str, ranks: Ranks) -> bool:
    """Return whether a step on a torch device can be recorded: on a GPU that does not wait for others."""
    return torch.device(device).type == "cuda" and ranks.count == 1


def record_step(
    players: Players, settings: StepSettings, example: tuple[torch.Tensor, torch.Tensor], precision: str
) -> Replay | None:
    """Record the update of both players, on a GPU with capturable Adams; leave them unchanged.

    The `example` is a batch, float32 B×C×H×W, and z, float32 B×inputs, of the shapes of all later ones.
    Return None, with the reason on stderr, if recording fails or a replay and a plain step differ.
    """
    real, z = (tensor.clone() for tensor in example)
    numbers: list[torch.Tensor] = []

    def step() -> None:
        fake = generate(players.G, z, settings)
        numbers[:] = [update_d(players, real, z, fake, settings), update_g(players, z, fake, settings)]

    @_players_unchanged(players)
    def numbers_of_two(run: Callable[[], None]) -> torch.Tensor:
        run()
        first = torch.cat(numbers)
        run()
        return torch.cat([first, *numbers])

    def replay_on(new_real: torch.Tensor, new_z: torch.Tensor) -> list[torch.Tensor]:
        real.copy_(new_real)
        z.copy_(new_z)
        replay()
        return [number.clone() for number in numbers]  # the next replay writes to the same memory

    try:
        plain = numbers_of_two(step)
        with _players_unchanged(players):
            replay = capture_graph(step)
        tolerance = TOLERANCE[precision]
        torch.testing.assert_close(numbers_of_two(replay), plain, rtol=tolerance, atol=tolerance)
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        text = str(error).partition("\n")[0].partition(". ")[0]
        reason = "other numbers" if isinstance(error, AssertionError) else text
        print(f"train: the step is not replayed as a graph: {reason}", file=sys.stderr)
        return None
    return replay_on


def capture_graph(step: Callable[[], None]) -> Callable[[], None]:
    """Record a call as a CUDA graph, after warming up on a side stream, and return its replay."""
    side_stream = torch.cuda.Stream()
    side_stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side_stream):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(side_stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


@contextmanager
def _players_unchanged(players: Players) -> Iterator[None]:
    """Restore the state of the players afterwards, in place, because a graph knows its addresses."""
    before = {name: t.clone() for name, t in state_of(players).items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, tensor in state_of(players).items():
                tensor.copy_(before[name])
        players.G.zero_grad()
        players.D.zero_grad()
