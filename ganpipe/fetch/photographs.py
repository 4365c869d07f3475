"""Published sets of picture files: which of the files belong to the set, and under what names."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ganpipe.common.errors import UserError
from ganpipe.fetch.archives import Opener, listing
from ganpipe.fetch.landmarks import CSV_NAME, read_cat, read_table
from ganpipe.fetch.layouts import Found, Points


@dataclass(frozen=True)
class Named:
    """The layout of a set whose pictures have a fixed pattern of names, each name once.

    A picture keeps its file name and loses its folders, so that the archive as published, the folder unpacked
    from it and a flat copy give the same names. Other files are left out; points are read.

    Attributes:
        name: of the source, for messages.
        pattern: matches the whole file name of a picture.
        example: such a name.
        tables: names that the set's table of points goes by, besides landmarks.csv.
        beside: what follows a picture's name in that of the file with its points; empty: there are none.
    """

    name: str
    pattern: str
    example: str
    tables: tuple[str, ...] = ()
    beside: str = ""

    @contextmanager
    def __call__(self, places: tuple[Path, ...]) -> Iterator[Found]:
        """List the pictures of the places together."""
        where = " and ".join(map(str, places))
        with listing(*places) as found:
            pictures = self._pictures(where, found)
            yield Found(pictures, self._points(where, found, pictures))

    def _pictures(self, where: str, found: list[tuple[str, Opener]]) -> list[tuple[str, Opener]]:
        pictures: dict[str, tuple[str, Opener]] = {}
        for name, opener in found:
            file = name.rpartition("/")[2]
            if not re.fullmatch(self.pattern, file):
                continue
            if file in pictures:
                raise UserError(
                    f"fetch.path: {where} holds {file} twice, as {pictures[file][0]} and {name}; "
                    f"name a folder that holds {self.name} once"
                )
            pictures[file] = name, opener
        if not pictures:
            raise UserError(
                f"fetch.path: {where} holds no pictures with names such as {self.example}, which those of "
                f"{self.name} have; fetch.source=folder takes any"
            )
        points = sum(self._is_table(name) or self._is_beside(name) for name, _ in found)
        if others := len(found) - len(pictures) - points:
            print(
                f"fetch: {where}: left out {others:,} files that are no pictures of the set", file=sys.stderr
            )
        return [(file, opener) for file, (_, opener) in pictures.items()]

    def _is_table(self, name: str) -> bool:
        return name.rpartition("/")[2] in (*self.tables, CSV_NAME)

    def _is_beside(self, name: str) -> bool:
        return bool(self.beside) and name.endswith(self.beside)

    def _points(
        self, where: str, found: list[tuple[str, Opener]], pictures: list[tuple[str, Opener]]
    ) -> Points:
        points: Points = {}
        beside = {name.rpartition("/")[2]: opener for name, opener in found if self._is_beside(name)}
        for name, _ in pictures:
            if (opener := beside.get(name + self.beside)) and (values := read_cat(opener)):
                points[name] = values
        for name, opener in found:
            if self._is_table(name):
                table = read_table(f"fetch.path: {where}: {name}", opener)
                points.update({key.rpartition("/")[2]: values for key, values in table.items()})
        return points
