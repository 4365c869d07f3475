"""Recipes and grids of params.yaml: lists of words `key=value`, the params that they make, a grid's cells.

A value is YAML 1.2, as in params.yaml, a list in brackets. The comment on `grids:` there tells the syntax.
"""

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ganpipe import params
from ganpipe.common.errors import UserError
from ganpipe.params import Params

# What the part of a recipe's name before the first "-" stands for.
PAPERS = {
    "dcgan": "Radford et al. 2015, DCGAN",
    "marchesi2017": "Marchesi 2017, megapixel",
    "celeba64": "Vlad, face generation",
    "stiff2018": "Stiff et al. 2018",
    "xin2024": "Xin 2024, experiment",
}
RECIPE = "recipe"  # the key whose value is not a param's but a recipe's name
SEED = "train.seed"


@dataclass(frozen=True)
class Cell:
    """One experiment of a grid, without its seed.

    Attributes:
        name: grid and what differs from other cells, usable in a git ref.
        words: what is set on top of params.yaml, each key once.
    """

    name: str
    words: tuple[str, ...]


def recipe(values: Params, name: str) -> list[str]:
    """Return a recipe's words, each key once, those of the recipes that it builds on first.

    Raises:
        UserError: there is no such recipe, a word is not key=value, or recipes go in a circle.
    """
    return list(_expanded(values, [f"{RECIPE}={name}"], ()).values())


def applied(values: Params, words: Iterable[str], origin: str) -> Params:
    """Return the params with the words' values in place.

    Args:
        values: the params before.
        words: `section.name=value`, later ones winning; no recipes.
        origin: where the words come from, for errors.

    Raises:
        UserError: one line for each wrong value or unknown key.
    """
    plain = values.model_dump()
    for word in words:
        key, text = _pair(word)
        section, _, name = key.partition(".")
        if section not in values.experiment or not name:
            sections = ", ".join(values.experiment)
            raise UserError(f"{origin}: {word}: expected section.name=value with a section of {sections}")
        plain[section][name] = _value(text)
    after = params.parse(plain, origin)
    try:
        after.train.batch_size_for(after.preprocess.resolution)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from None
    return after


def shell_line(words: Iterable[str]) -> str:
    """Write words as arguments of `dvc exp run` that survive `$(…)` in a shell without quotes.

    A list in brackets would be a pattern of file names there. Escaped, it is none, and OmegaConf's decoder,
    through which DVC reads values, makes the list of it again.
    """
    return " ".join(f"-S {word if '[' not in word else _escaped(word)}" for word in words)


def _escaped(word: str) -> str:
    key, text = _pair(word)
    escaped = re.sub(r"([][,])", r"\\\1", text)
    return f"{key}=${{oc.decode:{escaped}}}"


def overrides(words: Iterable[str]) -> list[str]:
    """Write words as Hydra reads them, without a shell: texts quoted, lists in brackets."""
    pairs = map(_pair, words)
    return [f"{key}={json.dumps(_value(text), ensure_ascii=False)}" for key, text in pairs]


def cells(values: Params, grid: str, settings: Iterable[str] = ()) -> list[Cell]:
    """Return a grid's cells, in the order of its words.

    Args:
        values: the params with the grids and recipes.
        grid: a grid's name.
        settings: words for every cell, which win.

    Raises:
        UserError: there is no such grid, or a word cannot be read.
    """
    if grid not in values.grids:
        raise UserError(
            f"grids.{grid}: no such grid in params.yaml; known: {', '.join(values.grids) or 'none'}"
        )
    axes = [list(_axis(word, grid)) for word in values.grids[grid]]
    found = []
    for choice in itertools.product(*axes):
        several = [words for words, axis in zip(choice, axes, strict=True) if len(axis) > 1]
        labels = [_pair(word) for words in several for word in words]
        parts = [text if key == RECIPE else f"{key.rpartition('.')[2]}={text}" for key, text in labels]
        name = re.sub(r"[^\w.=,+-]", "_", "-".join([grid, *parts]))
        words = _expanded(values, [*itertools.chain(*choice), *settings], ()).values()
        found.append(Cell(name, tuple(words)))
    return found


def _axis(word: str, grid: str) -> Iterator[list[str]]:
    """Yield the words that a grid's word stands for: a list of words a cell, one for each of its keys."""
    key, text = _pair(word)
    keys = key.split(",")
    for value in re.split(r",(?![^\[]*\])", text):  # a comma in brackets does not part values
        parts = value.split(":") if len(keys) > 1 else [value]
        if len(parts) not in (1, len(keys)):
            raise UserError(f"grids.{grid}: {value} has {len(parts)} values for the {len(keys)} keys {key}")
        yield [f"{k}={p}" for k, p in zip(keys, parts * len(keys) if len(parts) == 1 else parts, strict=True)]


def _expanded(values: Params, words: Iterable[str], above: tuple[str, ...]) -> dict[str, str]:
    """Return key → the last word of that key, recipes replaced by their words."""
    found: dict[str, str] = {}
    for word in words:
        key, name = _pair(word)
        if key != RECIPE:
            found.pop(key, None)
            found[key] = word
            continue
        if name not in values.recipes:
            known = ", ".join(values.recipes) or "none"
            raise UserError(f"recipes.{name}: no such recipe in params.yaml; known: {known}")
        if name in above:
            raise UserError(f"recipes.{name}: builds on itself through {', '.join(above)}")
        for key, inner in _expanded(values, values.recipes[name], (*above, name)).items():
            found.pop(key, None)
            found[key] = inner
    return found


def _pair(word: str) -> tuple[str, str]:
    key, separator, text = word.partition("=")
    if not (key and separator):
        raise UserError(f"{word}: expected key=value, such as train.glr=0.00128")
    return key, text


def _value(text: str) -> Any:
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        return text  # what is not YAML is a text, such as a path with odd characters


def rows(values: Params) -> list[tuple[str, str, str, str]]:
    """Return (name, paper, pixels a side, source of the pictures) of each recipe."""
    table = []
    for name in values.recipes:
        family, _, rest = name.partition("-")
        words = dict(map(_pair, recipe(values, name)))
        source = words.get("fetch.source", "yours")
        table.append(
            (
                name,
                PAPERS.get(family, "") + (f" {rest}" if family == "xin2024" else ""),
                words.get("preprocess.resolution", str(values.preprocess.resolution)),
                "your own (fetch.path)" if source in ("yours", "folder") else source,
            )
        )
    return table
