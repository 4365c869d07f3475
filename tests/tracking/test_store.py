"""The address of MLflow's store, and what a user reads if it is wrong; real databases and processes."""

import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import requests

from ganpipe.commands.doctor import doctor
from ganpipe.common.errors import UserError, without_secrets
from ganpipe.experiments.revisions import experiment_values, flat_params
from ganpipe.params import Params
from ganpipe.tracking.store import address, connect, failure
from ganpipe.tracking.ui import SERVED, left_servers


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start without settings of MLflow or of proxies, and restore those that `address` sets."""
    for name in [name for name in os.environ if name.startswith(("DVC_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    for name in ("no_proxy", "NO_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "")


def problem(home: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the line about a store that cannot be used."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    began = time.monotonic()
    with pytest.raises(Exception) as raised:
        connect(home)
    assert time.monotonic() - began < 60, "MLflow retried"
    line = failure(home, raised.value)
    assert len(line.splitlines()) == 1 and "secret" not in line
    return line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("at http://user:secret@h:1/x failed", "at http://***@h:1/x failed"),
        ("'http://user:sec/r@et@h', 'https://secret@h'", "'http://***@h', 'https://***@h'"),
        ("postgresql://h/d?user=u&Password=secret&x=1", "postgresql://h/d?user=u&Password=***&x=1"),
        ("http://h/a@b file:///a/b@c sqlite:////a/x@y:z/p", None),
        ("mail a@b.c, see http://h", None),
    ],
)
def test_no_password_is_shown(text: str, expected: str | None) -> None:
    """A failure means that a password reaches a terminal or a log, or that an address without one is cut."""
    assert without_secrets(text) == str(UserError(text)) == (expected or text)


def test_no_password_is_sent(default_params: Params) -> None:
    """A failure means that the password in fetch.url is a parameter in MLflow or a column of `compare`."""
    plain = default_params.model_dump()
    plain["fetch"] |= {"source": "url", "url": "https://user:secret@h/x.zip"}
    values = Params(**plain)
    assert experiment_values(values)["fetch"]["url"] == "https://***@h/x.zip"
    assert flat_params(values)["fetch.url"] == "https://***@h/x.zip"
    assert experiment_values(default_params)["fetch"]["url"] is None


def test_a_server_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure means that the line shows the password, or no longer says that sync repairs it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    line = problem(tmp_path, f"http://user:secret@127.0.0.1:{port}/", monkeypatch)
    assert f"MLflow at http://***@127.0.0.1:{port}/: API request" in line
    assert line.endswith("`ganpipe sync` completes the run once MLflow answers")


def test_a_store_that_sync_cannot_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure means minutes of retries, a traceback, a remedy that is cut, or one that does not help."""
    (tmp_path / "text.db").write_text("no database")
    for uri, words in (
        ("./mlruns", "set `MLFLOW_ALLOW_FILE_STORE=true` to opt out"),
        ("mssql+no_such_driver://user:secret@h/d", "no_such_driver"),
        ("sqlite:/mlflow.db", "expected sqlite:///PATH"),
        ("sqlite://user:secret@host/x", "expected sqlite:///PATH"),
        ("sqlite:///text.db", "file is not a database"),
        ("http://user:secret@127.0.0.1:port", "Invalid url: http://***@127.0.0.1:port"),
    ):
        line = problem(tmp_path, uri, monkeypatch)
        assert words in line and "ganpipe sync" not in line
    missing = failure(tmp_path, ModuleNotFoundError("No module named 'psycopg'"))
    assert "No module named 'psycopg'; install it, or set MLFLOW_TRACKING_URI" in missing


def test_any_path_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure means that MLflow's database lies outside a checkout with an unusual path, or cannot open."""
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "p%20x ?a#b&c:d@e;f+%(g)s\"'ü"
    home.mkdir()
    client, experiment = connect(home)
    run = client.create_run(experiment).info.run_id
    client.log_text(run, "text", "a.txt")
    client, again = connect(home)
    assert again == experiment and client.get_run(run).info.run_id == run
    assert Path(client.download_artifacts(run, "a.txt")).read_text() == "text"
    assert len(list((home / "mlruns").rglob("a.txt"))) == 1
    assert {"mlflow.db", "mlruns"} < {path.name for path in home.iterdir()}
    assert list(tmp_path.iterdir()) == [home]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address(home))
    assert address(tmp_path) == address(home), "an absolute address is another one when it is read again"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(UserError, match="needs a path in UTF-8"):
        address(Path(os.fsdecode(b"/no\xff")))


class _Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_loopback_needs_no_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure means that behind a proxy `ganpipe ui` waits three minutes for its own server."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "example.org")
    server = http.server.HTTPServer(("127.0.0.1", 0), _Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/"
    try:
        assert address(tmp_path) == address(tmp_path)
        assert os.environ["no_proxy"] == "example.org,127.0.0.1,localhost,::1"
        assert requests.get(url, timeout=9).status_code == 200
        with urllib.request.urlopen(url, timeout=9) as answer:
            assert answer.status == 200
    finally:
        server.shutdown()
        server.server_close()


def serving(root: Path) -> list[psutil.Process]:
    """Return the live processes of a checkout's server, its guard among them."""
    processes = [p for p in psutil.process_iter(["environ", "status"]) if p.info["environ"]]
    ours = [p for p in processes if p.info["environ"].get(SERVED) == str(root)]
    return [p for p in ours if p.info["status"] != psutil.STATUS_ZOMBIE]


SERVE = """
import sys
from pathlib import Path
from ganpipe.tracking.ui import _free_port, _server
with _server(Path(sys.argv[1]), "sqlite:///mlflow.db", _free_port(None)):
    print("serves", flush=True)
"""


# As MLflow's server does, it starts a process, which outlives it.
SLEEP = "import subprocess; subprocess.run(['sleep', '600'])"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_ends_with_its_ui(tmp_path: Path, signum: signal.Signals) -> None:
    """A failure means that a `ganpipe ui` that is ended before it prints its address leaves its server."""
    with subprocess.Popen([sys.executable, "-c", SERVE, str(tmp_path)], cwd=tmp_path) as ui:
        until(lambda: len(serving(tmp_path)) >= 2)
        ui.send_signal(signum)
    until(lambda: not serving(tmp_path))


def test_doctor_finds_a_server_that_was_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A failure means that a server whose ui and guard were both killed holds its port for ever."""
    (tmp_path / ".dvc").mkdir()
    command = [sys.executable, "-m", "ganpipe.tracking.guard", sys.executable, "-c", SLEEP]
    environment = os.environ | {SERVED: str(tmp_path)}
    guard = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, start_new_session=True)
    until(lambda: len(serving(tmp_path)) == 3)
    assert not left_servers(tmp_path) and doctor(tmp_path, fix=True) == 0
    assert len(serving(tmp_path)) == 3, "a live server was stopped"
    guard.kill()
    guard.communicate()
    assert doctor(tmp_path, fix=False) == 1
    assert "although its `ganpipe ui` is gone" in capsys.readouterr().out
    assert doctor(tmp_path, fix=True) == 0
    until(lambda: not serving(tmp_path))


def until(done: Callable[[], bool]) -> None:
    """Wait a minute at most until a condition holds."""
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)
