"""Recording a step: the same training as without, or a line that says why there is no recording.

No GPU: what replays here is the step itself, called again on the recording's own memory.
"""

from collections.abc import Callable

import pytest
import torch

from ganpipe import models
from ganpipe.common import seeds as rng
from ganpipe.models import generator as snapshot
from ganpipe.models.layers import NetworkSpec
from ganpipe.params import Params
from ganpipe.train import graph
from ganpipe.train.ranks import Ranks
from ganpipe.train.step import update_d, update_g

B = 8
Step = Callable[[], None]


class Training:
    """Two small networks, their optimizers, and the update of both."""

    def __init__(self, params: Params, precision: str = "float32") -> None:
        torch.manual_seed(0)
        self.G, self.D = (
            models.build_generator(NetworkSpec(params.model, 16, 1)),
            models.build_discriminator(NetworkSpec(params.model, 16, 1)),
        )
        self.optimizers = [torch.optim.Adam(net.parameters(), 2e-3, fused=True) for net in (self.G, self.D)]
        self.params, self.calls = params, 0

    def update(self, real: torch.Tensor, z: torch.Tensor) -> list[torch.Tensor]:
        """Do what the loop does with a batch."""
        self.calls += 1
        fake, place = self.G(z), (Ranks(), B)
        d = update_d(self.G, self.D, self.optimizers[1], real, z, fake, (0.9, 0.0), B, *place)
        return [d, update_g(self.G, self.D, self.optimizers[0], z, fake, B, *place)]

    def draw(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw a batch and its latent vectors."""
        source = rng.generator(0, "test", step)
        return torch.rand(B, 1, 16, 16, generator=source) * 2 - 1, snapshot.draw_z(
            self.params.model, B, source
        )

    def recorded(self, record: graph.Record) -> graph.Update:
        """Record the update."""
        return graph.recorded(self.update, (self.G, self.D), self.optimizers, self.draw(0), "float32", record)

    def bytes(self) -> list[bytes]:
        """Return all weights, statistics and moments."""
        states = [t for each in self.optimizers for state in each.state.values() for t in state.values()]
        tensors = [*self.G.state_dict().values(), *self.D.state_dict().values(), *states]
        return [t.contiguous().numpy().tobytes() for t in tensors]


def again(step: Step) -> Step:
    """Record as a GPU does it: steps that warm up, and one whose memory is kept."""
    step()
    step()
    return step


@pytest.fixture
def training(small_params: Params) -> Training:
    """A training that has made no step yet."""
    return Training(small_params)


@pytest.mark.parametrize("before", [0, 3])
def test_a_recording_trains_as_the_step_does(
    training: Training, small_params: Params, before: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The steps that try it out would be a part of the training, or a batch would be seen twice."""
    plain = Training(small_params)
    for step in range(before):
        for each in (plain, training):
            each.update(*each.draw(step))
    replayed = training.recorded(again)
    assert "each step is a graph" in capsys.readouterr().err and replayed != training.update
    kept = [replayed(*training.draw(step)) for step in range(before, before + 4)]
    expected = [plain.update(*plain.draw(step)) for step in range(before, before + 4)]
    for numbers, wanted in zip(kept, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(numbers, wanted, strict=True))
    assert training.bytes() == plain.bytes()


def wrong(step: Step) -> Step:
    """A recording that does nothing, so that its numbers are old ones."""
    step()
    return lambda: None


def impossible(step: Step) -> Step:
    """A device that records nothing."""
    step()
    raise RuntimeError("operation not permitted when stream is capturing\nmore of it")


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (wrong, "numbers are"),
        (impossible, "no graph of the step: operation not permitted when stream is capt"),
    ],
)
def test_what_cannot_be_recorded_goes_on_without(
    training: Training,
    small_params: Params,
    record: graph.Record,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A night's training would end over a wish to be faster, or be another training."""
    plain = Training(small_params)
    assert training.recorded(record) == training.update
    err = capsys.readouterr().err
    assert said in err and len(err.splitlines()) == 1
    assert training.update(*training.draw(0))[0].tolist() == plain.update(*plain.draw(0))[0].tolist()
    assert training.bytes() == plain.bytes()


def test_a_number_that_is_none_is_no_agreement() -> None:
    """A recording that gives NaN only in its last numbers would pass, and the training would be lost."""
    assert not graph._apart(torch.tensor([1.0, torch.nan]), torch.ones(2)) <= 1e9
    assert graph._apart(torch.tensor([200.0, 0.5]), torch.tensor([100.0, 0.25])) == 0.5


def test_where_it_is_possible(capsys: pytest.CaptureFixture[str]) -> None:
    """Only a GPU records, and only a step that waits for nobody."""
    assert not graph.possible(torch.device("cpu"), Ranks())
    assert "no graph of the step: it needs a GPU" in capsys.readouterr().err
    assert not graph.possible(torch.device("cuda"), Ranks(0, 2))
    assert "2 devices share each batch" in capsys.readouterr().err
    assert graph.possible(torch.device("cuda"), Ranks())
