"""The package files that a module imports, and their digest, so that edited code never resumes old work."""

import ast
import hashlib
from collections.abc import Iterable
from pathlib import Path

# How params.yaml is parsed changes no result; the values are compared on their own.
NOT_COUNTED = {"ganpipe/params.py"}


def import_closure(module: str, root: Path) -> list[str]:
    """List the files of the package that importing a module executes, directly or through other modules.

    The module is named as in "ganpipe.train.stage"; `root` is the checkout. The paths are sorted, relative to
    root, without NOT_COUNTED and without packages that hold only a docstring.
    """
    paths: set[str] = set()
    pending = [module]
    while pending:
        name = pending.pop()
        stem = name.replace(".", "/")
        for path in {f"{stem}.py", f"{stem}/__init__.py"} - paths:
            if (root / path).is_file():
                paths.add(path)
                pending += [name.rpartition(".")[0] or name]
                pending += imports(root / path) if path not in NOT_COUNTED else []
    packages = [root / path for path in paths if path.endswith("/__init__.py")]
    empty = {path for path in packages if len(ast.parse(path.read_text(encoding="utf-8")).body) <= 1}
    return sorted(path for path in paths - NOT_COUNTED if root / path not in empty)


def code_digest(paths: Iterable[str], root: Path) -> str:
    """Return the hexadecimal sha256 of the names and contents of files in a checkout."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path}\0{hashlib.sha256((root / path).read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def imports(path: Path) -> list[str]:
    """List the dotted names that a file imports from ganpipe: modules, and names inside modules."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.split(".")[0] == "ganpipe"]
