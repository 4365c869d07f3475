"""The MLflow store of a checkout: its address and settings, and a connection that creates it if necessary."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from ganpipe.common import files
from ganpipe.common.errors import UserError, without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient

DRIVER = "sqlite+pysqlite"  # named: MLflow takes what follows "sqlite:///" for a path, and it is quoted
LOOPBACK = "127.0.0.1,localhost,::1"  # hosts that no proxy reaches
MAX_LINE = 1000  # characters of another library's message; MLflow's longest remedies end before 900
SERVER_ERROR, UNAVAILABLE = 500, 503  # HTTP status codes
SETTINGS = {  # silence MLflow, turn off its telemetry, and let it fail fast
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # A server on SQLite that eight runs write to may take over 5 seconds, or find its database locked.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # at once, and after 4 seconds
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}


def address(home: Path) -> str:
    """Return MLFLOW_TRACKING_URI, by default the SQLite database mlflow.db; paths are relative to `home`.

    To be called before MLflow is imported: it applies SETTINGS, unless the environment has other values, and
    exempts the loopback interface from proxies.

    Raises UserError: the address begins with sqlite but names no file.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    exempt_loopback()
    for logger in ("alembic", "urllib3.connectionpool"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    return _sqlite_url(uri, home) if uri.startswith("sqlite") else uri


def exempt_loopback() -> None:
    """Let no proxy stand between this process and servers on this machine; other exemptions stay."""
    exempt = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
    if exempt != "*" and LOOPBACK not in exempt:
        os.environ["no_proxy"] = f"{exempt},{LOOPBACK}".lstrip(",")


def _sqlite_url(uri: str, home: Path) -> str:
    """Return an SQLite database's address with an absolute path, quoted as SQLAlchemy reads it."""
    from sqlalchemy.engine import make_url

    if not re.match(r"sqlite(\+\w+)?:///[^?]", uri):
        raise UserError(f"MLFLOW_TRACKING_URI: found {uri}, expected sqlite:///PATH")
    url = make_url(uri)
    path = str(home.resolve() / str(url.database))
    if path != path.encode(errors="replace").decode():
        raise UserError(f"{path!r}: MLflow needs a path in UTF-8; rename it, or set MLFLOW_TRACKING_URI")
    return str(url.set(drivername=DRIVER, database=path))


def database(home: Path) -> Path | None:
    """Return the file of the SQLite database, which may not exist yet; None: the store is of another kind."""
    from sqlalchemy.engine import make_url

    uri = address(home)
    return Path(make_url(uri).database or "") if uri.startswith(DRIVER) else None


def connect(home: Path) -> "tuple[MlflowClient, str]":
    """Return a client and the id of MLflow's experiment; create database and experiment if they do not exist.

    Raises:
        UserError: the experiment was deleted in MLflow.
        Exception: MLflow cannot be reached or refuses; `failure` describes what it and its libraries raise.
    """
    uri, artifacts = address(home), home.resolve() / "mlruns"
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "ganpipe"
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.store.db.db_types import DATABASE_ENGINES
    from sqlalchemy import NullPool, create_engine, inspect

    if (file := database(home)) and not file.exists():
        with update_lock(home):
            if not file.exists():
                _create_database(uri, file, artifacts)
    if uri.partition("://")[0].partition("+")[0] in DATABASE_ENGINES:
        inspect(create_engine(uri, poolclass=NullPool)).has_table("runs")  # MLflow would retry for minutes
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        # A server chooses where its artifacts go; for a database MLflow would use the current folder.
        location = None if uri.startswith("http") else (artifacts / name).as_uri()
        try:
            return client, client.create_experiment(name, artifact_location=location)
        except MlflowException:
            experiment = client.get_experiment_by_name(name)  # another machine was faster
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        restore = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
        raise UserError(f"MLflow's experiment {name} is deleted; `{restore}`, or set MLFLOW_EXPERIMENT_NAME")
    return client, experiment.experiment_id


def update_lock(home: Path) -> FileLock:
    """Return the lock that a process holds while it changes the store; a thread may acquire it repeatedly.

    It is beside the database, if there is one, which the clones of a checkout may share.
    """
    file = database(home)
    path = (file.parent if file else home.resolve()) / ".ganpipe" / "mlflow.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path, is_singleton=True)


def _create_database(uri: str, path: Path, artifacts: Path) -> None:
    """Create MLflow's database under a temporary name: interrupted migrations could not be repaired."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy.engine import make_url

    for suffix in ("-wal", "-shm"):  # SQLite would replay those of a deleted database into the new one
        path.with_name(f"{path.name}{suffix}").unlink(missing_ok=True)
    with files.whole(path) as temporary:
        temporary.touch()  # fails at once where MLflow would retry for minutes
        engine = SqlAlchemyStore(str(make_url(uri).set(database=str(temporary))), artifacts.as_uri()).engine
        with engine.connect() as connection:
            # Write-ahead logging, so that readers and a writer do not block each other; the file keeps it.
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        engine.dispose()


def failure(home: Path, error: Exception) -> str:
    """Describe on one line why MLflow failed, with the remedy: `ganpipe sync` only where it is one."""
    if isinstance(error, UserError):
        return str(error)
    from mlflow.exceptions import InvalidUrlException, MlflowException
    from sqlalchemy.exc import OperationalError

    uri, remedy = address(home), ""
    status = error.get_http_status_code() if isinstance(error, MlflowException) else 0
    away = status >= (SERVER_ERROR if uri.startswith("http") else UNAVAILABLE)
    if isinstance(error, OperationalError) or (away and not isinstance(error, InvalidUrlException)):
        remedy = "; `ganpipe sync` completes the run once MLflow answers"
    elif isinstance(error, ImportError):
        remedy = "; install it, or set MLFLOW_TRACKING_URI to another store"
    return without_secrets(f"MLflow at {uri}: {first_line(error)}{remedy}")


@contextmanager
def reported(home: Path) -> Iterator[None]:
    """Turn what MLflow raises into a UserError; errors of files, as on a full disk, stay as they are."""
    try:
        yield
    except Exception as error:  # each kind of store raises its own
        if isinstance(error, UserError) or getattr(error, "errno", None):
            raise
        raise UserError(failure(home, error)) from error


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, without the details of the HTTP client."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return without_secrets(line.partition(" with exception ")[0])[:MAX_LINE]
