"""The exceptions that end a command without a traceback."""

import signal


class UserError(Exception):
    """Something that the user can mend: names what, where and what to do. Ends a command with exit code 2."""


class Interrupted(Exception):
    """A signal asked the training to stop after a step; everything up to there is in a checkpoint.

    Ends a command with exit code 128 + signum, so that DVC does not take the stage as done.
    """

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(
            f"stopped by {signal.Signals(signum).name} after step {step}; run it again to go on from there"
        )
        self.signum = signum
