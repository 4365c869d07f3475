"""Landmarks: points in each picture, read from tables and from CAT's files."""

import csv
import math
from collections.abc import Iterator

from ganpipe.common.errors import UserError
from ganpipe.fetch.archives import Opener, clean_name

# Picture → x, y, x, y … in pixels of the upright picture; the first two points are the eyes, left one first.
Points = dict[str, tuple[float, ...]]

# The name of a user's own table, in the same folder or archive as the pictures.
TABLE_NAME = "landmarks.csv"
MAX_TABLE_BYTES = 1 << 28  # a table of 200,000 pictures with nine points has 12 MB
HEADINGS = 2  # lines above the first picture: CelebA's count, and the names of the columns


def read_table(name: str, opener: Opener) -> Points:
    """Read a table of points: in every row a picture's name, then x and y of each point.

    Cells are separated by commas, semicolons, tabs or spaces. A heading, and the count that CelebA puts above
    it, are skipped. Names are cleaned as the pictures' names are. `name` is the table's, for messages.

    Raises UserError: the table is too large, or a line cannot be read; names the line.
    """
    points: Points = {}
    for row, (number, line, cells) in enumerate(table_lines(name, opener)):
        values = _coordinates(cells[1:])
        if values is None or not cells[0].strip():
            if not points and row < HEADINGS:
                continue
            raise UserError(
                f"{name}: line {number}: found {line[:80]!r}, expected a name and x, y of two or more points"
            )
        points["/".join(clean_name(cells[0].strip()))] = values
    return points


def table_lines(name: str, opener: Opener) -> Iterator[tuple[int, str, list[str]]]:
    """Yield the number, text and cells of each line of a table that is not blank.

    Raises UserError: the table is too large.
    """
    with opener() as stream:
        data = stream.read(MAX_TABLE_BYTES + 1)
    if len(data) > MAX_TABLE_BYTES:
        raise UserError(f"{name}: larger than {MAX_TABLE_BYTES:,} bytes; expected a table of pictures")
    for number, line in enumerate(data.decode("utf-8-sig", errors="replace").splitlines(), 1):
        if line.strip():
            separator = next((mark for mark in ",;\t" if mark in line), None)
            yield number, line, next(csv.reader([line], delimiter=separator)) if separator else line.split()


def read_cat(opener: Opener) -> tuple[float, ...] | None:
    """Read one of CAT's files: the number of points, then x and y of each; return None if it is damaged.

    Some files list the right eye first, which would turn the head upside down. The third point, the mouth,
    shows which eye is which, and the eyes are swapped if necessary.
    """
    with opener() as stream:
        words = stream.read(4096).decode("ascii", errors="replace").split()
    values = _coordinates(words[1:])
    if values is None or words[0] != str(len(values) // 2):
        return None
    (x1, y1, x2, y2), mouth = values[:4], values[4:6]
    mouth_is_above = mouth and (x2 - x1) * (mouth[1] - y1) < (y2 - y1) * (mouth[0] - x1)
    return (x2, y2, x1, y1, *values[4:]) if mouth_is_above else values


def _coordinates(cells: list[str]) -> tuple[float, ...] | None:
    """Turn cells into x, y, x, y …; None if they are not at least two finite points."""
    try:
        values = tuple(float(cell) for cell in cells)
    except ValueError:
        return None
    return values if len(values) >= 4 and len(values) % 2 == 0 and all(map(math.isfinite, values)) else None
