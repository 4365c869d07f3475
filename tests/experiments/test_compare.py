"""The comparison: which runs are pooled, which cells are judged, and the files that people pass on."""

import dataclasses
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

from ganpipe.common.errors import UserError
from ganpipe.experiments import compare, revisions
from ganpipe.experiments.cells import NUMBERS, Run, cell_table, plus_minus, remarks_on, text_table
from ganpipe.experiments.compare_page import loss_limits


def run(
    name: str,
    seed: int,
    kid: float | None,
    changes: Mapping[str, Any] = MappingProxyType({}),
    data: str = "aaaaaaaa",
    protocol: str = "EfficientNet-Lite0, 128 px; n=100 in 3 sets, k=5",
    extractor: str = "lite0",
    **ending: Any,
) -> Run:
    """Make a finished experiment with some params changed."""
    png = io.BytesIO()
    Image.new("L", (16, 16), 40 * seed).save(png, "PNG")
    steps = np.arange(1, 1001)
    history = pd.DataFrame({"step": steps, "nimg": 8 * steps, "d_loss": 1 / steps, "g_loss": 2.0 + seed})
    name_of = f"kid_{extractor}"
    metrics: dict[str, Any] = {
        name_of: kid,
        f"{name_of}_sd": 0.5,
        f"{name_of}_floor": 0.001,
        "recall": 0.25,
        "n": 100,
    }
    metrics |= {"protocol": protocol, "ranked_by": name_of}
    values = {"train.glr": 0.001, "train.flip": False, "model.z_limit": None, "code": "abc"} | dict(changes)
    return Run(name, seed, values, metrics, data, history, png.getvalue(), **ending)


def three_cells() -> list[Run]:
    """Two seeds of each of three rates."""
    scores = {0.001: (0.5, 0.7), 0.002: (0.2, 0.3), 0.003: (0.9, 0.95)}
    return [
        run(f"grid-glr={rate}-s{seed}", seed, kid, {"train.glr": rate})
        for rate, kids in scores.items()
        for seed, kid in enumerate(kids)
    ]


def test_seeds_are_pooled_and_cells_sorted_by_kid() -> None:
    """A failure means a wrong mean, spread or order, and so a wrong conclusion."""
    frame = cell_table(three_cells()[::-1])
    assert list(frame["cell"]) == ["grid-glr=0.002", "grid-glr=0.001", "grid-glr=0.003"]
    assert list(frame["runs"]) == [2, 2, 2]
    assert list(frame["train.glr"]) == ["0.002", "0.001", "0.003"]
    for cell, kids in zip(range(3), ((0.2, 0.3), (0.5, 0.7), (0.9, 0.95)), strict=True):
        assert math.isclose(frame["kid_lite0"][cell], statistics.mean(kids))
        assert math.isclose(frame["kid_lite0_sd_over_seeds"][cell], statistics.stdev(kids))
    assert not {"train.flip", "code", "n", "kid_lite0_sd", "train.seed"} & set(frame)
    header, rows = text_table(frame)
    assert header == ["cell", "runs", "train.glr", "kid_lite0", "recall"]
    assert rows[0] == ["grid-glr=0.002"[5:], "2", "0.002", "0.250 ± 0.071", "0.25 ± 0"]
    floor, *verdicts, how = remarks_on(frame)
    assert floor == "Floor, the score of as many real images: kid_lite0 0.001." and "95 % interval" in how
    assert verdicts[0] == "glr=0.002: lowest KID." and verdicts[1].startswith("glr=0.001: not distingu")


