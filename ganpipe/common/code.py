"""The package's files that a module needs, and their digest, so that edited code never resumes old work."""

import ast
import hashlib
from collections.abc import Iterable
from pathlib import Path

# How params.yaml is parsed decides no result: the values in it do, and they are compared by themselves.
NOT_COUNTED = {"ganpipe/params.py"}


def import_closure(module: str, root: Path) -> list[str]:
    """List the package's files that importing a module executes.

    Args:
        module: dotted name, such as "ganpipe.train.stage".
        root: the checkout, the folder that holds `ganpipe/`.

    Returns:
        Paths relative to root, sorted, without NOT_COUNTED and without files that hold only a docstring.
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
            todo += imports(root / path)
    return sorted(path for path in found - NOT_COUNTED if not _is_docstring(root / path))


def code_digest(paths: Iterable[str], root: Path) -> str:
    """Return the hexadecimal sha256 over the names and bytes of files of a checkout."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path}\0{hashlib.sha256((root / path).read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def imports(path: Path) -> list[str]:
    """List the dotted names that a file imports from ganpipe: modules, and attributes of modules."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.split(".")[0] == "ganpipe"]


def _file_of(module: str, root: Path) -> str | None:
    stem = module.replace(".", "/")
    return next((path for path in (f"{stem}.py", f"{stem}/__init__.py") if (root / path).is_file()), None)


def _is_docstring(path: Path) -> bool:
    """Say whether a package's file holds nothing but its docstring, so that no change of it matters."""
    return path.name == "__init__.py" and len(ast.parse(path.read_text(encoding="utf-8")).body) <= 1
