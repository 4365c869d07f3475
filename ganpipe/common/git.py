"""Run git in a checkout."""

import os
import re
import subprocess
from pathlib import Path

from ganpipe.common.errors import UserError

# DVC's and git's variables of another checkout, and what hides a checkout's code from `python -m`.
OTHER_CHECKOUT = re.compile(r"DVC_|GIT_(DIR|WORK_TREE|INDEX_FILE)$|PYTHONSAFEPATH$")


def git(root: Path, *words: str) -> str | None:
    """Return git's output in a checkout; None: git failed, as it does outside a repository."""
    try:
        return git_or_error(root, *words, timeout=30)
    except (OSError, subprocess.SubprocessError, UserError):
        return None


def git_or_error(root: Path, *words: str, timeout: float | None = None) -> str:
    """Return git's output; raise a UserError with the reason if it fails. It never asks a password."""
    environment = {name: value for name, value in os.environ.items() if not OTHER_CHECKOUT.match(name)}
    environment |= {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    command = ["git", "-C", str(root), *words]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, errors="replace", timeout=timeout
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if re.match("(fatal|error): |.*rejected", line)]
        raise UserError(f"git {words[0]}: {(lines or done.stderr.splitlines() or ['it failed'])[0].strip()}")
    return done.stdout.strip()