@pytest.mark.parametrize("extractor", ["lite0", "lite2", "inception", "dinov2_vits14"])
def test_the_verdict_is_that_of_the_paired_seeds(extractor: str) -> None:
    """A failure means that the spread between seeds, which cells share, hides a difference or feigns one."""
    base = np.array([0.2, 0.9, 0.4])
    runs = [
        run(f"{cell}-s{seed}", seed, float(kid), {"train.glr": cell}, extractor=extractor)
        for cell, kids in (
            ("good", base),
            ("bad", base + (0.30, 0.31, 0.32)),
            ("alike", base + (0.02, -0.01, 0.01)),
        )
        for seed, kid in enumerate(kids)
    ]
    frame = cell_table(runs).set_index("cell")
    assert frame["verdict"]["good"] == "lowest KID"
    # 0.31 ± t(1 - 0.05/2/2, 2) · 0.01/√3, t = 6.205
    assert frame["verdict"]["bad"] == "worse: +0.310 (+0.274 to +0.346)"
    assert (
        "not distinguishable: +0.007 (-0.05 to +0.06); about 53 seeds would tell" == frame["verdict"]["alike"]
    )
    numbers = [float(frame[name]["bad"]) for name in NUMBERS]
    assert numbers == pytest.approx([0.31, 0.27418, 0.34582, 3, 3], rel=1e-3)
    assert "bad: worse: +0.310 (+0.274 to +0.346)." in remarks_on(frame.reset_index())
    assert f"kid_{extractor}" in text_table(frame.reset_index())[0]
    two = cell_table(runs[:6])
    assert list(two["verdict"])[0] == "better than all others"
    assert list(two["verdict"])[1] == "worse: +0.310 (+0.285 to +0.335)"


def test_without_two_seeds_in_common_there_is_no_verdict() -> None:
    """A failure means that one run of each setting is enough for a claim."""
    for seeds in ((0,), (1, 2, 3), (0, 4)):
        other = [run(f"b-s{seed}", seed, 9.0, {"train.glr": 1}) for seed in seeds]
        frame = cell_table([run("a-s0", 0, 0.1), run("a-s4", 4 if len(seeds) == 1 else 9, 0.1), *other])
        assert list(frame["verdict"]) == ["lowest KID", "no verdict: fewer than 2 seeds in common"]
        assert frame["difference"].isna().all()
    assert list(cell_table([run("a-s0", 0, 0.1)])["verdict"]) == [""]


def test_evaluate_names_the_number_that_cells_are_ranked_by() -> None:
    """A failure means that the order is that of a judge who cannot tell a face from one upside down."""
    layouts = {"grid-glr=0.001": 0.1, "grid-glr=0.002": 0.9, "grid-glr=0.003": 0.5}
    runs = three_cells()
    for each in runs:
        layout = layouts[each.name[:-3]] + 0.01 * each.seed**2 + 0.001 * len(each.name)
        each.metrics.update(layout_kid_lite0=layout, ranked_by="layout_kid_lite0")
    frame = cell_table(runs)
    assert list(frame["cell"]) == ["grid-glr=0.001", "grid-glr=0.003", "grid-glr=0.002"]
    assert list(frame["verdict"])[0] == "better than all others"
    assert "layout_kid_lite0" in text_table(frame)[0]
    assert "against the lowest layout KID of two seeds" in remarks_on(frame)[-1]
    runs[-1].metrics.update(ranked_by="kid_lite0", layout_kid_lite0_floor=0.002)
    floor, *_, refused = remarks_on(cell_table(runs))
    assert refused == "No verdict between sets: ranked by layout KID (in 1); ranked by KID (in 2)."
    shared = "kid_lite0 0.001, layout_kid_lite0 0.002"
    assert floor == f"Floor, the score of as many real images in sets 1 and 2: {shared}."


def test_images_without_content_are_marked() -> None:
    """A failure means that plain grey leads a table without a word, as it did in a study."""
    best = run("a-s0", 0, 0.1)
    best.metrics["degenerate"] = "nearly one colour (0.4% of the real images' contrast)"
    frame = cell_table([best, run("b-s0", 0, 0.3, {"train.glr": 1})])
    assert frame["marks"][0] == "seed 0 images nearly one colour (0.4% of the real images' contrast)"
    assert f"a: lowest KID; {frame['marks'][0]}." in remarks_on(frame)


