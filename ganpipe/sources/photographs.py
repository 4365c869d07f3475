"""Published sets of picture files: which of an archive's files belong to the set, and under what names."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ganpipe.errors import UserError
from ganpipe.sources.archives import Opener, listing
from ganpipe.sources.download import Published, cached
from ganpipe.sources.found import Found, Points
from ganpipe.sources.points import CSV_NAME, read_cat, read_table


class Photographs:
    """A set whose pictures have a fixed pattern of names, each name once.

    A picture keeps its file name and loses its folders, so that the archive as published, the folder unpacked
    from it and a flat copy give the same names. Other files are left out; a table of points is read.

    Attributes:
        pattern: matches the whole file name of a picture.
        example: such a name.
        tables: names that the set's table of points goes by.
        page: where the publisher, or who keeps the set, offers it.
        remotes: the archive, to be downloaded; none: people get the set by hand.
    """

    name: str
    description: str
    licence: str
    cite: str
    published: int | None
    packaged = False
    needs_path = False
    pattern: str
    example: str
    tables: tuple[str, ...] = (CSV_NAME,)
    page: str
    remotes: tuple[Published, ...] = ()

    @contextmanager
    def files(self, path: Path | None) -> Iterator[Found]:
        """List the pictures of a folder, zip or tar; None: of the downloaded archive."""
        path = self._default() if path is None else path
        with listing(path) as found:
            pictures = self._pictures(path, found)
            yield Found(pictures, self._points(path, found, pictures))

    def _default(self) -> Path:
        return cached(self.name, self.remotes, self.page) / self.remotes[0].name

    def _pictures(self, path: Path, found: list[tuple[str, Opener]]) -> list[tuple[str, Opener]]:
        pictures: dict[str, tuple[str, Opener]] = {}
        for name, opener in found:
            file = name.rpartition("/")[2]
            if not re.fullmatch(self.pattern, file):
                continue
            if file in pictures:
                raise UserError(
                    f"fetch.path: {path} holds {file} twice, as {pictures[file][0]} and {name}; "
                    f"name a folder that holds {self.name} once"
                )
            pictures[file] = name, opener
        if not pictures:
            raise UserError(
                f"fetch.path: {path} holds no pictures with names such as {self.example}, which those of "
                f"{self.name} have; fetch.source=folder takes any"
            )
        points = sum(self._is_points(name) for name, _ in found)
        if others := len(found) - len(pictures) - points:
            print(
                f"fetch: {path}: left out {others:,} files that are no pictures of the set", file=sys.stderr
            )
        return [(file, opener) for file, (_, opener) in pictures.items()]

    def _is_points(self, name: str) -> bool:
        return name.rpartition("/")[2] in self.tables

    def _points(
        self, path: Path, found: list[tuple[str, Opener]], pictures: list[tuple[str, Opener]]
    ) -> Points:
        points: Points = {}
        for name, opener in found:
            if self._is_points(name):
                table = read_table(f"fetch.path: {path}: {name}", opener)
                points.update({key.rpartition("/")[2]: values for key, values in table.items()})
        return points


class Flowers102(Photographs):
    """Oxford-102: 102flowers.tgz, or its folder jpg."""

    name = "flowers102"
    description = "Oxford-102: 8,189 photographs of flowers, 500 px and more a side; 345 MB"
    licence = "none stated; photographs from the web, for research"
    cite = "Nilsback, Zisserman: Automated flower classification over a large number of classes, ICVGIP 2008"
    published: int | None = 8189
    pattern, example = r"image_\d{5}\.jpg", "image_00001.jpg"
    page = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
    remotes = (Published("102flowers.tgz", "52808999861908f626f3c1f4e79d11fa", (f"{page}102flowers.tgz",)),)


class CelebA(Photographs):
    """CelebA, aligned and cropped: img_align_celeba.zip, or its folder."""

    name = "celeba"
    description = "CelebA: 202,599 aligned photographs of faces, 178×218; 1.4 GB"
    licence = "for non-commercial research only, as agreed on the publisher's page"
    cite = "Liu, Luo, Wang, Tang: Deep learning face attributes in the wild, ICCV 2015"
    published: int | None = 202_599
    pattern, example = r"\d{6}\.(jpg|png)", "000001.jpg"
    tables = ("list_landmarks_align_celeba.txt", "list_landmarks_align_celeba.csv", CSV_NAME)
    page = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
    remotes = (
        Published(
            "img_align_celeba.zip",
            "00d2c5bc6d35e252742224ab0c1e8fcb",
            ("https://drive.google.com/file/d/0B7EVK8r0v71pZjFTYXZWM3FlRnM/view",),
        ),
    )


class Cat(Photographs):
    """CAT: the folders CAT_00 to CAT_06; beside each picture a file with nine points of the head."""

    name = "cat"
    description = "CAT: 9,997 photographs of cats, mixed sizes; 1.9 GB"
    licence = "none stated; photographs from the web, for research"
    cite = (
        "Zhang, Sun, Tang: Cat head detection - how to effectively exploit shape and texture features, "
        "ECCV 2008"
    )
    published: int | None = 9997
    pattern, example = r"\d{8}_\d{3}\.jpg", "00000001_000.jpg"
    page = "https://archive.org/details/CAT_DATASET"
    needs_path = True

    def _default(self) -> Path:
        raise UserError(
            "fetch.source=cat is not downloaded; get CAT_DATASET_01.zip and CAT_DATASET_02.zip by hand from "
            f"{self.page}, unpack both and set fetch.path=<path of the folder that holds CAT_00 to CAT_06>"
        )

    def _is_points(self, name: str) -> bool:
        return name.endswith(".cat")

    def _points(
        self, path: Path, found: list[tuple[str, Opener]], pictures: list[tuple[str, Opener]]
    ) -> Points:
        openers = {name.rpartition("/")[2]: opener for name, opener in found if self._is_points(name)}
        read = {name: read_cat(openers[f"{name}.cat"]) for name, _ in pictures if f"{name}.cat" in openers}
        return {name: values for name, values in read.items() if values is not None}


class AnimeFace(Photographs):
    """Faces of drawn characters: a flat folder or archive of pictures with any names."""

    name = "animeface"
    description = "faces of anime characters, 96×96 colour in the paper; several collections circulate"
    licence = "none; drawings of many artists from the web"
    cite = "who collected the set that you use"
    published: int | None = None
    pattern, example = r".+\.(jpe?g|png|webp)", "1.jpg"
    needs_path = True

    def _default(self) -> Path:
        raise UserError(
            "fetch.source=animeface is not downloaded, because no collection of anime faces has a fixed "
            "address; get one by hand and set fetch.path=<path of its folder, zip or tar>"
        )
