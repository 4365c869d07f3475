"""The exceptions that end a command without a traceback."""

import signal


class UserError(Exception):
    """A mistake that the user can correct: the text names the remedy. Ends a command with exit code 2."""


class Interrupted(Exception):
    """Training was stopped by a signal after a step, whose state is in a checkpoint.

    Ends a command with exit code 128 + signum, so that DVC does not regard the stage as done.
    """

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(
            f"stopped by {signal.Signals(signum).name} after step {step}; run it again to resume from there"
        )
        self.signum = signum
