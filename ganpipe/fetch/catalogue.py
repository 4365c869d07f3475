"""The sources of pictures, read from catalogue.yaml."""

from pathlib import Path
from typing import Any

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from rich.filesize import decimal
from ruamel.yaml import YAML

from ganpipe.fetch.download import Remote, cache, state
from ganpipe.fetch.layouts import LAYOUTS, Layout, NamedPictures

__all__ = ["SOURCES", "Source", "cache", "rows"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Source:
    """A source of pictures; the attributes are documented at the head of catalogue.yaml.

    `remotes` have complete addresses here, and `layout` is the function that lists the pictures in the files:
    fetch.path, or what was downloaded.
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


def parse(entries: dict[str, dict[str, Any]]) -> dict[str, Source]:
    """Turn the content of catalogue.yaml into sources by name.

    Raises:
        pydantic.ValidationError: a key is unknown or missing, or a value has the wrong type.
        KeyError: a layout is unknown.
    """
    return {name: _source(name, **entry) for name, entry in entries.items()}


def _source(name: str, layout: Any, mirrors: Any = (), remotes: Any = (), **facts: Any) -> Source:
    function = LAYOUTS[layout] if isinstance(layout, str) else NamedPictures(set_name=name, **layout)
    complete = (Remote(**r, addresses=tuple(mirror + r["name"] for mirror in mirrors)) for r in remotes)
    return Source(name=name, layout=function, remotes=tuple(complete), **facts)


SOURCES = parse(YAML(typ="safe", pure=True).load(Path(__file__).with_suffix(".yaml")))


def rows() -> list[tuple[str, str, str, str, str]]:
    """Return each source's name, description, download size, licence and state of download, for people."""
    return [(s.name, s.description, _size(s), s.licence, _state(s)) for s in SOURCES.values()]


def _size(source: Source) -> str:
    sizes = [remote.size for remote in source.remotes if remote.size]
    return decimal(sum(sizes)) if sizes else ""


def _state(source: Source) -> str:
    if source.package:
        return f"in {source.package}"
    return "fetch.path" if source.needs_path else state(source.name, source.remotes)
