"""One's own pictures: on disk, in any folders and under any names, with or without a table of points."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ganpipe.errors import UserError
from ganpipe.sources.archives import listing
from ganpipe.sources.found import Found
from ganpipe.sources.points import CSV_NAME, read_table


class Folder:
    """Pictures on disk: all visible files below a folder, or in a zip or tar, at any depth.

    A file landmarks.csv there holds points in the pictures, whose names in it are relative to its folder.
    """

    name = "folder"
    description = "your own pictures: a folder (with its subfolders), zip or tar (.gz, .bz2, .xz) on disk"
    licence = cite = "your own"
    published: int | None = None
    packaged = False
    needs_path = True

    @contextmanager
    def files(self, path: Path | None) -> Iterator[Found]:
        """List the files of a folder or archive; see `listing`."""
        if path is None:
            raise UserError(
                "fetch.path: found the placeholder, but fetch.source=folder reads your own pictures; "
                "set fetch.path to a folder, zip or tar"
            )
        with listing(path) as found:
            pictures, points = [], {}
            for name, opener in found:
                folder, slash, file = name.rpartition("/")
                if file != CSV_NAME:
                    pictures.append((name, opener))
                    continue
                table = read_table(f"fetch.path: {path}: {name}", opener)
                points.update({f"{folder}{slash}{key}": values for key, values in table.items()})
            yield Found(pictures, points)
