"""What is done about a trouble, and how a training goes on after it."""

from pathlib import Path

import pytest

from ganpipe.train import rescue as interventions
from ganpipe.train.rescue import Event, Trouble


def kept(folder: Path, attempt: int, *steps: int) -> None:
    """Put healthy checkpoints there."""
    place = interventions.healthy_folder(folder, attempt)
    place.mkdir(parents=True)
    for step in steps:
        (place / f"{step:09d}.checkpoint").write_text(f"attempt {attempt}, step {step}")


def test_nothing_happened(tmp_path: Path) -> None:
    """A plain training would be cut short or counted as rescued."""
    course = interventions.course(interventions.read(tmp_path), 300)
    assert (course.events, course.steps, course.attempt, course.ended) == ((), 300, 0, "finished")


def test_a_stop_ends_with_the_last_sound_step(tmp_path: Path) -> None:
    """A diverged training would run into the same trouble again and again."""
    trouble = Trouble(120, "diverged", 119, 'd_loss nan, "quoted"\nand broken')
    event = interventions.respond(tmp_path, 300, trouble, "stop", 100)
    course = interventions.course(interventions.read(tmp_path), 300)
    assert course.events == (event,) and course.steps == 119 and course.ended == "diverged"
    # The same training, seen from the shortened one: an earlier end wins.
    interventions.respond(tmp_path, 300, Trouble(119, "diverged", 90, "state"), "stop", 100)
    assert interventions.course(interventions.read(tmp_path), 300).steps == 90


@pytest.mark.parametrize("action", ["rescue", "rollback"])
def test_back_to_a_state_from_before_the_trouble(tmp_path: Path, action: interventions.Action) -> None:
    """A state from just before divergence diverges again."""
    kept(tmp_path, 0, 50, 100, 150)
    event = interventions.respond(tmp_path, 300, Trouble(220, "diverged", 219, ""), action, 100)
    assert event.back_to == 100
    folder = interventions.healthy_folder(tmp_path, 1)
    assert [path.read_text() for path in folder.iterdir()] == ["attempt 0, step 100"]
    # Soon after, nothing healthy of its own: the one that it began with.
    event = interventions.respond(tmp_path, 300, Trouble(130, "collapsed", 130, ""), action, 100)
    assert (event.attempt, event.back_to) == (1, 100)
    assert interventions.course(interventions.read(tmp_path), 300).attempt == 2


def test_three_attempts_then_it_stops(tmp_path: Path) -> None:
    """A training that cannot work would go on for ever."""
    for _ in range(4):
        event = interventions.respond(tmp_path, 300, Trouble(10, "diverged", 9, ""), "rescue", 100)
    course = interventions.course(interventions.read(tmp_path), 300)
    assert [e.action for e in course.events] == ["rescue"] * 3 + ["stop"]
    assert (event.back_to, course.steps, course.attempt, course.ended) == (9, 9, 3, "diverged")


def test_what_the_user_reads() -> None:
    """The line in the log is all that a user sees in the morning."""
    event = Event(220, 0, "diverged", "rescue", 100, "d_loss nan")
    assert str(event) == (
        "diverged at step 220: d_loss nan; going on from step 100 with half the rates and another seed"
    )