def test_no_run_is_ranked_by_the_network_that_its_training_saw() -> None:
    """A failure means that the drifting loss wins every comparison by the judge that it aims at."""
    drift = {"train.drift_weight": 1.0}
    runs = [run(f"drift-s{seed}", seed, 0.01, drift) for seed in range(2)]
    plain = [run(f"plain-s{seed}", seed, 0.5 + seed / 10) for seed in range(2)]
    frame = cell_table(runs + plain).set_index("cell")
    assert list(frame.index) == ["plain", "drift"]
    assert "no verdict" in frame["verdict"]["drift"]
    assert "not ranked: trained in Lite0; evaluate with evaluate.extractor=lite2" in frame["marks"]["drift"]
    judged = [run(f"drift-s{seed}", seed, 0.01, drift, extractor="lite2") for seed in range(2)]
    judged += [run(f"plain-s{seed}", seed, 0.5 + seed / 10, extractor="lite2") for seed in range(2)]
    frame = cell_table(judged)
    assert list(frame["cell"]) == ["drift", "plain"] and not frame["marks"][0]
    warned = [
        any("favour train.drift_weight" in remark for remark in remarks_on(cell_table(part)))
        for part in (judged, judged[:2])
    ]
    assert warned == [True, False]


def test_a_cell_of_one_seed_keeps_no_other_from_its_verdict() -> None:
    """A failure means that one lucky run leaves a whole grid without a verdict."""
    runs = [run("lucky-s0", 0, 0.01, {"train.glr": 9}), *three_cells()[:4]]
    frame = cell_table(runs).set_index("cell")
    assert list(frame.index) == ["lucky", "grid-glr=0.002", "grid-glr=0.001"]
    assert frame["verdict"]["lucky"] == "no verdict: fewer than 2 seeds in common"
    assert frame["verdict"]["grid-glr=0.002"] == "lowest KID of two seeds and more"
    assert frame["verdict"]["grid-glr=0.001"].startswith("not distinguishable: +0.3")


def test_a_runaway_run_flattens_no_other_runs_curves() -> None:
    """A failure means that one run that diverged makes the curves of all other runs look flat."""
    usual = [np.array([[0.7, float(top)], [1.0, np.nan]]) for top in (2, 3, 4)]
    low, high = loss_limits([*usual, np.array([[-1e9, 1e9]]), np.array([[np.nan]])])
    assert 4 < high < 4.5 and -4.5 < low <= 0
    assert loss_limits([np.array([[np.nan]])]) == (0, 1.05)


def test_runs_that_ended_badly_are_marked() -> None:
    """A failure means that a run that was rescued, or stopped early, looks like one that completed."""
    runs = [
        run("a-s0", 0, 0.1),
        run("a-s1", 1, 0.2, ended="diverged at step 400", interventions=2),
        run("a-s2", 2, 0.2, interventions=1),
        run("b-s0", 0, 0.3, {"train.glr": 1}),
    ]
    frame = cell_table(runs)
    assert list(frame["marks"]) == ["seed 1 diverged at step 400, rescued 2 times; seed 2 rescued once", ""]
    assert f"a: lowest KID; {frame['marks'][0]}." in remarks_on(frame)
    assert remarks_on(cell_table([runs[2]]))[1] == "a: seed 2 rescued once."


def test_sets_get_no_verdict_and_their_difference_is_named() -> None:
    """A failure means that KIDs of other images, image counts or extractors are compared."""
    other = [
        run("mnist-s0", 0, 0.01, data="bbbbbbbb"),
        run("celeba-s0", 0, 0.02, protocol="EfficientNet-Lite0, 128 px; n=60 in 3 sets, k=5"),
        run("pixels-s0", 0, 0.02, protocol="pixels; n=60 in 3 sets, k=5", extractor="pixels"),
        run("fid-s0", 0, 0.02, protocol="Inception, 299 px; n=60 in 3 sets, k=5", extractor="inception"),
    ]
    frame = cell_table([*three_cells(), *other])
    assert list(frame["set"]) == [1, 1, 1, 2, 3, 4, 5]
    assert [bool(text) for text in frame["verdict"]] == [True, True, True, False, False, False, False]
    header, rows = text_table(frame)
    assert header[:2] == ["set", "cell"]
    assert [row[0] for row in rows] == ["1", "1", "1", "", "2", "", "3", "", "4", "", "5"]
    assert remarks_on(frame)[-1] == (
        "No verdict between sets: training images aaaaaaaa (in 1, 3, 4, 5); "
        "EfficientNet-Lite0 (in 1, 2, 3); 128 px (in 1, 2, 3); n=100 in 3 sets (in 1, 2); "
        "training images bbbbbbbb (in 2); n=60 in 3 sets (in 3, 4, 5); "
        "pixels (in 4); Inception (in 5); 299 px (in 5)."
    )


