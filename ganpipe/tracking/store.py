"""The MLflow store of a checkout: its address and settings, and a connection that creates it if necessary."""

import logging
import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from ganpipe.common import files
from ganpipe.common.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

SQLITE = "sqlite:///"
SETTINGS = {  # silence MLflow, turn off its telemetry, and let it fail fast
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}


def address(home: Path) -> str:
    """Return MLFLOW_TRACKING_URI, by default the SQLite database mlflow.db; paths are relative to `home`.

    To be called before MLflow is imported: it applies SETTINGS, unless the environment has other values.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    for logger in ("alembic", "urllib3.connectionpool"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
    scheme, separator, path = uri.partition(SQLITE)
    return f"{scheme}{separator}{home.resolve() / path}" if separator else uri


def database(home: Path) -> Path | None:
    """Return the file of the SQLite database, which may not exist yet; None: the store is of another kind."""
    uri = address(home)
    return Path(uri.removeprefix(SQLITE).partition("?")[0]) if uri.startswith(SQLITE) else None


def connect(home: Path) -> "tuple[MlflowClient, str]":
    """Return a client and the id of MLflow's experiment; create database and experiment if they do not exist.

    Raises:
        UserError: the experiment was deleted in MLflow.
        MlflowException: MLflow cannot be reached or refuses.
    """
    uri, artifacts = address(home), home.resolve() / "mlruns"
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "ganpipe"
    from mlflow import MlflowClient

    file = database(home)
    if file and not file.exists():
        with update_lock(home):
            if not file.exists():
                _create_database(file, artifacts)
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        # A server chooses where its artifacts go; for a database MLflow would use the current folder.
        location = None if uri.startswith("http") else (artifacts / name).as_uri()
        return client, client.create_experiment(name, artifact_location=location)
    if experiment.lifecycle_stage != "active":
        restore = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
        raise UserError(f"MLflow's experiment {name} is deleted; `{restore}`, or set MLFLOW_EXPERIMENT_NAME")
    return client, experiment.experiment_id


def update_lock(home: Path) -> FileLock:
    """Return the lock that a process holds while it changes the store; a thread may acquire it repeatedly."""
    path = home.resolve() / ".ganpipe" / "mlflow.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path, is_singleton=True)


def _create_database(path: Path, artifacts: Path) -> None:
    """Create MLflow's database under a temporary name: interrupted migrations could not be repaired."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for suffix in ("-wal", "-shm"):  # SQLite would replay those of a deleted database into the new one
        path.with_name(f"{path.name}{suffix}").unlink(missing_ok=True)
    with files.whole(path) as temporary:
        temporary.touch()  # fails at once where MLflow would retry for minutes
        SqlAlchemyStore(f"{SQLITE}{temporary}", artifacts.as_uri()).engine.dispose()
        connection = sqlite3.connect(temporary)
        # Write-ahead logging, so that readers and a writer do not block each other; the file keeps the mode.
        connection.execute("PRAGMA journal_mode=WAL")
        connection.close()


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, without the details of the HTTP client."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line.partition(" with exception ")[0][:200]
