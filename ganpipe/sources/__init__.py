"""Where pictures come from: the registry of sources, each of which lists the files of a data set."""

from pathlib import Path
from typing import Protocol

from ganpipe.sources.digits import Mnist, Mnist5k
from ganpipe.sources.found import Contents
from ganpipe.sources.own import Folder
from ganpipe.sources.photographs import AnimeFace, Cat, CelebA, Flowers102


class Source(Protocol):
    """A place that pictures come from.

    Attributes:
        name: as in fetch.source.
        description: one line, for people.
        licence: of the pictures.
        cite: what to cite.
        published: number of pictures in the whole set; None: no number is fixed.
        packaged: True where the pictures install with a Python package, so that there is no path to give.
        needs_path: True where a path must be given, because the pictures are neither packaged nor downloaded.
    """

    name: str
    description: str
    licence: str
    cite: str
    published: int | None
    packaged: bool
    needs_path: bool

    def files(self, path: Path | None) -> Contents:
        """List the pictures while the context is open, and read the points in them.

        Args:
            path: a folder or archive in the layout that the set is published in; None where fetch.path is the
                placeholder: a set that can be downloaded is.

        Raises:
            UserError: the source cannot be read or reached; also from an opener.
        """
        ...


_ALL: tuple[Source, ...] = (Mnist5k(), Mnist(), Flowers102(), CelebA(), Cat(), AnimeFace(), Folder())
SOURCES: dict[str, Source] = {source.name: source for source in _ALL}