def test_runs_that_differ_are_not_pooled() -> None:
    """A failure means that runs of two versions of the code, or of the images, count as two seeds."""
    same = run("a-s0", 0, 0.1), run("a-s1", 1, 0.2)
    assert len(cell_table(same)) == 1
    assert len(cell_table([*same, run("b-s2", 2, 0.3, {"code": "def"})])) == 2
    assert len(cell_table([*same, run("b-s2", 2, 0.3, data="cccc")])) == 2
    assert len(cell_table([*same, run("b-s2", 2, 0.3, {"model.z_limit": 1.0})])) == 2
    assert "code" in cell_table([*same, run("b-s2", 2, 0.3, {"code": "def"})])


def test_missing_numbers_are_last_and_shown_as_missing() -> None:
    """A failure means that a cell without a KID ranks first."""
    frame = cell_table([run("x-a-s0", 0, None, {"code": "x"}), run("x-b-s0", 0, 5.0)])
    assert list(frame["cell"]) == ["x-b", "x-a"]
    header, rows = text_table(frame)
    assert rows[1][header.index("kid_lite0")] == "–"


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
    """A failure means that a mean shows more decimals than its spread supports."""
    assert plus_minus(mean, sd) == text


class Pictures(HTMLParser):
    """Collects the texts of a page and the addresses that it loads."""

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
    """A failure means that the page needs other files, or that a name in it becomes a tag."""
    runs = [*three_cells(), run("<b>mnist</b>-s0", 0, 0.01, data="bbbbbbbb")]
    runs[0] = dataclasses.replace(runs[0], ended="diverged at step 5")
    runs[0].history.loc[5:, "g_loss"] = math.nan
    monkeypatch.setattr(
        compare, "read_runs", lambda *_: (runs, ["grid-glr=0.004: no experiment is finished"])
    )
    frame = compare.compare(tmp_path, (), "grid", tmp_path / "table.csv", tmp_path / "page.html")
    shown = capsys.readouterr().out
    for words in (
        "0.250 ± 0.071",
        "training images bbbbbbbb (in 2)",
        "glr=0.004: no exp",
        "seed 0 diverged",
    ):
        assert words in shown
    table = pd.read_csv(tmp_path / "table.csv")
    assert list(table.columns) == list(frame.columns) and len(table) == 4
    assert math.isclose(table["kid_lite0"][0], 0.25) and table["experiments"][0].count(" ") == 1
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    seen = Pictures(page)
    assert len(seen.sources) == 10 and all(
        source.startswith("data:image/png;base64,") for source in seen.sources
    )
    assert "0.250 ± 0.071" in seen.texts and "seed 0 diverged at step 5" in seen.texts
    assert list(table["marks"].dropna()) == ["seed 0 diverged at step 5"] and "<b>mnist</b>" not in page
    assert not re.search(r"https?://|<script|@import|url\(", page)


def test_without_a_finished_experiment_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure means an empty table, or that a mistyped name looks like an unfinished experiment."""
    none: dict[str, list[revisions.Experiment]] = {}
    monkeypatch.setattr(revisions, "finished", lambda repo: none)
    monkeypatch.setattr(revisions, "open_repo", lambda root: io.StringIO())
    with pytest.raises(UserError, match="no finished experiment to compare"):
        compare.compare(tmp_path)
    with pytest.raises(UserError, match="rate-1: no such experiment"):
        compare.compare(tmp_path, ["rate-1"])
