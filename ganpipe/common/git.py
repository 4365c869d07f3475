"""Read from git."""

import subprocess
from pathlib import Path


def git(root: Path, *words: str) -> str | None:
    """Return git's output in a checkout; None: git failed, as it does outside a repository."""
    command = ["git", "-C", str(root), *words]
    try:
        done = subprocess.run(command, capture_output=True, errors="replace", check=True, timeout=30)
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
