"""The exceptions that end a command without a traceback."""

import errno
import re
import signal

# User and password before an @, also with a slash in the password; and passwords among a query's values.
SECRET = re.compile(
    r"(?<=://)(?:[^\s/@:]*:\S*|[^\s/]*)(?=@)|(?<=[?&])(\w*(?:password|pwd|token|secret)=)[^&\s]+", re.I
)


class UserError(Exception):
    """A mistake that the user can correct: the text names the remedy. Ends a command with exit code 2.

    The text has no passwords: addresses in it come from settings and from other libraries' errors.
    """

    def __init__(self, text: str) -> None:
        super().__init__(without_secrets(text))


def without_secrets(text: str) -> str:
    """Replace the user, password and tokens in the addresses of a text by ***."""
    return SECRET.sub(r"\g<1>***", text)


class ParamError(UserError):
    """A value of the section `evaluate` cannot be used; `ganpipe score` reports it under its own name."""

    def __init__(self, param: str, reason: str) -> None:
        super().__init__(f"evaluate.{param}: {reason}")
        self.param, self.reason = param, reason


class Interrupted(Exception):
    """Training was stopped by a signal after a step, whose state is in a checkpoint.

    Ends a command with exit code 128 + signum, so that DVC does not regard the stage as done.
    """

    def __init__(self, signum: int, step: int) -> None:
        name = signal.Signals(signum).name
        super().__init__(f"stopped by {name} after step {step}; run it again to resume from there")
        self.signum = signum


def lines_of(error: UserError | OSError) -> list[str]:
    """Return the lines that describe an error to a user."""
    if isinstance(error, UserError):
        return str(error).splitlines()
    path = error.filename2 or error.filename
    remedy = "; free some space and run it again" if error.errno == errno.ENOSPC else ""
    return [without_secrets(f"{f'{path}: ' if path else ''}{error.strerror or error}{remedy}")]
