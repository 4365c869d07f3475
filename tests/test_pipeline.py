"""dvc.yaml against the code: deps, params, outputs and contracts of the five stages."""

import importlib
import inspect
import itertools
import re
from typing import Any

import pytest
from conftest import ROOT
from ruamel.yaml import YAML

from ganpipe import params
from ganpipe.common import code, stages

PIPELINE: dict[str, Any] = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())
STAGES: dict[str, dict[str, Any]] = PIPELINE["stages"]
# The function that takes a stage's params, where it is not called after the stage.
TAKES_PARAMS = {"train": ("ganpipe.train.plan", "plan_training")}


def outs(stage: str) -> list[str]:
    """List the output files and folders of a stage, with its metrics."""
    return [*STAGES[stage]["outs"], *STAGES[stage].get("metrics", [])]


def test_the_five_stages_in_order() -> None:
    """Everything else of the project counts on these names."""
    assert list(STAGES) == list(stages.STAGES) == ["fetch", "preprocess", "train", "sample", "evaluate"]


def test_outputs_are_those_that_the_code_knows() -> None:
    """MLflow would miss a file, or the comparison look for one that no stage writes."""
    for stage, names in stages.OUTPUTS.items():
        assert {path.removeprefix(f"stages/{stage}/") for path in outs(stage)} == set(names)


@pytest.mark.parametrize("stage", STAGES)
def test_code_deps_hold_what_the_stage_imports_and_no_more(stage: str) -> None:
    """A part left out can change without the stage running again; one too many retrains for nothing."""
    listed = [dep for dep in STAGES[stage]["deps"] if dep.startswith("ganpipe/")]
    imported = code.import_closure(f"ganpipe.{stage}.stage", ROOT)
    inside = {dep: [path for path in imported if path == dep or path.startswith(f"{dep}/")] for dep in listed}
    assert sorted(itertools.chain(*inside.values())) == imported
    assert all(inside.values())


@pytest.mark.parametrize("stage", STAGES)
def test_data_deps_are_outputs_of_earlier_stages(stage: str) -> None:
    """A stage that read a file that it does not list would use a stale one."""
    earlier = list(STAGES)[: list(STAGES).index(stage)]
    data = [dep for dep in STAGES[stage]["deps"] if not dep.startswith("ganpipe/")]
    if stage == "fetch":
        assert data == ["${fetch.path}"]
        return
    made = {path for name in earlier for path in outs(name)}
    assert data and set(data) <= made
    module = code.import_closure(f"ganpipe.{stage}.stage", ROOT)
    source = "".join((ROOT / path).read_text() for path in module)
    assert all(path.rpartition("/")[2] in source for path in data)


@pytest.mark.parametrize("stage", STAGES)
def test_params_are_what_the_stage_function_takes(stage: str) -> None:
    """A section left out can change without the stage running again."""
    module, function = TAKES_PARAMS.get(stage, (f"ganpipe.{stage}.stage", stage))
    signature = inspect.signature(getattr(importlib.import_module(module), function))
    taken = {p.annotation for p in signature.parameters.values() if p.annotation in sections().values()}
    assert [sections()[name] for name in STAGES[stage]["params"]] == [
        s for s in sections().values() if s in taken
    ]


def sections() -> dict[str, Any]:
    """Name → class of each section of params.yaml."""
    return {name: field.annotation for name, field in params.Params.model_fields.items()}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_writes_in_its_own_folder_and_says_what(stage: str) -> None:
    """`ls stages/*` and the contract beside the outputs are how a newcomer learns the pipeline."""
    contract = (ROOT / "stages" / stage / "README.md").read_text()
    assert len(contract.splitlines()) <= 25
    for path in outs(stage):
        assert path.startswith(f"stages/{stage}/")
        assert path.rpartition("/")[2] in contract, path


@pytest.mark.parametrize("stage", STAGES)
def test_commands_are_plain(stage: str) -> None:
    """The console script would run other code in a queued experiment; `${...}` in a command runs `$(...)`."""
    assert STAGES[stage]["cmd"] == f"python -m ganpipe {stage}"
    assert set(STAGES[stage]) <= {"cmd", "deps", "params", "outs", "metrics"}


def test_outputs_are_ignored_by_git_up_front() -> None:
    """DVC would write .gitignore files into the stages' folders, and every checkout would be dirty."""
    assert "/stages/*/*" in (ROOT / ".gitignore").read_text().splitlines()
    assert not re.search(r"persist:\s*true", (ROOT / "dvc.yaml").read_text())


def test_no_picture_of_the_docs_is_large() -> None:
    """Every clone would carry it for good."""
    assert not [path.name for path in (ROOT / "docs").iterdir() if path.stat().st_size >= 150_000]
