"""An experiment's run in MLflow: compare what it holds with the stages' files, and send what is missing."""

import io
import json
import re
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import pandas as pd
from PIL import Image
from ruamel.yaml import YAML

from ganpipe.common import files
from ganpipe.common.stages import OUTPUTS, STEP_NUMBERS
from ganpipe.experiments.recipes import value_text
from ganpipe.experiments.revisions import flat
from ganpipe.tracking import page
from ganpipe.tracking.identity import COMMIT, DIRTY, GRID, Experiment

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

# Each table of the train stage that is sent: column → metric.
TABLES = {
    "history.csv": {column: f"train/{column}" for column in STEP_NUMBERS},
    "evals.csv": {column: f"train/{column}" for column in ("kid_light", "spread")},
    "perf.csv": {"images_per_second": "perf/images_per_second"},
}
# Pictures for the run's page: the grids of fixed z, one an epoch, and sheets of the finished generator.
FIXED_Z = "samples/fixed_z"
PICTURES = {
    name: f"sheets/{Path(name).stem}"
    for name in OUTPUTS["sample"] + OUTPUTS["evaluate"]
    if name.endswith(".png")
} | {"grid.png": "samples/final", "real_fake.png": "samples/real_fake"}
KEY = "ganpipe.key"
ATTEMPT = "ganpipe.attempt"  # start, host and id of the newest process that ran a stage of the run
MAX_METRICS, MAX_PARAM_LENGTH = 1000, 6000  # MLflow's limits for a call and for a value


