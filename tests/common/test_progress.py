"""Progress where there is no terminal."""

import io
from functools import partial

import pytest
from rich.console import Console

from ganpipe.common import progress as progress_module
from ganpipe.common.progress import Progress


def test_plain_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In a queue's log a bar's control characters would be unreadable, and silence would look like a hang."""
    monkeypatch.setattr("ganpipe.common.progress.LINE_EVERY", 0)
    with Progress("train", total=10, done=4) as progress:
        progress.advance(3, note="d_loss 1.00")
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 2
    assert printed.err.startswith("train: 7/10 images (70%)") and "d_loss 1.00\n" in printed.err
    assert "\x1b" not in printed.err


def test_rate_counts_this_process_alone() -> None:
    """Counting an interrupted run's images would give the next run a wrong rate and time left."""
    progress = Progress("train", total=10, done=4)
    assert progress.rate == 0
    progress.advance()
    assert progress.rate > 0


def test_names_in_brackets_are_shown_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure means that a file `[red].zip` has no name in the bar, or that `[/x]` ends the command."""
    terminal = io.StringIO()
    monkeypatch.setattr(
        progress_module, "Console", partial(Console, file=terminal, force_terminal=True, width=99)
    )
    with Progress("read [red] [/x]", total=2) as progress:
        progress.advance(2, note="[blue]")
    assert "read [red] [/x]" in terminal.getvalue() and "[blue]" in terminal.getvalue()
