"""Versions of a model in MLflow's registry; a real database, no mocks."""

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import save_generator
from mlflow import MlflowClient, pyfunc
from mlflow.exceptions import MlflowException

from ganpipe.common.errors import UserError
from ganpipe.models.generator import images_of, load_generator, png_bytes, z_of_seeds
from ganpipe.params import Params
from ganpipe.tracking.identity import Experiment
from ganpipe.tracking.model import DIGEST, MODEL, send_generator, write_model
from ganpipe.tracking.register import MAX_DESCRIPTION, register, register_run
from ganpipe.tracking.run import TrackedRun
from ganpipe.tracking.store import connect

CARD = "# A generator\n\n![Real and generated](real_fake.png)\n\n## Scores\n" + "x" * MAX_DESCRIPTION


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one database for all tests, because creating one takes seconds."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def client(home: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """A client of the database."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    return connect(home)[0]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DVC repository with a commit and without a pipeline's results."""
    from dvc.repo import Repo

    folder = tmp_path_factory.mktemp("repository")
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    Repo.init(str(folder)).close()
    identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run(["git", *identity, "commit", "-qm", "first"], cwd=folder, check=True)
    return folder


def registered(
    home: Path,
    name: str,
    weights: str,
    kid: float | None,
    drift: float = 0.0,
    folder: Path | None = None,
    **changes: Any,
) -> str:
    """Make a complete run of some weights, register it, and return what is said of the best version."""
    client, experiment = connect(home)
    run = client.create_run(experiment, tags={DIGEST: weights}, run_name=weights)
    model = client.create_logged_model(experiment, name="generator", source_run_id=run.info.run_id)
    if folder:
        write_model(folder, folder / "model", model.model_id)
        client.log_model_artifacts(model.model_id, f"{folder}/model")
    client.set_tag(run.info.run_id, MODEL, model.model_id)
    client.log_param(run.info.run_id, "train.drift_weight", drift)
    metrics = {"layout_kid_lite2": kid, "ranked_by": "layout_kid_lite2", "degenerate": None}
    metrics |= {"protocol": "lite2; n=500", "reference": "9aee10ee"} | changes
    client.log_text(run.info.run_id, json.dumps(metrics), "metrics.json")
    client.log_text(run.info.run_id, CARD, "card.md")
    return register_run(home, client, run.info.run_id, name, weights)[1]


def versions(client: MlflowClient, name: str) -> int:
    """Count the versions of a registered model."""
    return len(client.search_model_versions(f"name='{name}'"))


def test_best_is_the_lowest_number_and_latest_the_newest_version(home: Path, client: MlflowClient) -> None:
    """A failure means that a server started from `best` or `latest` answers with another generator."""
    said = [registered(home, "a", weights, kid) for weights, kid in (("w1", 0.3), ("w2", 0.1), ("w3", 0.2))]
    assert said[0] == "best is version 1: layout_kid_lite2 0.3, the lowest of 1 with equal settings"
    assert said[1:] == [
        f"best is version 2: layout_kid_lite2 0.1, the lowest of {n} with equal settings" for n in (2, 3)
    ]
    assert client.get_model_version_by_alias("a", "best").run_id == client.get_model_version("a", "2").run_id
    assert str(client.get_model_version_by_alias("a", "latest").version) == "3"


