"""Which files of the package a module needs, and their digest, so that edited code never passes for old."""

import ast
import hashlib
from collections.abc import Iterable
from pathlib import Path

# No part of what a stage computes: the values in params.yaml count, not how they are parsed or mirrored.
NOT_COUNTED = {"ganpipe/params.py", "ganpipe/tracking.py"}


def import_closure(module: str, root: Path) -> list[str]:
    """List the package's files that importing a module executes, without NOT_COUNTED.

    Args:
        module: dotted name, such as "ganpipe.train".
        root: the checkout, the folder that holds `ganpipe/`.

    Returns:
        Paths relative to root, sorted, with the module's own and its packages' __init__ files.
    """
    found: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        path = _file_of(name, root)
        if path is None or path in found:
            continue
        found.add(path)
        todo += [name.rpartition(".")[0]] if "." in name else []
        if path not in NOT_COUNTED:
            todo += _imports(root / path)
    return sorted(found - NOT_COUNTED)


def code_digest(paths: Iterable[str], root: Path) -> str:
    """Return the hexadecimal sha256 over the names and bytes of files of a checkout."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path}\0{hashlib.sha256((root / path).read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _file_of(module: str, root: Path) -> str | None:
    stem = module.replace(".", "/")
    return next((path for path in (f"{stem}.py", f"{stem}/__init__.py") if (root / path).is_file()), None)


def _imports(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.split(".")[0] == "ganpipe"]
