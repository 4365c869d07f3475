"""The sources of pictures, read from catalogue.yaml."""

from pathlib import Path
from typing import Any

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from rich.filesize import decimal
from ruamel.yaml import YAML

from ganpipe.fetch.download import Remote, state
from ganpipe.fetch.layouts import LAYOUTS, Layout, NamedPictures
from ganpipe.fetch.shards import SHARDED


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


def parse(entries: dict[str, dict[str, Any]]) -> dict[str, Source]:
    """Turn the content of catalogue.yaml into sources by name.

    Raises:
        pydantic.ValidationError: a key is unknown or missing, or a value has the wrong type.
        KeyError: a layout is unknown.
    """
    return {name: _source(name, **entry) for name, entry in entries.items()}


def _source(name: str, layout: Any, mirrors: Any = (), remotes: Any = (), **facts: Any) -> Source:
    function = (
        (LAYOUTS | SHARDED)[layout] if isinstance(layout, str) else NamedPictures(set_name=name, **layout)
    )
    complete = (Remote(**r, addresses=tuple(mirror + r["name"] for mirror in mirrors)) for r in remotes)
    return Source(name=name, layout=function, remotes=tuple(complete), **facts)


SOURCES = parse(YAML(typ="safe", pure=True).load(Path(__file__).with_suffix(".yaml")))


def rows() -> list[tuple[str, str, str, str, str]]:
    """Return each source's name, description, download size, licence and state of download, for people."""
    table = []
    for source in SOURCES.values():
        size = sum(remote.size or 0 for remote in source.remotes)
        here = "fetch.path" if source.by_hand else state(source.name, source.remotes)
        here = f"in {source.package}" if source.package else here
        table.append((source.name, source.description, decimal(size) if size else "", source.licence, here))
    return table
