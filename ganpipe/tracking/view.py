"""The prepared view of MLflow's page of runs, an experiment tag in a format that is internal to MLflow 3.17.

Values that the tag leaves out have MLflow's defaults; a version that cannot read it shows its own page.
"""

import base64
import json
import re
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ganpipe.common.sheets import COLOURS
from ganpipe.tracking.run import FIXED_Z, picture_pattern

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

KEY = "ganpipe"
TAG, COLOUR = f"mlflow.sharedViewState.{KEY}", "mlflow.runColor"
MAX_RUNS = 10  # runs that MLflow shows at first
MAX_PARAMS = 6  # columns of params that differ
SECTIONS = ("Generated images from the same z", "Scores", "Losses", "Scores during training", "Speed")
# Collapsed: MLflow adds a chart of each other metric to the section that its prefix names.
OTHER_SECTIONS = ("eval", "train", "perf", "samples", "sheets", "snapshots", "final", "best")


def write_view(client: "MlflowClient", experiment_id: str) -> str:
    """Write the view of an experiment's runs, colour those without a colour, and return the view's path."""
    runs = client.search_runs([experiment_id], order_by=["start_time DESC"], max_results=1000)
    _colour(client, runs)
    first_runs = runs[:MAX_RUNS]
    state = json.dumps(_state(first_runs, _last_step(client, first_runs)), separators=(",", ":"))
    packed = base64.b64encode(zlib.compress(state.encode(), 9)).decode()
    now = time.time_ns() // 1_000_000
    view = {"name": "ganpipe", "createdAt": now, "updatedAt": now, "state": f"deflate;{packed}"}
    client.set_experiment_tag(experiment_id, TAG, json.dumps(view))
    query = f"workflowType=machine_learning&compareRunsMode=CHART&viewStateShareKey={KEY}"
    return f"/#/experiments/{experiment_id}/runs?{query}"


def _colour(client: "MlflowClient", runs: Sequence["Run"]) -> None:
    """Give each run without a colour the one that the fewest runs have."""
    count = Counter(run.data.tags.get(COLOUR) for run in runs)
    for run in reversed(runs):
        if COLOUR not in run.data.tags:
            colour = min(COLOURS, key=count.__getitem__)
            client.set_tag(run.info.run_id, COLOUR, colour)
            count[colour] += 1


def _last_step(client: "MlflowClient", runs: Iterable["Run"]) -> int:
    """Return the latest of the steps at which the most runs have a grid."""
    steps: Counter[int] = Counter()
    pattern = picture_pattern(FIXED_Z, r"(\d+)")
    for run in runs:
        files = client.list_artifacts(run.info.run_id, "images")
        steps.update({int(match[1]) for file in files if (match := pattern.match(file.path))})
    return max(steps, key=lambda step: (steps[step], step), default=0)


def _state(runs: Sequence["Run"], step: int) -> dict[str, Any]:
    """Return the state of MLflow's page: order, columns, charts and sections."""
    metrics = sorted({name for run in runs for name in run.data.metrics})
    network = runs[0].data.params.get("evaluate.extractor") if runs else None  # not the second one
    kid = [name for kind in ("layout_mmd", "kid") if (name := f"eval/{kind}_{network}") in metrics]
    fd = [name for name in metrics if re.fullmatch(r"eval/(fid|fd_[a-z0-9]+)", name)][:1]
    floor = [f"{name}_floor" for name in fd if f"{name}_floor" in metrics]
    others = [name for name in ("eval/recall", "eval/authenticity") if name in metrics]
    params = sorted({name for run in runs for name in run.data.params})
    differing = [name for name in params if len({run.data.params.get(name) for run in runs}) > 1]
    during = ("snapshots/layout_mmd", "snapshots/kid", "train/kid_light", "train/spread")
    charts = [
        _chart("IMAGE", 0, imageKeys=[FIXED_Z], step=step, showRunParams=False),
        *(_chart("BAR", 1, [name]) for name in kid),
        *(_chart("BAR", 1, [name], selectedMetricKeys=[name, *floor]) for name in fd),
        *(_chart("BAR", 1, [name]) for name in others),
        _line(2, ["train/d_loss", "train/g_loss"]),
        _line(2, ["train/d_real", "train/d_fake"]),
        *(_line(3, [name]) for name in during if name in metrics),
        _line(4, ["perf/images_per_second"]),
    ]
    used = {chart["metricSectionId"] for chart in charts}
    names = {f"s{i}": name for i, name in enumerate(SECTIONS) if f"s{i}" in used}
    names |= {f"o{i}": name for i, name in enumerate(OTHER_SECTIONS)}
    sections: list[dict[str, Any]] = [
        {"uuid": uuid, "name": name, "display": uuid in used, "isReordered": True}
        for uuid, name in names.items()
    ]
    sections[0] |= {"columns": 1, "cardHeight": 560}
    columns = [f"metrics.`{name}`" for name in (*kid, *fd, *floor, *others)]
    return {
        "orderByKey": f"metrics.`{kid[0]}`" if kid else "attributes.start_time",
        "orderByAsc": bool(kid),
        "selectedColumns": columns + [f"params.`{name}`" for name in differing[:MAX_PARAMS]],
        "compareRunCharts": charts,
        "compareRunSections": sections,
        "isAccordionReordered": True,
    }


def _chart(kind: str, section: int, metrics: Sequence[str] = (), **settings: Any) -> dict[str, Any]:
    """Return a chart of the first of some metrics, in a section of SECTIONS."""
    uuid = f"{kind}{section}{'-'.join(metrics)}"
    chart = {"uuid": uuid, "type": kind, "metricSectionId": f"s{section}", "runsCountToCompare": MAX_RUNS}
    return chart | ({"metricKey": metrics[0]} if metrics else {}) | settings


def _line(section: int, metrics: Sequence[str]) -> dict[str, Any]:
    shared = {"useGlobalXaxisKey": True, "useGlobalLineSmoothing": True}  # steps, not smoothed
    return _chart("LINE", section, metrics, selectedMetricKeys=list(metrics), **shared)
