"""Complete the runs of the workspace and of all DVC experiments in MLflow."""

import json
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ganpipe.common.errors import UserError
from ganpipe.common.stages import STAGES, stage_file
from ganpipe.experiments.revisions import UNREADABLE, Experiment, finished, open_repo, read_outputs, unpack
from ganpipe.tracking.identity import BASELINE, COMMIT, DIRTY, TRACKED, identify
from ganpipe.tracking.mirror import ARTIFACTS, TRAIN_FILES, stage_folders, update
from ganpipe.tracking.model import WEIGHTS
from ganpipe.tracking.run import Status
from ganpipe.tracking.store import connect, failure, first_line


def sync(root: Path) -> list[str]:
    """Complete the runs of the workspace and of every finished DVC experiment; a second call changes nothing.

    Return a line for each of them: what was sent, or why it was skipped.

    Raises UserError: there is no DVC repository, DVC is busy, or MLflow cannot be brought up to date.
    """
    home, names = root.resolve(), dict[str, str]()
    try:
        with open_repo(home) as repo:
            connect(home)  # reports a wrong address before DVC compares all files
            lines = [_sync_workspace(home, repo)]
            for name, experiments in sorted(finished(repo).items()):
                for experiment in experiments:
                    lines.append(f"{name}: {_sync_experiment(home, name, experiment, names)}")
    except Exception as error:  # each kind of store raises its own
        if isinstance(error, UserError) or getattr(error, "errno", None):
            raise
        raise UserError(failure(home, error)) from error
    return lines


def _sync_workspace(home: Path, repo: Any) -> str:
    changed = {name.rpartition(":")[2] for name in repo.status()}
    stale = next((stage for stage in STAGES if stage in changed), None)
    valid = [stage for stage in TRACKED if stale is None or STAGES.index(stage) < STAGES.index(stale)]
    if not valid:
        return f"workspace: nothing to record, {stale} is not up to date; run `dvc repro`"
    last = valid[-1]
    # Without evaluate the run keeps its status: the stage after `last` may have failed.
    status: Status | None = "FINISHED" if last == "evaluate" else None
    try:
        return f"workspace: up to {last}, {update(home, identify(home), stage_folders(home, last), status)}"
    except (UserError, FileNotFoundError) as error:
        return f"workspace: skipped: {first_line(error)}"


def _sync_experiment(home: Path, name: str, experiment: Experiment, names: dict[str, str]) -> str:
    """Record an experiment from git and DVC's cache, and add its key → name to `names`."""
    origin = {COMMIT: experiment.revision, DIRTY: "false", BASELINE: experiment.baseline}
    try:
        with TemporaryDirectory(prefix="ganpipe-sync-") as folder:
            copy = Path(folder)
            last_valid = unpack(home, experiment.revision, copy)[1]
            last = next((stage for stage in TRACKED if stage == last_valid), None)
            if last is None:
                return "skipped: no trained model belongs to its params and code"
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
            twin = names.setdefault(identity.key, name)
            if twin != name:
                return f"same params, data and code as {twin}, whose run it shares"
            return f"up to {last}, {update(home, identity, folders, 'FINISHED')}"
    except UserError as error:
        return f"skipped: {first_line(error)}"
    except UNREADABLE as error:
        reason = "not readable by this version of ganpipe"
        return f"skipped: {reason}: {type(error).__name__}: {first_line(error)}"