class TrackedRun:
    """An MLflow run as it was when it was opened; each method sends what the run did not hold then."""

    def __init__(self, client: "MlflowClient", run: "Run", experiment: Experiment) -> None:
        self.client, self.info, self.data, self.id = client, run.info, run.data, run.info.run_id
        self._experiment = experiment
        self._tags = dict(experiment.tags)
        if self.data.tags.get(DIRTY) == "false":  # keep the commit that holds exactly this experiment
            self._tags |= {name: self.data.tags[name] for name in (COMMIT, DIRTY)}
        self._has_data = bool(run.inputs and run.inputs.dataset_inputs)
        self._last_steps = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        self._artifacts = {file.path for file in client.list_artifacts(self.id)}
        self._pictures = {file.path for file in client.list_artifacts(self.id, "images")}
        self._sent_points = self._sent_pictures = 0

    @classmethod
    def open(cls, client: "MlflowClient", experiment_id: str, experiment: Experiment, attempt: str) -> Self:
        """Return an experiment's run, renamed if necessary; create it with the attempt if there is none."""
        key, name = experiment.key, experiment.name
        query = f"tags.`{KEY}` = '{key}'"
        tags = {KEY: key} | ({ATTEMPT: attempt} if attempt else {})
        first_name = name or f"repro-{key[:6]}"
        runs = client.search_runs([experiment_id], query, order_by=["start_time ASC"], max_results=1)
        run = runs[0] if runs else client.create_run(experiment_id, tags=tags, run_name=first_name)
        if name and name != run.info.run_name:
            client.update_run(run.info.run_id, name=name)
            run = client.get_run(run.info.run_id)
        return cls(client, run, experiment)

    def __str__(self) -> str:
        sent = f"{self._sent_points:,} points and {self._sent_pictures} pictures added"
        changed = self._sent_points or self._sent_pictures
        return f"run {self.info.run_name}: {sent if changed else 'complete already'}"

    def describe(self) -> None:
        """Send the experiment's params and tags, and params.yaml as an artifact."""
        from mlflow.entities import Param

        texts = {name: value_text(value) for name, value in flat(self._experiment.values).items()}
        new = [Param(k, v[:MAX_PARAM_LENGTH]) for k, v in texts.items() if k not in self.data.params]
        if new:
            self.client.log_batch(self.id, params=new)
        commit = {"mlflow.source.git.commit": self._tags[COMMIT]} if COMMIT in self._tags else {}
        self.set_tags(self._tags | commit)
        if "params.yaml" not in self._artifacts:
            text = io.StringIO()
            YAML().dump(self._experiment.values, text)
            self.client.log_text(self.id, text.getvalue(), "params.yaml")

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set those tags that the run lacks or has with other values."""
        from mlflow.entities import RunTag

        new = [RunTag(name, value) for name, value in tags.items() if self.data.tags.get(name) != value]
        if new:
            self.client.log_batch(self.id, tags=new)

    def send_table(self, path: Path, metrics: Mapping[str, str]) -> None:
        """Send the new rows of a growing CSV file, each at the step of its column nimg.

        The metrics are by column. Rows after a rescue go to metrics of their own, such as "train/d_loss
        attempt 1": the abandoned curve stays visible, and no metric has two values at a step.
        """
        complete_lines, newline, _ = path.read_bytes().rpartition(b"\n")  # the last may be half written
        if not newline:
            return
        table = pd.read_csv(io.BytesIO(complete_lines))
        table["attempt"] = table.get("attempt", 0)
        for attempt, rows in table.groupby("attempt"):
            names = [f"{metric} attempt {attempt!r}" if attempt else metric for metric in metrics.values()]
            last_steps = [self._last_steps.get(name, -1) for name in names]
            new = rows.loc[rows["nimg"] > min(last_steps), ["nimg", *metrics]]
            self._send_points(
                (name, value, nimg)
                for nimg, *values in new.itertuples(index=False)
                for name, last_step, value in zip(names, last_steps, values, strict=True)
                if nimg > last_step
            )

    def send_numbers(self, numbers: Mapping[str, float], nimg: int) -> None:
        """Send those numbers of the finished training that are new or have changed, at step nimg."""
        sent = {name: (self.data.metrics.get(name), self._last_steps.get(name)) for name in numbers}
        new = {name: value for name, value in numbers.items() if sent[name] != (value, nimg)}
        self._send_points((name, value, nimg) for name, value in new.items())

    def send_snapshots(self, path: Path) -> None:
        """Send the numbers of snapshots.csv that are new or have changed, at the step of its column nimg."""
        table = pd.read_csv(path).select_dtypes("number")  # without rows no column is numeric
        for column in table.columns.difference(["epoch", "nimg"]):
            name = f"snapshots/{column}"
            held = self.client.get_metric_history(self.id, name) if name in self._last_steps else []
            sent = {metric.step: metric.value for metric in sorted(held, key=lambda metric: metric.timestamp)}
            new = table[["nimg", column]].dropna().itertuples(index=False)
            self._send_points((name, value, nimg) for nimg, value in new if sent.get(nimg) != value)

    def _send_points(self, points: Iterable[tuple[str, float, int]]) -> None:
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000  # MLflow counts milliseconds
        metrics = (Metric(name, float(value), now, int(step)) for name, value, step in points)
        while batch := list(islice(metrics, MAX_METRICS)):
            self.client.log_batch(self.id, metrics=batch)
            self._sent_points += len(batch)

    def send_grids(self, folder: Path, train_images: int) -> None:
        """Send a folder's grids <epoch>.png at step epoch · training images, whatever the batch size."""
        for path in sorted(folder.glob("[0-9]*.png"), key=lambda path: int(path.stem)):
            step = int(path.stem) * train_images
            if not self._has_preview(FIXED_Z, step):
                self._send_picture(path, FIXED_Z, step)

    def send_file(self, path: Path) -> None:
        """Send a file, and its picture for the run's page, unless the run has both with the same bytes."""
        digest, tag, key = files.sha256(path), f"ganpipe.sha256.{path.name}", PICTURES.get(path.name)
        complete = path.name in self._artifacts and (key is None or self._has_preview(key, 0))
        if complete and self.data.tags.get(tag) == digest:
            return
        if key:
            self._delete_picture(key)
            self._send_picture(path, key, 0)
        self.client.log_artifact(self.id, str(path))
        self.client.set_tag(self.id, tag, digest)

    def _send_picture(self, path: Path, key: str, step: int) -> None:
        with Image.open(path) as picture:
            self.client.log_image(self.id, picture, key=key, step=step)
        self._sent_pictures += 1

    def _has_preview(self, key: str, step: int) -> bool:
        """Say whether a picture has a preview, which MLflow writes after the picture and shows in its UI."""
        pattern = picture_pattern(key, str(step))
        return any(pattern.match(path) for path in self._pictures if path.endswith(".webp"))

    def _delete_picture(self, key: str) -> None:
        """Delete the older pictures at step 0; a store that refuses keeps them beside the new one."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        store = get_artifact_repository(self.info.artifact_uri, tracking_uri=self.client.tracking_uri)
        for path in filter(picture_pattern(key, "0").match, self._pictures):
            with suppress(Exception):  # the exception depends on the store
                store.delete_artifacts(path)

    def send_page(self, home: Path, train: Path, model: dict[str, Any], scores: dict[str, Any]) -> None:
        """Send the description on the run's page, its data set and, once training has ended, a summary."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        values, tags = self._experiment.values, self._tags
        note = page.note(home, values, tags, model, scores)
        if GRID in tags:
            note += page.grid_link(self.info.experiment_id, tags[GRID])
        self.set_tags({page.NOTE: note})
        if not self._has_data:
            location = json.dumps({"uri": values["fetch"]["path"]})
            data = Dataset(values["fetch"]["source"], self._experiment.data_digest[:16], "local", location)
            context = [InputTag("mlflow.data.context", "training")]
            self.client.log_inputs(self.id, datasets=[DatasetInput(data, context)])
        if "ended" in model:
            self.send_numbers(page.summary(train), model["nimg"])

    def set_status(self, status: Status | None, attempt: str = "") -> None:
        """Set the run's status, unless the attempt is older than the newest that the run knows.

        A status of None is FINISHED for a running run, and no change for one that has ended.
        """
        newest = self.data.tags.get(ATTEMPT, "")
        if attempt:
            if newest and attempt_start(attempt) < attempt_start(newest):
                return
            self.set_tags({ATTEMPT: attempt})
        status = status or ("FINISHED" if self.info.status == "RUNNING" else self.info.status)
        if status != self.info.status:
            change = self.client.update_run if status == "RUNNING" else self.client.set_terminated
            change(self.id, status)


def picture_pattern(key: str, step: str) -> re.Pattern[str]:
    """Return a pattern of a picture's artifacts, where `step` is a pattern of its step."""
    # The separators changed between MLflow 3.7 and 3.17.
    return re.compile(rf"images/{key.replace('/', '[~#]')}[+%]step[+%]{step}[+%].*")


def attempt_start(attempt: str) -> float:
    """Return when the process of an attempt started, in seconds since 1970; 0 for another program's tag."""
    with suppress(ValueError):
        return float(attempt.split(" ")[0])
    return 0.0
