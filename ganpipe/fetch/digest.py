"""The digest of the pictures, by which DVC notices that they changed.

DVC does not hash the pictures itself: a broken link, a pipe, a .dvcignore or a name that is not UTF-8 among
them would stop or hang it before `fetch` could leave the file out.
"""

import hashlib
import json
import os
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from filelock import FileLock

from ganpipe.common import files
from ganpipe.common.errors import UserError
from ganpipe.common.progress import Progress
from ganpipe.common.stages import stage_folder
from ganpipe.fetch.archives import listing, open_file
from ganpipe.fetch.paths import PLACEHOLDER, path_problem, resolved
from ganpipe.params import Fetch


def write_digest(params: Fetch, root: Path) -> None:
    """Write stages/fetch/pictures.sha256, the digest of all that fetch reads at fetch.path.

    A file is read again only if its inode, size or times have changed; `.ganpipe/pictures/` has the others'.

    Raises:
        UserError: the path does not fit the source or is missing, or a file in it cannot be read.
    """
    if problem := path_problem(params, root):
        raise UserError(problem)
    digest = hashlib.sha256()
    if params.path != PLACEHOLDER:
        path = resolved(params.path, root)
        name = f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}.json"
        record = files.main_checkout(root) / ".ganpipe/pictures" / name
        record.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(record.with_suffix(".lock")):  # experiments side by side read the pictures once
            for name, sha256 in _sha256s(path, record):
                digest.update(f"{sha256} {name}\n".encode())
    with files.whole(stage_folder(root, "fetch") / "pictures.sha256") as temporary:
        temporary.write_text(f"{digest.hexdigest()}\n")


def _sha256s(path: Path, record: Path) -> list[tuple[str, str]]:
    """Return the name and sha256 of each file in a folder, or of the file itself; update the record."""
    try:
        known = json.loads(record.read_bytes())
    except (FileNotFoundError, ValueError):  # not there yet, or damaged
        known = {}
    current, pairs = {}, []
    with listing(path) if path.is_dir() else nullcontext([("", partial(open_file, path))]) as listed:
        with Progress("digest", len(listed), unit="files") as progress:
            for name, opener in listed:
                with opener() as stream:
                    s = os.fstat(stream.fileno())
                    key = f"{s.st_dev} {s.st_ino} {s.st_size} {s.st_mtime_ns} {s.st_ctime_ns}"
                    current[key] = known.get(key) or hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
                pairs.append((name, current[key]))
                progress.advance()
    if current != known:
        with files.whole(record) as temporary:
            temporary.write_text(json.dumps(current))
    return pairs
