"""A toy project for cells: one stage that counts, with checkpoints in GANPIPE_UNFINISHED."""

import subprocess
from pathlib import Path

import pytest

from ganpipe.cluster import board
from ganpipe.cluster.board import Order

STAGE = """
import os, signal, time
from pathlib import Path

from ganpipe.train.signals import orphaned  # also where the shell between dvc and this process lives on

code = dict(line.split(": ") for line in Path("params.yaml").read_text().splitlines())
folder = Path(os.environ.get("GANPIPE_UNFINISHED", "."))
folder.mkdir(parents=True, exist_ok=True)
saved = folder / "step"
signal.signal(signal.SIGTERM, lambda *_: None)  # it ends after its step, a second after the signal at most
start = int(saved.read_text()) if saved.exists() else 0
print("from step", start, "GPU", os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
if int(code["steps"]) < 0:
    raise SystemExit("ganpipe train: error: train.steps: expected at least 0")
for step in range(start, int(code["steps"])):
    time.sleep(0.1)
    if orphaned():
        time.sleep(1)
        raise SystemExit("stopped with a checkpoint")
    saved.with_name("new").write_text(str(step + 1))
    saved.with_name("new").replace(saved)
    print(f"train: {step + 1}/{code['steps']} images  0:01 left", flush=True)
    while saved.with_name("hold").exists() and not orphaned():
        time.sleep(0.1)
Path("out.txt").write_text(f"{Path(__file__).parent == Path.cwd()} {code['seed']} {code['steps']}")
"""
PIPELINE = """
stages:
  count:
    cmd: python -m toy
    deps: [toy.py]
    params: [steps, seed]
    outs: [out.txt]
"""


def git(folder: Path, *words: str) -> str:
    """Run git and return what it printed."""
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def toy_project(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a checkout, its hub `hub.git` and its DVC remote `storage`; return the checkout."""
    checkout = folder / "checkout"
    checkout.mkdir(parents=True)
    (folder / "storage").mkdir()
    (checkout / "toy.py").write_text(STAGE)
    (checkout / "dvc.yaml").write_text(PIPELINE)
    (checkout / "params.yaml").write_text("steps: 0\nseed: 9\n")
    (checkout / ".gitignore").write_text("/out.txt\n__pycache__/\n")
    (checkout / ".dvc").mkdir()
    (checkout / ".dvc/config").write_text("[core]\n    analytics = false\n    autostage = true\n")
    (checkout / ".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n")
    git(checkout, "init", "-q", "-b", "main")
    for key, value in (("name", "test"), ("email", "test@example.com")):
        git(checkout, "config", f"user.{key}", value)
    git(checkout, "add", ".")
    git(checkout, "commit", "-q", "-m", "base")
    add_hub(checkout)
    monkeypatch.setenv("GANPIPE_SCRATCH", str(folder / "scratch"))
    return checkout


def add_hub(checkout: Path) -> None:
    """Make the hub of a checkout, with its commits, beside it."""
    git(checkout.parent, "clone", "-q", "--bare", str(checkout), "hub.git")
    git(checkout, "remote", "add", "origin", str(checkout.parent / "hub.git"))
    git(checkout, "fetch", "-q", "origin")


def order(checkout: Path, name: str, *settings: str, url: str = "") -> Path:
    """Write what a cell is to run into its folder of the board, and return that; `url` is of a DVC remote."""
    folder, commit = checkout.parent, git(checkout, "rev-parse", "HEAD")
    cell = board.folder_of(folder / "shared", commit, name)
    remote = {"name": "storage", "url": url or str(folder / "storage")}
    Order(name, "grid", commit, list(settings), str(folder / "hub.git"), remote, None).write(cell)
    return cell


def on_hub(checkout: Path) -> dict[str, str]:
    """Return name → commit of the experiments on the hub."""
    lines = git(checkout, "ls-remote", "origin", "refs/exps/*").splitlines()
    return {ref.rpartition("/")[2]: sha for sha, ref in map(str.split, lines)}
