"""Recording a step: the same training as without, or a line that says why the step is not recorded.

There is no GPU: a replay here calls the step again on the recording's own memory.
"""

from collections.abc import Callable

import pytest
import torch

from ganpipe import models
from ganpipe.common.seeds import generator
from ganpipe.models.generator import draw_z
from ganpipe.models.layers import NetworkSpec
from ganpipe.params import Params
from ganpipe.train.devices import graph
from ganpipe.train.devices.ranks import Ranks
from ganpipe.train.players import Players, state_of
from ganpipe.train.step import StepSettings, generate, update_d, update_g

SETTINGS = StepSettings(0.9, 0.0, batch_size=8)
Step = Callable[[], None]
Capture = Callable[[Step], Step]


class Training:
    """Two small networks, their optimizers, and the update of both."""

    def __init__(self, params: Params) -> None:
        torch.manual_seed(0)
        spec = NetworkSpec(params.model, 16, 1)
        G, D = models.build_generator(spec), models.build_discriminator(spec)
        adams = [torch.optim.Adam(net.parameters(), 2e-3, fused=True) for net in (G, D)]
        self.players, self.params = Players(G, D, adams[0], adams[1]), params

    def update(self, real: torch.Tensor, z: torch.Tensor) -> list[torch.Tensor]:
        """Update both players as the loop does."""
        fake = generate(self.players.G, z, SETTINGS)
        d_numbers = update_d(self.players, real, z, fake, SETTINGS)
        return [d_numbers, update_g(self.players, z, fake, SETTINGS)]

    def draw(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw a batch and its latent vectors."""
        source = generator(0, "test", step)
        real = torch.rand(8, 1, 16, 16, generator=source) * 2 - 1
        return real, draw_z(self.params.model, 8, source)

    def record(self, capture: Capture, monkeypatch: pytest.MonkeyPatch) -> graph.Replay | None:
        """Record the update in another way than as a CUDA graph."""
        monkeypatch.setattr(graph, "capture_graph", capture)
        return graph.record_step(self.players, SETTINGS, self.draw(0), "float32")

    def bytes(self) -> dict[str, bytes]:
        """Return all weights, statistics and moments."""
        state = state_of(self.players)
        return {name: tensor.detach().contiguous().numpy().tobytes() for name, tensor in state.items()}


def capture_on_cpu(step: Step) -> Step:
    """Record as a GPU does: steps to warm up, and one whose memory is kept."""
    step()
    step()
    return step


@pytest.fixture
def training(small_params: Params) -> Training:
    """A training before its first step."""
    return Training(small_params)


@pytest.mark.parametrize("before", [0, 3])
def test_a_replay_trains_as_the_step_does(
    training: Training,
    small_params: Params,
    before: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The steps that warm up would count as training, or a batch would be used twice."""
    plain = Training(small_params)
    for step in range(before):
        plain.update(*plain.draw(step))
        training.update(*training.draw(step))
    replay = training.record(capture_on_cpu, monkeypatch)
    assert capsys.readouterr().err == "" and replay is not None
    replayed = [replay(*training.draw(step)) for step in range(before, before + 4)]
    expected = [plain.update(*plain.draw(step)) for step in range(before, before + 4)]
    for numbers, plain_numbers in zip(replayed, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(numbers, plain_numbers, strict=True))
    assert training.bytes() == plain.bytes()


def capture_nothing(step: Step) -> Step:
    """A recording whose replay does nothing, so that its numbers are old ones."""
    step()
    return lambda: None


def refuse(step: Step) -> Step:
    """A device that cannot record."""
    step()
    raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has\nmore of it")


@pytest.mark.parametrize(
    ("capture", "message"),
    [
        (capture_nothing, "not replayed as a graph: other numbers"),
        (refuse, "not replayed as a graph: CUDA out of memory\n"),
    ],
)
def test_a_step_that_cannot_be_recorded_trains_without(
    training: Training,
    small_params: Params,
    capture: Capture,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A night's training would end because of an option that only makes it faster, or be another training."""
    plain = Training(small_params)
    assert training.record(capture, monkeypatch) is None
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1
    assert training.update(*training.draw(0))[0].tolist() == plain.update(*plain.draw(0))[0].tolist()
    assert training.bytes() == plain.bytes()


def test_nan_is_no_agreement(
    training: Training, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A recording that gives NaN only in its last numbers would pass, and the training would be lost."""

    def capture_a_nan(step: Step) -> Step:
        calls: list[int] = []

        def replay() -> None:
            calls.append(1)
            if len(calls) == 2:
                next(training.players.D.parameters()).data.fill_(torch.nan)
            step()

        return replay

    assert training.record(capture_a_nan, monkeypatch) is None
    assert "other numbers" in capsys.readouterr().err


def test_where_a_step_can_be_recorded() -> None:
    """Only a GPU records, and only a step that does not wait for other ranks."""
    assert not graph.can_record("cpu", Ranks())
    assert not graph.can_record("cuda", Ranks(0, 2))
    assert graph.can_record("cuda", Ranks())