def test_best_loads(
    home: Path, tmp_path: Path, client: MlflowClient, small_params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure means that `mlflow models serve -m models:/NAME@best` fails, or has other weights."""
    save_generator(tmp_path, small_params)
    registered(home, "load", "w1", 0.1, folder=tmp_path)
    registered(home, "load", "w2", 0.2)
    monkeypatch.setattr(sys, "path", [*sys.path])  # MLflow adds the model's own copy of ganpipe
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/mlflow.db")
    served = pyfunc.load_model("models:/load@best").predict(["x"], {"n": 2, "seed": 9})
    here = load_generator(tmp_path / "generator.safetensors")
    for image, answer in zip(
        images_of(here.network, z_of_seeds(here.spec.params, 9, 2, 1.0)), served, strict=True
    ):
        assert answer["png"] == base64.b64encode(png_bytes(image)).decode()


def test_new_weights_of_a_run_leave_a_registered_model(
    home: Path, tmp_path: Path, client: MlflowClient, small_params: Params
) -> None:
    """A failure means that training again deletes a generator that was registered."""
    registered(home, "kept", "w1", 0.1)
    run_id = str(client.get_model_version("kept", "1").run_id)
    first = client.get_run(run_id).data.tags[MODEL]
    save_generator(tmp_path, small_params)

    def send() -> str:
        send_generator(TrackedRun(client, client.get_run(run_id), Experiment({}, "", "", {}, None)), tmp_path)
        return client.get_run(run_id).data.tags[MODEL]

    second = send()
    assert second != first and client.get_logged_model(first)
    client.set_tag(run_id, DIGEST, "other weights")
    assert send() != second
    with pytest.raises(MlflowException):
        client.get_logged_model(second)


def test_the_card_describes_a_version(home: Path, client: MlflowClient) -> None:
    """A failure means a registry that does not say what its models are, or one that refuses the text."""
    registered(home, "card", "w1", 0.3)
    text = client.get_model_version("card", "1").description or ""
    assert text.startswith("# A generator\n\n## Scores") and len(text) <= MAX_DESCRIPTION


def test_the_same_weights_are_registered_once(home: Path, client: MlflowClient) -> None:
    """A failure means that every `ganpipe register` adds a version, or that a new evaluation is not seen."""
    assert registered(home, "b", "w1", 0.3) == registered(home, "b", "w1", 0.3)
    assert versions(client, "b") == 1
    assert "layout_kid_lite2 0.25," in registered(home, "b", "w1", 0.25, protocol="lite2; n=1000")
    assert versions(client, "b") == 1


@pytest.mark.parametrize(
    "change", [{"protocol": "lite2; n=50"}, {"reference": "0"}, {"ranked_by": "kid_lite2"}]
)
def test_numbers_of_other_settings_do_not_move_best(
    home: Path, client: MlflowClient, change: dict[str, Any]
) -> None:
    """A failure means that generators are ranked by numbers that cannot be compared."""
    name = f"c-{next(iter(change))}"
    registered(home, name, "w1", 0.3)
    said = registered(home, name, "w2", 0.1, kid_lite2=0.1, **change)
    assert said.startswith("best stays version 1: its number has other settings; evaluate both alike")
    assert client.get_model_version_by_alias(name, "best").version == 1 and versions(client, name) == 2
    # Once the best is evaluated in the same way, the lower number wins.
    assert registered(home, name, "w1", 0.3, kid_lite2=0.3, **change).startswith("best is version 2: ")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"degenerate": "all of one colour"}, "its images are all of one colour"),
        ({"ranked_by": "kid_lite0", "kid_lite0": 0.1, "drift": 0.5}, "its training saw the network"),
        ({"ranked_by": "kid_lite2"}, "its evaluation names no number to rank by"),
    ],
)
def test_numbers_that_mean_nothing_do_not_rank(home: Path, change: dict[str, Any], reason: str) -> None:
    """A failure means that a collapsed generator, or one trained against its judge, becomes `best`."""
    name = f"d-{reason.split()[-1]}"
    said = registered(home, name, "w1", 0.1, **change)
    assert said.startswith(f"best stays unset: it is not ranked, {reason}")
    assert registered(home, name, "w2", 0.3).startswith("best is version 2: ")


@pytest.mark.parametrize("name", ["", "a/b", "a:b", "a b", "-x", "x" * 101, "a'b", "a@best", "ä", "a\n"])
def test_bad_names_get_one_sentence(repository: Path, name: str) -> None:
    """A failure means a model whose address models:/NAME cannot be read, or a traceback."""
    with pytest.raises(UserError, match="NAME: found .* expected at most 100 letters, digits") as error:
        register(repository, name, None)
    assert "\n" not in str(error.value)


def test_what_cannot_be_registered_gets_one_sentence(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure means a traceback for a typing error, an unfinished experiment or a server that is down."""
    with pytest.raises(UserError, match="DVC: "):
        register(tmp_path, "a", None)
    with pytest.raises(UserError, match="lr-7: no such finished DVC experiment; `dvc exp list -A`"):
        register(repository, "a", "lr-7")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="MLflow at http://127.0.0.1:9: .* failed") as error:
        register(repository, "a", None)
    assert "\n" not in str(error.value)
