"""Landmarks: points in each picture, read from the files that people keep them in."""

import csv
import math

from ganpipe.common.errors import UserError
from ganpipe.fetch.archives import Opener, clean_name
from ganpipe.fetch.layouts import Points

# Beside one's own pictures, in the folder or archive itself.
CSV_NAME = "landmarks.csv"
# A table of 200,000 pictures with nine points has 12 MB.
MAX_TABLE = 1 << 28
# Lines above the first picture: CelebA's count, and the names of the columns.
HEADINGS = 2


def read_table(name: str, opener: Opener) -> Points:
    """Read a table of points: a picture's name, then x and y of each point, in every row.

    Commas, semicolons, tabs or blanks part the cells; a heading, and the count that CelebA puts above it, are
    passed over. Names are cleaned as those of pictures are.

    Raises:
        UserError: the table cannot be read; names the line.
    """
    with opener() as stream:
        data = stream.read(MAX_TABLE + 1)
    if len(data) > MAX_TABLE:
        raise UserError(f"{name}: more than {MAX_TABLE:,} bytes; it is no table of landmarks")
    lines = data.decode("utf-8-sig", errors="replace").splitlines()
    points: Points = {}
    # Blank lines are dropped, but counted.
    for place, (number, line) in enumerate((n, text) for n, text in enumerate(lines, 1) if text.strip()):
        mark = next((mark for mark in ",;\t" if mark in line), None)
        cells = next(csv.reader([line], delimiter=mark)) if mark else line.split()
        values = _numbers(cells[1:])
        if values is None or not cells[0].strip():
            if not points and place < HEADINGS:
                continue
            raise UserError(
                f"{name}: line {number}: found {line[:80]!r}, but expected a picture's name, then x and y of "
                "each of at least two points"
            )
        points["/".join(clean_name(cells[0].strip()))] = values
    return points


def read_cat(opener: Opener) -> tuple[float, ...] | None:
    """Read a file of CAT: the number of points, then x and y of each. None: it is damaged.

    Some files name the right eye first, which would turn the head upside down; the mouth, third, tells.
    """
    with opener() as stream:
        words = stream.read(4096).decode("ascii", errors="replace").split()
    values = _numbers(words[1:])
    if values is None or words[0] != str(len(values) // 2):
        return None
    (x1, y1, x2, y2), mouth = values[:4], values[4:6]
    above = mouth and (x2 - x1) * (mouth[1] - y1) < (y2 - y1) * (mouth[0] - x1)
    return (x2, y2, x1, y1, *values[4:]) if above else values


def _numbers(cells: list[str]) -> tuple[float, ...] | None:
    """Turn cells into x, y, x, y …; None: they are no points."""
    try:
        values = tuple(float(cell) for cell in cells)
    except ValueError:
        return None
    return values if len(values) >= 4 and len(values) % 2 == 0 and all(map(math.isfinite, values)) else None
