"""Progress where there is no terminal."""

import pytest

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
