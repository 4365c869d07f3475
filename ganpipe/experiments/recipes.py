"""Recipes and grids of params.yaml: lists of settings `key=value`, the params they give, and a grid's cells.

A value is YAML 1.2, as in params.yaml; a list is in brackets. The comment on `grids:` there gives the syntax.
"""

import functools
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ganpipe import params
from ganpipe.common.errors import UserError
from ganpipe.models.papers import recipe_paper
from ganpipe.params import Params

RECIPE = "recipe"  # the key whose value is a recipe's name, to be replaced by the recipe's settings
SEED = "train.seed"


@dataclass(frozen=True)
class Cell:
    """The experiments of a grid that differ only in their seed."""

    name: str  # valid in a git ref: the grid's name and the settings that differ from other cells
    settings: tuple[str, ...]  # `key=value` on top of params.yaml, each key once


def recipe_settings(values: Params, name: str, changes: Iterable[str] = ()) -> list[str]:
    """Return a recipe's settings, each key once, overridden by changes; those that it builds on come first.

    Raises UserError: the recipe is unknown or builds on itself, or a setting is not key=value.
    """
    return list(_expanded(values, [f"{RECIPE}={name}", *changes]).values())


def apply_settings(values: Params, settings: Iterable[str], origin: str) -> Params:
    """Return params changed by settings `section.name=value`, recipes expanded; later ones win.

    Raises UserError: one line for each wrong value or unknown key, each beginning with the origin.
    """
    sections = values.experiment
    plain = values.model_dump()
    problems = []
    for setting in settings:
        key, text = _split(setting)
        section, _, name = key.partition(".")
        if section in sections and name:
            plain[section][name] = _parse(text)
        else:
            known = ", ".join(sections)
            problems.append(f"{origin}: {setting}: expected section.name=value with a section of {known}")
    if problems:
        raise UserError("\n".join(problems))
    applied = params.parse(plain, origin)
    try:
        applied.train.batch_size_for(applied.preprocess.resolution)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from None
    return applied


def hydra_overrides(settings: Iterable[str]) -> list[str]:
    """Return settings in Hydra's syntax, in which `dvc exp run -S` takes them: text in double quotes."""
    return [f"{key}={json.dumps(_parse(text), ensure_ascii=False)}" for key, text in map(_split, settings)]


def grid_cells(values: Params, grid: str, settings: Iterable[str] = ()) -> list[Cell]:
    """Return a grid's cells, overridden by settings for every cell; the last axis varies fastest.

    Raises UserError: the grid is unknown, or a setting cannot be read.
    """
    if grid not in values.grids:
        known = ", ".join(values.grids) or "none"
        raise UserError(f"grids.{grid}: no such grid in params.yaml; known: {known}")
    axes = [list(_axis(line, grid)) for line in values.grids[grid]]
    cells = []
    for choice in itertools.product(*axes):
        varying = [point for point, axis in zip(choice, axes, strict=True) if len(axis) > 1]
        pairs = map(_split, itertools.chain(*varying))
        labels = [text if key == RECIPE else f"{key.rpartition('.')[2]}={text}" for key, text in pairs]
        name = re.sub(r"[^\w.=,+-]", "_", "-".join([grid, *labels]))
        cells.append(Cell(name, tuple(_expanded(values, [*itertools.chain(*choice), *settings]).values())))
    return cells


def cell_name(experiment: str) -> str:
    """Return an experiment's name without its seed."""
    return re.sub(r"-s\d+$", "", experiment)


def _axis(line: str, grid: str) -> Iterator[list[str]]:
    """Yield the points of an axis such as "a,b=1:2,3", each of which is a setting for each of its keys."""
    key, text = _split(line)
    keys = key.split(",")
    for value in re.split(r",(?![^\[]*\])", text):  # a comma in brackets separates a list's elements
        parts = value.split(":") if len(keys) > 1 else [value]
        if len(parts) not in (1, len(keys)):
            raise UserError(f"grids.{grid}: {value} has {len(parts)} values for the {len(keys)} keys {key}")
        yield [f"{name}={part}" for name, part in zip(keys, itertools.cycle(parts), strict=False)]


def _expanded(values: Params, settings: Iterable[str], parents: tuple[str, ...] = ()) -> dict[str, str]:
    """Return key → the last setting of that key, with recipes replaced by their settings."""
    expanded: dict[str, str] = {}
    for setting in settings:
        key, name = _split(setting)
        inner = {key: setting}
        if key == RECIPE:
            if name not in values.recipes:
                known = ", ".join(values.recipes) or "none"
                raise UserError(f"recipes.{name}: no such recipe in params.yaml; known: {known}")
            if name in parents:
                raise UserError(f"recipes.{name}: builds on itself through {', '.join(parents)}")
            inner = _expanded(values, values.recipes[name], (*parents, name))
        # Overridden keys move to the end, so that the order is the one in which settings take effect.
        expanded = {key: earlier for key, earlier in expanded.items() if key not in inner} | inner
    return expanded


def value_text(value: Any) -> str:
    """Write a value as in a setting, on one line; text stays as it is."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _split(setting: str) -> tuple[str, str]:
    key, separator, text = setting.partition("=")
    if not (key and separator):
        raise UserError(f"{setting}: expected key=value, such as train.glr=0.00128")
    # DVC, which reads the path before any command of ours, knows no home folder.
    return key, os.path.expanduser(text) if key == "fetch.path" else text


@functools.cache
def _parse(text: str) -> Any:
    """Return a setting's value, for reading only; grids and MLflow's tags parse all recipes many times."""
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        return text  # such as a path with characters that are YAML's syntax


def recipe_rows(values: Params) -> list[tuple[str, str, str, str]]:
    """Return each recipe's name, paper, resolution in pixels a side and source of pictures."""
    rows = []
    for name in values.recipes:
        settings = dict(map(_split, recipe_settings(values, name)))
        source = settings.get("fetch.source", "folder")
        resolution = settings.get("preprocess.resolution", str(values.preprocess.resolution))
        pictures = "your own (fetch.path)" if source == "folder" else source
        rows.append((name, recipe_paper(name), resolution, pictures))
    return rows
