"""Complete the runs of the workspace and of all DVC experiments in MLflow."""

import json
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ganpipe.common.errors import UserError
from ganpipe.common.stages import STAGES, stage_file
from ganpipe.experiments.revisions import UNREADABLE, Experiment, finished, open_repo, read_outputs, unpack
from ganpipe.tracking.identity import BASELINE, COMMIT, DIRTY, TRACKED, Stage, identify
from ganpipe.tracking.mirror import ARTIFACTS, TRAIN_FILES, stage_folders, update
from ganpipe.tracking.model import WEIGHTS
from ganpipe.tracking.run import Status, TrackedRun
from ganpipe.tracking.store import connect, first_line, reported


def sync(root: Path) -> list[str]:
    """Complete the runs of the workspace and of every finished DVC experiment; a second call changes nothing.

    Return a line for each of them: what was sent, or why it was skipped.

    Raises UserError: there is no DVC repository, DVC is busy, or MLflow cannot be brought up to date.
    """
    home, names = root.resolve(), dict[str, str]()
    with reported(home), open_repo(home) as repo:
        connect(home)  # reports a wrong address before DVC compares all files
        lines = [_line("workspace", lambda: update_workspace(home, repo))]
        for name, experiments in sorted(finished(repo).items()):
            for experiment in experiments:
                update_one = partial(update_experiment, home, name, experiment, names)
                lines.append(_line(name, update_one))
    return lines


def _line(name: str, update_one: Callable[[], tuple[Stage, TrackedRun]]) -> str:
    try:
        last, run = update_one()
        return f"{name}: up to {last}, {run}"
    except (UserError, FileNotFoundError) as error:
        return f"{name}: skipped: {first_line(error)}"


def update_workspace(home: Path, repo: Any) -> tuple[Stage, TrackedRun]:
    """Complete the run of the workspace; return the last stage that is up to date, and the run.

    Raises UserError: not even train is up to date. Otherwise as `update`.
    """
    changed = {name.rpartition(":")[2] for name in repo.status()}
    stale = next((stage for stage in STAGES if stage in changed), None)
    valid = [stage for stage in TRACKED if stale is None or STAGES.index(stage) < STAGES.index(stale)]
    if not valid:
        raise UserError(f"nothing to record, {stale} is not up to date; run `dvc repro`")
    last = valid[-1]
    # Without evaluate the run keeps its status: the stage after `last` may have failed.
    status: Status | None = "FINISHED" if last == "evaluate" else None
    return last, update(home, identify(home), stage_folders(home, last), status)


def update_experiment(
    home: Path, name: str, experiment: Experiment, names: dict[str, str]
) -> tuple[Stage, TrackedRun]:
    """Record an experiment from git and DVC's cache, and add its key → name to `names`; return as above.

    Raises UserError: it has no trained model, cannot be read, or another of the names shares its run.
    """
    origin = {COMMIT: experiment.revision, DIRTY: "false", BASELINE: experiment.baseline}
    try:
        with TemporaryDirectory(prefix="ganpipe-sync-") as folder:
            copy = Path(folder)
            last_valid = unpack(home, experiment.revision, copy)[1]
            last = next((stage for stage in TRACKED if stage == last_valid), None)
            if last is None:
                raise UserError("no trained model belongs to its params and code")
            folders = stage_folders(copy, last)
            wanted = [*TRAIN_FILES, *(file for stage in folders for file in ARTIFACTS[stage])]
            outputs = read_outputs(home, name, experiment.revision, wanted)
            with suppress(UserError):  # a run without its model is better than none
                outputs |= read_outputs(home, name, experiment.revision, [WEIGHTS])
            for file, content in outputs.items():
                output, _, rest = file.partition("/")
                path = stage_file(copy, output) / rest
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            identity = identify(copy, name, json.loads(outputs["model.json"])["data_digest"], origin)
            if (twin := names.setdefault(identity.key, name)) != name:
                raise UserError(f"same params, data and code as {twin}, whose run it shares")
            return last, update(home, identity, folders, "FINISHED")
    except UserError:
        raise
    except UNREADABLE as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"not readable by this version of ganpipe: {reason}") from error
