"""fetch.path: the placeholder, and whether a path is available in the copies that queued experiments use."""

import subprocess
from pathlib import Path

# The value of fetch.path when there is no path to give, because DVC requires a dependency that exists.
PLACEHOLDER = "stages/fetch/packaged.txt"
ADVICE = (
    "a queued or --temp experiment runs in a copy of the checkout that has only tracked files: "
    "give an absolute path, or run `dvc add {path}` and commit the .dvc file"
)


def travels(path: Path, root: Path) -> bool:
    """Return whether DVC or git puts a path into the copies of the checkout that queued experiments use."""
    path, root = path.resolve(), root.resolve()
    if not path.is_relative_to(root):
        return False
    ancestors = [path, *path.parents]
    if any(p.with_name(f"{p.name}.dvc").is_file() for p in ancestors[: ancestors.index(root)]):
        return True
    try:
        listed = subprocess.run(["git", "ls-files", "--", path], cwd=root, capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return bool(listed.stdout)
