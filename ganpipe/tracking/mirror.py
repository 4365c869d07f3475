"""The MLflow mirror of stages/: one idempotent function makes an experiment's run complete from its files.

MLflow is never the truth. Live logging, a cached stage, a resumed run and a server that was away end in the
same run, because every update asks the run what it has and sends only what is missing. mlflow, pandas and dvc
are imported inside the functions: mlflow alone takes seconds.
"""

import hashlib
import io
import json
import logging
import os
import re
import select
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import psutil
from filelock import FileLock

from ganpipe import params
from ganpipe.common import code as closure
from ganpipe.common import dataset as packed
from ganpipe.common import files, processes, stages
from ganpipe.common.errors import Interrupted, UserError
from ganpipe.experiments import revisions
from ganpipe.tracking import model as packing
from ganpipe.tracking import page

if TYPE_CHECKING:
    import mlflow
    import pandas as pd
    from mlflow.entities import Metric, Run

Stage = Literal["train", "sample", "evaluate"]
Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
Folders = Mapping[Stage, Path]  # where a stage's files are, for those stages that are mirrored

STAGES: tuple[Stage, ...] = ("train", "sample", "evaluate")
MIRRORED: dict[Stage, tuple[str, ...]] = {
    "train": ("model.json", "history.csv", "evals.csv", "events.csv", "perf.csv", "grids"),
    "sample": ("grid.png",),
    "evaluate": ("metrics.json", "real_fake.png"),
}
NUMBERS = ("d_loss", "g_loss", "d_real", "d_fake", "d_grad_norm", "g_grad_norm")
LOSSES = {column: f"train/{column}" for column in NUMBERS}
JUDGED = {column: f"train/{column}" for column in ("kid_light", "spread")}
SPEED = {"images_per_second": "perf/images_per_second"}
GENERATOR = "generator.safetensors"  # sent as a model
PICTURES = {"grid.png": "samples/final", "real_fake.png": "samples/real_fake"}
ENDING = ("ended", "interventions")  # of model.json, once the training has ended
KEY, COMMIT, DIRTY = "ganpipe.key", "ganpipe.git_commit", "ganpipe.git_dirty"
ATTEMPT = "ganpipe.attempt"  # the newest stage process of a run: its start, host and id
MAX_METRICS, MAX_PARAMS, MAX_PARAM_LENGTH = 1000, 100, 6000  # MLflow's, of one call and of one value
LAST_FLUSH = 60.0  # seconds that the end of a stage waits for the mirror
HANGING = 3.0  # seconds after which a server that has failed is not asked once more at the end
LONGEST_PAUSE = 60.0  # seconds between attempts while the server is away


