"""How a training responds to a trouble, and how it continues."""

from pathlib import Path

import pytest

from ganpipe.train.rescue import Action, Event, Trouble, healthy_folder, read_course, respond


def save_healthy(folder: Path, attempt: int, *steps: int) -> None:
    """Write healthy checkpoints of an attempt."""
    healthy_folder(folder, attempt).mkdir(parents=True)
    for step in steps:
        (healthy_folder(folder, attempt) / f"{step:09d}.checkpoint").write_text(
            f"attempt {attempt}, step {step}"
        )


def test_nothing_happened(tmp_path: Path) -> None:
    """A plain training would be cut short or counted as rescued."""
    course = read_course(tmp_path, 300)
    assert (course.events, course.steps, course.attempt, course.ended) == ((), 300, 0, "finished")


def test_a_stop_ends_with_the_last_sound_step(tmp_path: Path) -> None:
    """A diverged training would meet the same trouble again and again."""
    trouble = Trouble(120, "diverged", 119, 'd_loss nan, "quoted"\nand broken')
    event = respond(tmp_path, 300, trouble, "stop", 100)
    course = read_course(tmp_path, 300)
    assert course.events == (event,) and course.steps == 119 and course.ended == "diverged"
    # Of two stops the earlier end counts.
    respond(tmp_path, 300, Trouble(119, "diverged", 90, "state"), "stop", 100)
    assert read_course(tmp_path, 300).steps == 90


@pytest.mark.parametrize("action", ["rescue", "rollback"])
def test_back_to_a_state_from_before_the_trouble(tmp_path: Path, action: Action) -> None:
    """A training that returns to a state from just before it diverged would diverge again."""
    save_healthy(tmp_path, 0, 50, 100, 150)
    event = respond(tmp_path, 300, Trouble(220, "diverged", 219, ""), action, 100)
    assert event.back_to == 100
    folder = healthy_folder(tmp_path, 1)
    assert [path.read_text() for path in folder.iterdir()] == ["attempt 0, step 100"]
    # Without a healthy checkpoint of its own, the attempt returns to the one that it began with.
    event = respond(tmp_path, 300, Trouble(130, "collapsed", 130, ""), action, 100)
    assert (event.attempt, event.back_to) == (1, 100)
    assert read_course(tmp_path, 300).attempt == 2


def test_a_roll_back_after_a_rescue(tmp_path: Path) -> None:
    """A training that both diverges and collapses would end in a traceback or return too far."""
    save_healthy(tmp_path, 0, 100)
    respond(tmp_path, 300, Trouble(220, "diverged", 219, ""), "rescue", 100)
    event = respond(tmp_path, 300, Trouble(130, "collapsed", 130, ""), "rollback", 100)
    assert (event.action, event.attempt, event.back_to) == ("rollback", 1, 100)


def test_three_attempts_then_it_stops(tmp_path: Path) -> None:
    """A training that cannot work would run forever."""
    for _ in range(4):
        event = respond(tmp_path, 300, Trouble(10, "diverged", 9, ""), "rescue", 100)
    course = read_course(tmp_path, 300)
    assert [e.action for e in course.events] == ["rescue"] * 3 + ["stop"]
    assert (event.back_to, course.steps, course.attempt, course.ended) == (9, 9, 3, "diverged")


def test_an_event_is_reported_in_one_line() -> None:
    """A user would not learn from the log what happened during the night."""
    event = Event(220, 0, "diverged", "rescue", 100, "d_loss nan")
    assert str(event) == (
        "diverged at step 220: d_loss nan; "
        "resuming from step 100 with half the learning rates and another seed"
    )
