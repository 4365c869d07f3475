"""The error about a value of the section `evaluate`, which `ganpipe score` takes as options."""

from ganpipe.common.errors import UserError


class ParamError(UserError):
    """A value of the section `evaluate` cannot be used; `ganpipe score` reports it under its own name."""

    def __init__(self, param: str, reason: str) -> None:
        super().__init__(f"evaluate.{param}: {reason}")
        self.param, self.reason = param, reason
