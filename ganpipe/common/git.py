"""Read from git."""

import subprocess
from pathlib import Path


def git(root: Path, *words: str) -> str | None:
    """Return git's output in a checkout; None: git failed, as it does outside a repository."""
    command = ["git", "-C", str(root), *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
