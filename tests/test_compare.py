"""The comparison: what is pooled, what is ranked, what is not, and the files that people pass on."""

import io
import math
import re
import statistics
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ganpipe import compare, revisions
from ganpipe.compare import Run
from ganpipe.errors import UserError


def run(
    name: str,
    seed: int,
    kid: float | None,
    changes: Mapping[str, Any] = MappingProxyType({}),
    data: str = "aaaaaaaa",
    protocol: str = "lite0, n=100",
) -> Run:
    """Make a finished experiment with some params changed."""
    png = io.BytesIO()
    Image.new("L", (16, 16), 40 * seed).save(png, "PNG")
    steps = np.arange(1, 1001)
    history = pd.DataFrame({"step": steps, "nimg": 8 * steps, "d_loss": 1 / steps, "g_loss": 2.0 + seed})
    metrics = {"kid_lite0": kid, "kid_lite0_sd": 0.5, "kid_lite0_floor": 0.001, "recall": 0.25, "n": 100}
    values = {"train.glr": 0.001, "train.flip": False, "model.z_limit": None, "code": "abc"} | dict(changes)
    return Run(name, seed, values, metrics | {"protocol": protocol}, data, history, png.getvalue())


def three_cells() -> list[Run]:
    """Two seeds of each of three rates."""
    scores = {0.001: (0.5, 0.7), 0.002: (0.2, 0.3), 0.003: (0.9, 0.95)}
    return [
        run(f"grid-glr={rate}-s{seed}", seed, kid, {"train.glr": rate})
        for rate, kids in scores.items()
        for seed, kid in enumerate(kids)
    ]


def test_seeds_are_pooled_and_cells_ranked_by_kid() -> None:
    """The wrong mean, spread or order is the wrong conclusion."""
    frame = compare.arrange(three_cells()[::-1])
    assert list(frame["cell"]) == ["grid-glr=0.002", "grid-glr=0.001", "grid-glr=0.003"]
    assert list(frame["rank"]) == [1, 2, 3] and list(frame["runs"]) == [2, 2, 2]
    assert list(frame["train.glr"]) == ["0.002", "0.001", "0.003"]
    for cell, kids in zip(range(3), ((0.2, 0.3), (0.5, 0.7), (0.9, 0.95)), strict=True):
        assert math.isclose(frame["kid_lite0"][cell], statistics.mean(kids))
        assert math.isclose(frame["kid_lite0_sd_over_seeds"][cell], statistics.stdev(kids))
    assert not {"train.flip", "code", "n", "kid_lite0_sd", "train.seed"} & set(frame)
    header, rows = compare.texts(frame)
    assert header == ["rank", "cell", "runs", "train.glr", "kid_lite0", "recall"]
    assert rows[0] == ["1", "grid-glr=0.002"[5:], "2", "0.002", "0.250 ± 0.071", "0.25 ± 0"]
    assert compare.explained(frame) == ["What as many real images score: kid_lite0 0.001."]


def test_other_data_and_protocols_stand_unranked_beside() -> None:
    """A KID of 60 images at 32 px looks better than one of 500 at 128 px, and says nothing."""
    other = [run("mnist-s0", 0, 0.01, data="bbbbbbbb"), run("celeba-s0", 0, 0.02, protocol="lite0, n=60")]
    frame = compare.arrange([*three_cells(), *other])
    assert list(frame["set"]) == [1, 1, 1, 2, 3]
    assert frame["rank"].isna().tolist() == [False, False, False, True, True]
    header, rows = compare.texts(frame)
    assert header[:3] == ["set", "rank", "cell"]
    assert [row[1] for row in rows] == ["1", "2", "3", "", "–", "", "–"]
    said = " ".join(compare.explained(frame))
    assert "2 different sets of training images and 2 different protocols" in said
    assert "lite0, n=60" in said and "bbbbbbb" in said and "kid_lite0 0.001" in said


def test_what_is_not_the_same_is_not_pooled() -> None:
    """Two versions of the code, or of the pictures, would pass for two seeds."""
    same = run("a-s0", 0, 0.1), run("a-s1", 1, 0.2)
    assert len(compare.arrange(same)) == 1
    assert len(compare.arrange([*same, run("b-s2", 2, 0.3, {"code": "def"})])) == 2
    assert len(compare.arrange([*same, run("b-s2", 2, 0.3, data="cccc")])) == 2
    assert len(compare.arrange([*same, run("b-s2", 2, 0.3, {"model.z_limit": 1.0})])) == 2
    assert "code" in compare.arrange([*same, run("b-s2", 2, 0.3, {"code": "def"})])


def test_missing_numbers_are_last_and_shown_as_missing() -> None:
    """A cell without a KID must not win by having none."""
    frame = compare.arrange([run("x-a-s0", 0, None, {"code": "x"}), run("x-b-s0", 0, 5.0)])
    assert list(frame["cell"]) == ["x-b", "x-a"] and frame["rank"].isna().tolist() == [False, True]
    header, rows = compare.texts(frame)
    assert rows[1][header.index("kid_lite0")] == "–" and rows[1][header.index("rank")] == "–"


@pytest.mark.parametrize(
    ("mean", "sd", "text"),
    [
        (0.11234, 0.0043, "0.1123 ± 0.0043"),
        (115.32, 12.3, "115 ± 12"),
        (0.5, 0.0, "0.5 ± 0"),
        (2.0531, math.nan, "2.05"),
        (math.nan, math.nan, "–"),
        (0.25, 1e-9, "0.250000 ± 0.000000"),
    ],
)
def test_decimals_follow_the_spread(mean: float, sd: float, text: str) -> None:
    """More decimals than the spread bears look like knowledge."""
    assert compare.plus_minus(mean, sd) == text


class Pictures(HTMLParser):
    """Collects what a page shows and what it would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note sources."""
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        """Note texts."""
        self.texts.append(data)


def test_files_hold_everything_and_load_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A page that is sent on must show images and curves without this machine; names must not become tags."""
    runs = [*three_cells(), run("<b>mnist</b>-s0", 0, 0.01, data="bbbbbbbb")]
    runs[0].history.loc[5:, "g_loss"] = math.nan  # a run that diverged
    monkeypatch.setattr(compare, "_read", lambda *_: (runs, ["grid-glr=0.004: no experiment is finished"]))
    frame = compare.compare(tmp_path, (), "grid", tmp_path / "table.csv", tmp_path / "page.html")
    shown = capsys.readouterr().out
    assert "0.250 ± 0.071" in shown and "Ranks hold within a set" in shown and "glr=0.004: no exp" in shown
    table = pd.read_csv(tmp_path / "table.csv")
    assert list(table.columns) == list(frame.columns) and len(table) == 4
    assert math.isclose(table["kid_lite0"][0], 0.25) and table["experiments"][0].count(" ") == 1
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    seen = Pictures(page)
    assert len(seen.sources) == 8 and all(each.startswith("data:image/png;base64,") for each in seen.sources)
    assert "0.250 ± 0.071" in seen.texts and "<b>mnist</b>" not in page
    assert not re.search(r"https?://|<script|@import|url\(", page)


def test_without_a_finished_experiment_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty table looks like a result, and a mistyped name like an unfinished experiment."""
    none: dict[str, list[revisions.Found]] = {}
    monkeypatch.setattr(revisions, "finished", lambda repo: none)
    monkeypatch.setattr(revisions, "opened", lambda root: io.StringIO())
    with pytest.raises(UserError, match="no finished experiment to compare"):
        compare.compare(tmp_path)
    with pytest.raises(UserError, match="rate-1: no such experiment"):
        compare.compare(tmp_path, ["rate-1"])
