"""What a source gives: pictures, and points in them where it has any."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from ganpipe.fetch.archives import Opener

# Picture → x, y, x, y … in pixels of the upright picture; the first two points are the eyes, left one first.
Points = dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class Found:
    """The pictures of a source, which can be opened as long as its context is open.

    Attributes:
        pictures: clean, unique names, and how to open each for reading.
        points: landmarks by the picture's name; pictures without any are left out.
    """

    pictures: list[tuple[str, Opener]]
    points: Points = field(default_factory=dict)


# Folders and files → the pictures in them, and their points; raises a UserError where they cannot be read,
# also from an opener.
Layout = Callable[[tuple[Path, ...]], AbstractContextManager[Found]]
