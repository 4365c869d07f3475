"""The error for which a user gets one clear line instead of a traceback."""


class UserError(Exception):
    """Something that the user can mend: names what, where and what to do. Ends a command with exit code 2."""