@dataclass(frozen=True)
class Experiment:
    """What makes an experiment the one it is, and where it comes from.

    Attributes:
        values: all sections of params.yaml, train.batch_size resolved for the resolution.
        data_digest: of the packed data set.
        code_digest: of every file that train, sample or evaluate imports.
        tags: MLflow tags that say where it comes from.
        name: the run's name; None leaves the name that the run has.
    """

    values: dict[str, dict[str, Any]]
    data_digest: str
    code_digest: str
    tags: dict[str, str]
    name: str | None

    @property
    def key(self) -> str:
        """Sixteen hexadecimal characters under which the run is found again."""
        content = json.dumps([self.values, self.data_digest, self.code_digest], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def record(
    root: Path,
    upto: Stage,
    train_folder: Path | None = None,
    status: Status = "FINISHED",
    name: str | None = None,
) -> str:
    """Bring the run of a checkout's experiment up to date from its files; a second call changes nothing.

    Args:
        root: the checkout.
        upto: the last stage whose files belong to this experiment; later stages' may be a previous one's.
        train_folder: where the train stage's files are, complete or growing; None: stages/train.
        status: the run's status afterwards.
        name: the run's name; None: DVC_EXP_NAME if set, else the run's own or, for a new run, repro-<key>.

    Returns:
        The id of the MLflow run.

    Raises:
        UserError: the trained model belongs to other params, or MLflow's experiment was deleted.
        FileNotFoundError: a file to be mirrored is missing.
        MlflowException: MLflow cannot be reached or refuses.
    """
    _settings()
    return _mirror(
        files.main_checkout(root), _identify(root, name), _folders(root, upto, train_folder), status
    ).id


@contextmanager
def recording(
    root: Path, stage: Stage, train_folder: Path | None = None, every: float = 5.0
) -> Iterator[None]:
    """Mirror a stage while it runs (train: every few seconds) and once more when it has ended, whichever way.

    Never raises into the stage and never makes its loop wait. A process does the work: a thread would hold
    Python's lock, and so the loop, for 100 ms and more while it imports mlflow and collects garbage.
    The process outlives a `kill -9` of the stage and then marks the run as KILLED. When MLflow could not be
    brought up to date, one line on stderr says so.

    Args:
        root: the checkout.
        stage: the stage that runs inside.
        train_folder: where train keeps its files until it succeeds.
        every: seconds between updates.
    """
    began = psutil.Process().create_time()
    attempt = f"{began:.2f} {socket.gethostname()} {os.getpid()}"
    words = map(str, (root, stage, every, attempt, train_folder or ""))
    # In a session of its own, Ctrl-C does not reach it; the pipe tells it how the stage ended.
    mirror = subprocess.Popen(
        [sys.executable, "-m", "ganpipe.tracking.mirror", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    ended_by: BaseException | None = None
    try:
        yield
    except BaseException as error:
        ended_by = error
        raise
    finally:
        try:
            why = mirror.communicate(_status(ended_by), timeout=LAST_FLUSH)[0].strip()
            why = why or (f"its process ended with code {mirror.returncode}" if mirror.returncode else "")
        except subprocess.TimeoutExpired:
            why = f"not done within {LAST_FLUSH:.0f} s"
        if why:
            print(f"MLflow is not up to date ({why}); `ganpipe sync` completes the run", file=sys.stderr)


def _status(ended_by: BaseException | None) -> Status:
    if ended_by is None:
        return "FINISHED"
    return "KILLED" if isinstance(ended_by, Interrupted | KeyboardInterrupt | SystemExit) else "FAILED"


def _follow(root: Path, stage: Stage, every: float, attempt: str, train_folder: Path | None) -> str:
    """Be the process behind `recording`: update until stdin tells how the stage ended, then once more.

    The mirror of a killed stage may be late: the status is that of the newest attempt, never an older one's.

    Returns:
        What went wrong in the last update, or nothing.
    """
    _settings()
    os.nice(5)  # the stage comes first
    status: Status = "RUNNING"
    experiment: Experiment | None = None
    error: Exception | None = None
    pause = every
    while True:
        began = time.monotonic()
        try:
            # Once, at the start: hashing the data takes time, and code edited meanwhile is not what runs.
            experiment = experiment or _identify(root)
            so_far = _so_far(root, stage, status, train_folder)
            _mirror(files.main_checkout(root), experiment, so_far, status, attempt)
            error, pause = None, every
        except Exception as problem:  # whatever it is: tell it at the end
            # A train that succeeds moves its files: the last update finds them in stages/.
            moving = isinstance(problem, FileNotFoundError) and status == "RUNNING"
            error, pause = (None, every) if moving else (problem, min(2 * pause, LONGEST_PAUSE))
        hung = error is not None and time.monotonic() - began > HANGING
        if status != "RUNNING":
            break
        idle = pause if error or stage == "train" else None
        if select.select([sys.stdin], [], [], idle)[0]:
            # Nothing comes where the stage was killed without a chance to say so.
            status = cast(Status, sys.stdin.readline() or "KILLED")
            if hung:
                break
    return _brief(error) if error else ""


def _so_far(root: Path, stage: Stage, status: Status, train_folder: Path | None) -> Folders:
    """Return the folders of whole stages, and train's growing one."""
    if status == "FINISHED":
        return _folders(root, stage)
    if stage != "train":
        return _folders(root, STAGES[STAGES.index(stage) - 1])
    begun = train_folder is not None and (train_folder / "model.json").exists()
    return _folders(root, "train", train_folder) if begun else {}


def sync(root: Path) -> list[str]:
    """Make the runs of the workspace and of every finished DVC experiment complete; idempotent.

    Returns:
        What was done: a line for the workspace and one for each experiment.

    Raises:
        UserError: no DVC repository, DVC is busy, or MLflow cannot be brought up to date.
    """
    _settings()
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo
    from mlflow.exceptions import MlflowException

    home, done = root.resolve(), dict[str, str]()
    try:
        with Repo(str(home)) as repo:
            lines = [_sync_workspace(home, repo)]
            for baseline, experiments in sorted(repo.experiments.ls(all_commits=True).items()):
                for name, revision in sorted(experiments):
                    with tempfile.TemporaryDirectory(prefix="ganpipe-sync-") as copy:
                        origin = {COMMIT: revision, DIRTY: "false", "dvc.exp_baseline_rev": baseline}
                        lines.append(f"{name}: {_sync_experiment(home, Path(copy), name, origin, done)}")
    except (DvcException, LockError) as error:
        raise UserError(f"{root}: DVC does not answer: {_brief(error)}") from None
    except MlflowException as error:
        raise UserError(f"MLflow at {_address(home)} cannot be brought up to date: {_brief(error)}") from None
    return lines


def _sync_workspace(home: Path, repo: Any) -> str:
    changed = {name.rpartition(":")[2] for name in repo.status()}
    stale = next((i for i, name in enumerate(stages.STAGES) if name in changed), len(stages.STAGES))
    valid = stages.STAGES[:stale]
    if "train" not in valid:
        return f"workspace: nothing to record, {stages.STAGES[stale]} is not up to date; run `dvc repro`"
    upto = STAGES[len(valid) - stages.STAGES.index("sample")]
    try:
        status: Status | None = "FINISHED" if upto == "evaluate" else None  # the next stage may have failed
        mirrored = _mirror(home, _identify(home), _folders(home, upto), status)
    except (UserError, FileNotFoundError) as error:
        return f"workspace: skipped: {_brief(error)}"
    return f"workspace: up to {upto}, {mirrored}"


def _sync_experiment(home: Path, copy: Path, name: str, origin: dict[str, str], done: dict[str, str]) -> str:
    """Record an experiment out of git and DVC's cache.

    Args:
        home: the checkout.
        copy: an empty folder for the experiment's files.
        name: the experiment's.
        origin: tags that say which commit it is.
        done: key → name of the experiments recorded before.
    """
    from dvc.api import DVCFileSystem

    revision = DVCFileSystem(str(home), rev=origin[COMMIT])

    def get(path: str) -> None:
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        try:
            revision.get(path, str(copy / path), recursive=True)
        except (OSError, KeyError):
            raise UserError(
                f"{path} is not in the cache; `dvc exp apply {name}` and `dvc repro` make it"
            ) from None

    try:
        last = revisions.unpack(home, origin[COMMIT], copy)[1]
        upto = next((stage for stage in STAGES if stage == last), None)
        if upto is None:
            return "skipped: no trained model belongs to its params and code"
        folders = _folders(copy, upto)
        for stage in folders:
            for file in MIRRORED[stage]:
                get(f"stages/{stage}/{file}")
        with suppress(UserError):  # a run without its model is better than none
            get(f"stages/train/{GENERATOR}")
        experiment = _identify(copy, name, _model(folders["train"])["data_digest"], origin)
        twin = done.setdefault(experiment.key, name)
        if twin != name:
            return f"same params, data and code as {twin}, whose run it shares"
        return f"up to {upto}, {_mirror(home, experiment, folders, 'FINISHED')}"
    except UserError as error:
        return f"skipped: {_brief(error)}"
    except (KeyError, ValueError, SyntaxError) as error:
        return f"skipped: not readable by this version of ganpipe: {type(error).__name__}: {_brief(error)}"


def _identify(
    root: Path,
    name: str | None = None,
    data_digest: str | None = None,
    origin: dict[str, str] | None = None,
) -> Experiment:
    """Find out which experiment a checkout holds.

    Args:
        root: the checkout.
        name: the run's name; None: DVC's experiment name, if there is one.
        data_digest: None: of stages/preprocess.
        origin: tags of git and DVC; None: those of the checkout and of DVC's environment variables.
    """
    loaded = params.load(root / params.PARAMS_FILE)
    values = loaded.experiment
    values["train"]["batch_size"] = loaded.train.batch_size_for(loaded.preprocess.resolution)
    modules = {path for stage in STAGES for path in closure.import_closure(f"ganpipe.{stage}.stage", root)}
    code = closure.code_digest(modules, root)
    data = data_digest or packed.load(root / "stages/preprocess").digest
    if origin is None:
        name = name or os.environ.get("DVC_EXP_NAME")
        origin = _git(root) | {"dvc.exp_baseline_rev": os.environ.get("DVC_EXP_BASELINE_REV", "")}
    tags = (
        origin
        | page.origin(loaded, name)
        | {"dvc.exp_name": name or "", "ganpipe.data_digest": data, "ganpipe.code_digest": code}
    )
    return Experiment(values, data, code, {key: value for key, value in tags.items() if value}, name)


def _git(root: Path) -> dict[str, str]:
    """Tags of the commit and of whether code, params or pipeline differ from it; none outside git."""

    def ask(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:  # dvc.lock does not count: every repro changes it
        changed = ask("status", "--porcelain", "--", "params.yaml", "dvc.yaml", "ganpipe")
        return {COMMIT: ask("rev-parse", "HEAD"), DIRTY: "true" if changed else "false"}
    except (OSError, subprocess.SubprocessError):
        return {}


def _folders(root: Path, upto: Stage, train_folder: Path | None = None) -> Folders:
    folders = {stage: root / "stages" / stage for stage in STAGES[: STAGES.index(upto) + 1]}
    return folders | ({"train": train_folder} if train_folder else {})


def _model(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "model.json").read_text(encoding="utf-8"))


def _check(model: dict[str, Any], experiment: Experiment) -> None:
    """Refuse a trained model of another experiment."""
    trained = {f"model.{name}": model[name] for name in experiment.values["model"]}
    trained |= {f"train.{name}": value for name, value in model["train"].items()}
    trained |= {"train.batch_size": model["batch_size"], "the data": model["data_digest"]}
    now = _flat(experiment) | {"the data": experiment.data_digest}
    for name, value in trained.items():
        if now.get(name) != value:
            raise UserError(
                f"the trained model belongs to other params: {name} was {value} and is now {now.get(name)}; "
                "run `dvc repro`"
            )


def _flat(experiment: Experiment) -> dict[str, Any]:
    return {f"{section}.{k}": v for section, values in experiment.values.items() for k, v in values.items()}


def _brief(error: Exception) -> str:
    """Return the first line of an error, without the insides of an HTTP client."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line.partition(" with exception ")[0][:200]


def _settings() -> None:
    """Keep MLflow, and what it stands on, silent, at home, and quick where the server is away."""
    defaults = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "GIT_PYTHON_REFRESH": "quiet",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    for logger in ("alembic", "urllib3.connectionpool"):
        logging.getLogger(logger).setLevel(logging.ERROR)


def address(home: Path) -> str:
    """Return the address of the MLflow that mirrors a checkout; MLflow is made silent and quick."""
    _settings()
    return _address(home.resolve())


def connection(home: Path) -> "tuple[mlflow.MlflowClient, str]":
    """Return a client of that MLflow and the id of its experiment; both are made if absent."""
    _settings()
    return _connect(home.resolve())


def _address(home: Path) -> str:
    """Return MLFLOW_TRACKING_URI, or the database of the main checkout; a path in it is made absolute."""
    address = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    scheme, separator, path = address.partition("sqlite:///")
    return f"{scheme}{separator}{home / path}" if separator else address


def _connect(home: Path) -> "tuple[mlflow.MlflowClient, str]":
    """Return a client and the id of MLflow's experiment; database and experiment are made if absent."""
    from mlflow import MlflowClient

    address, artifacts = _address(home), home / "mlruns"
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "ganpipe"
    if address.startswith("sqlite:///"):
        database = Path(address.removeprefix("sqlite:///").partition("?")[0])
        if not database.exists():
            _create(database, artifacts)
    client = MlflowClient(tracking_uri=address)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        # A server knows where its artifacts belong; for a database MLflow would take the current folder.
        place = None if address.startswith("http") else (artifacts / name).as_uri()
        return client, client.create_experiment(name, artifact_location=place)
    if experiment.lifecycle_stage != "active":
        restore = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
        raise UserError(f"MLflow's experiment {name} is deleted; `{restore}`, or set MLFLOW_EXPERIMENT_NAME")
    return client, experiment.experiment_id


def _create(database: Path, artifacts: Path) -> None:
    """Create MLflow's database whole or not at all: one left within its migrations is broken for good."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for rest in ("-wal", "-shm"):  # of a database that was deleted: SQLite would replay it into the new one
        database.with_name(f"{database.name}{rest}").unlink(missing_ok=True)
    with files.whole(database) as temporary:
        temporary.touch()  # fails at once where MLflow would try for minutes
        SqlAlchemyStore(f"sqlite:///{temporary}", artifacts.as_uri()).engine.dispose()
        connection = sqlite3.connect(temporary)
        # Persists; with it readers and a writer do not lock each other out.
        connection.execute("PRAGMA journal_mode=WAL")
        connection.close()


def _mirror(
    home: Path, experiment: Experiment, folders: Folders, status: Status | None, attempt: str = ""
) -> "_Run":
    """Send what a run lacks of the files in `folders`; status and attempt as in `set_status`."""
    model = _model(folders["train"]) if "train" in folders else {}
    if model:
        _check(model, experiment)
    lock = home / ".ganpipe" / "mlflow.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):  # one update at a time: two of the same experiment would send the same points
        run = _find_or_create(*_connect(home), experiment, attempt)
        run.describe(experiment)
        if model:
            run.send_table(folders["train"] / "history.csv", LOSSES)
            run.send_table(folders["train"] / "evals.csv", JUDGED)
            run.send_table(folders["train"] / "perf.csv", SPEED)
            run.send_file(folders["train"] / "events.csv")
            run.tell({f"ganpipe.{name}": str(model[name]) for name in ENDING if name in model})
            run.send_grids(folders["train"] / "grids", model["train_images"])
        if "evaluate" in folders:
            run.send_metrics(folders["evaluate"] / "metrics.json", model["nimg"])
        for stage, folder in folders.items():
            for file in MIRRORED[stage] if stage != "train" else ():
                run.send_file(folder / file)
        if model:
            run.write_page(home, experiment, folders, ended="ended" in model)
        if status == "FINISHED" and (folders["train"] / GENERATOR).exists():
            packing.send(run.client, run.info, run.data.tags, folders["train"])
        run.set_status(status, attempt)
    return run


def _find_or_create(
    client: "mlflow.MlflowClient", number: str, experiment: Experiment, attempt: str
) -> "_Run":
    key, name = experiment.key, experiment.name
    where = f"tags.`{KEY}` = '{key}'"
    found = client.search_runs([number], where, order_by=["start_time ASC"], max_results=1)
    if not found:
        tags = {KEY: key} | ({ATTEMPT: attempt} if attempt else {})
        return _Run(client, client.create_run(number, tags=tags, run_name=name or f"repro-{key[:6]}"))
    run = found[0]
    if name and name != run.info.run_name:
        client.update_run(run.info.run_id, name=name)
        run = client.get_run(run.info.run_id)
    return _Run(client, run)


class _Run:
    """An MLflow run as it was found, what it lacks being sent."""

    def __init__(self, client: "mlflow.MlflowClient", run: "Run") -> None:
        self.client, self.info, self.data, self.id = client, run.info, run.data, run.info.run_id
        self.inputs = run.inputs
        self.steps = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        self.files = {file.path for file in client.list_artifacts(self.id)}
        self.shown = {file.path for file in client.list_artifacts(self.id, "images")}
        self.points = self.pictures = 0

    def __str__(self) -> str:
        done = f"{self.points:,} points and {self.pictures} pictures added"
        return f"run {self.info.run_name}: {done if self.points or self.pictures else 'complete already'}"

    def describe(self, experiment: Experiment) -> None:
        """Send params and tags, and the resolved params as a file."""
        from mlflow.entities import Param
        from ruamel.yaml import YAML

        tags = experiment.tags
        if self.data.tags.get(DIRTY) == "false":  # a commit that holds this very experiment is known
            tags = {name: value for name, value in tags.items() if name not in (COMMIT, DIRTY)}
        if COMMIT in tags:
            tags = tags | {"mlflow.source.git.commit": tags[COMMIT]}
        texts = {
            name: value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
            for name, value in _flat(experiment).items()
        }
        new = [Param(k, v[:MAX_PARAM_LENGTH]) for k, v in texts.items() if k not in self.data.params]
        for start in range(0, len(new), MAX_PARAMS):
            self.client.log_batch(self.id, params=new[start : start + MAX_PARAMS])
        self.tell(tags)
        if "params.yaml" not in self.files:
            text = io.StringIO()
            YAML().dump(experiment.values, text)
            self.client.log_text(self.id, text.getvalue(), "params.yaml")

    def tell(self, tags: Mapping[str, str]) -> None:
        """Send those tags that the run has not."""
        from mlflow.entities import RunTag

        new = [RunTag(name, value) for name, value in tags.items() if self.data.tags.get(name) != value]
        if new:
            self.client.log_batch(self.id, tags=new)

    def send_table(self, path: Path, names: Mapping[str, str]) -> None:
        """Send the later rows of a CSV file, which may be growing, in order and at step nimg.

        Rows of an attempt after a rescue go to metrics of their own, "train/d_loss attempt 1": the curve that
        was abandoned stays to be seen, and no metric has a step twice.

        Args:
            path: the file.
            names: column → metric.
        """
        import pandas as pd

        text = path.read_bytes()
        text = text[: text.rfind(b"\n") + 1]  # the last line may be half written
        if not text:
            return
        table = pd.read_csv(io.BytesIO(text))
        if "attempt" not in table:
            self._send_rows(table, names)
            return
        for attempt in sorted(set(table["attempt"].tolist())):
            suffix = f" attempt {attempt}" if attempt else ""
            rows = table[table["attempt"] == attempt]
            self._send_rows(rows, {column: metric + suffix for column, metric in names.items()})

    def _send_rows(self, table: "pd.DataFrame", names: Mapping[str, str]) -> None:
        from mlflow.entities import Metric

        had = [self.steps.get(metric, -1) for metric in names.values()]
        table, now = table.loc[table["nimg"] > min(had), ["nimg", *names]], _now()
        size = MAX_METRICS // len(names)
        for start in range(0, len(table), size):  # whole rows: an update that breaks off leaves no gap
            self._send(
                [
                    Metric(metric, float(value), now, int(nimg))
                    for nimg, *values in table[start : start + size].itertuples(index=False)
                    for metric, last, value in zip(names.values(), had, values, strict=True)
                    if nimg > last
                ]
            )

    def send_metrics(self, path: Path, nimg: int) -> None:
        """Send the numbers of metrics.json, at the step of the finished generator."""
        values = json.loads(path.read_text(encoding="utf-8"))
        self.send_numbers({f"eval/{k}": v for k, v in values.items() if type(v) in (int, float)}, nimg)

    def send_numbers(self, numbers: Mapping[str, float], nimg: int) -> None:
        """Send numbers of the finished training that are new or have changed."""
        from mlflow.entities import Metric

        had = {name: (self.data.metrics.get(name), self.steps.get(name)) for name in numbers}
        self._send([Metric(k, float(v), _now(), nimg) for k, v in numbers.items() if had[k] != (v, nimg)])

    def _send(self, points: "list[Metric]") -> None:
        if points:
            self.client.log_batch(self.id, metrics=points)
            self.points += len(points)

    def send_grids(self, folder: Path, train_images: int) -> None:
        """Send the grids of fixed z at epoch · training images, so that all runs' sliders line up."""
        for path in sorted(folder.glob("[0-9]*.png"), key=lambda path: int(path.stem)):
            step = int(path.stem) * train_images
            if not self._previews("samples/fixed_z", step):
                self._show(path, "samples/fixed_z", step)

    def send_file(self, path: Path) -> None:
        """Send a file, and its picture for the run's page, if the run has other bytes or none."""
        digest, tag, key = files.sha256(path), f"ganpipe.sha256.{path.name}", PICTURES.get(path.name)
        whole = path.name in self.files and (key is None or self._previews(key, 0))
        if whole and self.data.tags.get(tag) == digest:
            return
        if key:
            self._delete(key)
            self._show(path, key, 0)
        self.client.log_artifact(self.id, str(path))
        self.client.set_tag(self.id, tag, digest)

    def _show(self, path: Path, key: str, step: int) -> None:
        from PIL import Image

        with Image.open(path) as picture:
            self.client.log_image(self.id, picture, key=key, step=step)
        self.pictures += 1

    def _previews(self, key: str, step: int) -> list[str]:
        """List the previews of a picture, which MLflow writes last and its UI shows."""
        # Two spellings of the separators: MLflow changed them between 3.7 and 3.17.
        name = re.compile(rf"images/{key.replace('/', '[~#]')}[+%]step[+%]{step}[+%].*\.webp")
        return [path for path in self.shown if name.fullmatch(path)]

    def _delete(self, key: str) -> None:
        """Delete older pictures of step 0 where the store allows it; elsewhere the new one stands beside."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        name = re.compile(rf"images/{key.replace('/', '[~#]')}[+%]step[+%]0[+%].*")
        store = get_artifact_repository(self.info.artifact_uri, tracking_uri=self.client.tracking_uri)
        for path in filter(name.fullmatch, self.shown):
            with suppress(Exception):  # each store has its own way to refuse
                store.delete_artifacts(path)

    def write_page(self, home: Path, experiment: Experiment, folders: Folders, ended: bool) -> None:
        """Send what the run's page says of it, its data set, and, once its training has ended, a summary."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        tags = experiment.tags
        if self.data.tags.get(DIRTY) == "false":
            tags = tags | {COMMIT: self.data.tags[COMMIT], DIRTY: "false"}
        note, had = page.text(home, experiment.values, tags, folders), self.data.tags.get(page.NOTE, "")
        before, separator, others = had.partition(page.OTHERS)
        if note != before:
            self.client.set_tag(self.id, page.NOTE, note + separator + others)
        if page.GRID in tags:
            page.link(self.client, self.info.experiment_id, tags[page.GRID])
        if not (self.inputs and self.inputs.dataset_inputs):
            fetch = experiment.values["fetch"]
            data = Dataset(
                fetch["source"], experiment.data_digest[:16], "local", json.dumps({"uri": fetch["path"]})
            )
            context = [InputTag("mlflow.data.context", "training")]
            self.client.log_inputs(self.id, datasets=[DatasetInput(data, context)])
        if ended:
            self.send_numbers(page.summary(folders), _model(folders["train"])["nimg"])

    def set_status(self, status: Status | None, attempt: str = "") -> None:
        """Set the run's status if it has another; None ends a RUNNING one and leaves how others ended.

        An attempt that is older than the run's newest changes nothing; none given: the status is set.
        """
        newest = self.data.tags.get(ATTEMPT, "")
        if attempt and newest and _start(attempt) < _start(newest):
            return
        if attempt and attempt != newest:
            self.client.set_tag(self.id, ATTEMPT, attempt)
        status = status or ("FINISHED" if self.info.status == "RUNNING" else self.info.status)
        if status == self.info.status:
            return
        if status == "RUNNING":
            self.client.update_run(self.id, status=status)
        else:
            self.client.set_terminated(self.id, status)


def left_running(root: Path) -> list[tuple[str, str]]:
    """List id and name of the runs that are RUNNING though their stage, on this machine, is gone.

    Raises:
        UserError: MLflow does not answer.
    """
    _settings()
    from mlflow.exceptions import MlflowException

    home = files.main_checkout(root)
    address = _address(home)
    if address.startswith("sqlite:///") and not Path(address.removeprefix("sqlite:///")).exists():
        return []
    try:
        client, number = _connect(home)
        running = client.search_runs([number], "attributes.status = 'RUNNING'")
    except MlflowException as error:
        raise UserError(f"MLflow at {address} does not answer: {_brief(error)}") from None
    return [(run.info.run_id, run.info.run_name) for run in running if _gone(run.data.tags.get(ATTEMPT, ""))]


def _gone(attempt: str) -> bool:
    """Say whether the process of an attempt is gone; never of another machine's, or of none that is known."""
    if not attempt:
        return False
    began, host, pid = attempt.split(" ")
    return host == socket.gethostname() and not processes.alive(int(pid), float(began))


def end_killed(root: Path, run_id: str) -> None:
    """Set a run's status to KILLED."""
    _connect(files.main_checkout(root))[0].set_terminated(run_id, "KILLED")


def _start(attempt: str) -> float:
    return float(attempt.split(" ")[0])


def _now() -> int:
    return time.time_ns() // 1_000_000


if __name__ == "__main__":
    place, of, seconds, by, growing = sys.argv[1:]
    train = Path(growing) if growing else None
    with redirect_stdout(sys.stderr):
        problem = _follow(Path(place), cast(Stage, of), float(seconds), by, train)
    print(problem)
