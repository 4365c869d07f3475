"""The model card of a generator in markdown: its data, training, scores and cost."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Template

from ganpipe.common.stages import stage_file
from ganpipe.models.papers import architecture_paper
from ganpipe.params import Model


def card(root: Path, metrics: Mapping[str, Any]) -> str:
    """Write the card from the content of metrics.json and the files of earlier stages in a checkout.

    Sections without their file (source.json, model.json, perf.csv) are left out: images of another program
    have none.
    """
    *paths, perf_path = (stage_file(root, name) for name in ("source.json", "model.json", "perf.csv"))
    source, model = (json.loads(path.read_text(encoding="utf-8")) if path.exists() else {} for path in paths)
    perf = pd.read_csv(perf_path) if perf_path.exists() else pd.DataFrame()
    text = Path(__file__).with_name("card.md.jinja").read_text(encoding="utf-8")
    known: dict[str, Any] = {"source": source, "model": model, "perf": perf, "metrics": metrics}
    known |= {"sizes": [*Model.model_fields, "channels"], "paper": architecture_paper, "brief": brief}
    return Template(text, trim_blocks=True, lstrip_blocks=True).render(known)


def aimed_at(drift_weight: float, metric: str) -> bool:
    """Return whether a metric is of the network in whose features the drifting loss trained."""
    return drift_weight > 0 and metric.endswith("lite0")


def brief(value: float | None) -> str:
    """Format a number with three digits, or as a whole number above 1000; None as a dash."""
    return "–" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
