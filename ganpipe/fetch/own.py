"""One's own pictures: in any folders and under any names, with or without a table of points."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ganpipe.fetch.archives import listing
from ganpipe.fetch.landmarks import CSV_NAME, read_table
from ganpipe.fetch.layouts import Found


@contextmanager
def everything(places: tuple[Path, ...]) -> Iterator[Found]:
    """List all visible files below a folder, or in a zip or tar, at any depth.

    A file landmarks.csv there holds points in the pictures, whose names in it are relative to its folder.
    """
    with listing(*places) as found:
        pictures, points = [], {}
        for name, opener in found:
            folder, slash, file = name.rpartition("/")
            if file != CSV_NAME:
                pictures.append((name, opener))
                continue
            table = read_table(f"fetch.path: {places[0]}: {name}", opener)
            points.update({f"{folder}{slash}{key}": values for key, values in table.items()})
        yield Found(pictures, points)
