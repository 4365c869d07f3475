"""Register generators as versions of a model in MLflow's registry, and let `best` name the best of them."""

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ganpipe.common.errors import UserError, without_secrets
from ganpipe.evaluate.card import aimed_at
from ganpipe.experiments.revisions import finished, open_repo
from ganpipe.tracking.model import DIGEST, MODEL
from ganpipe.tracking.store import address, connect, reported, update_lock
from ganpipe.tracking.sync import update_experiment, update_workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}", re.ASCII)
BEST = "best"  # the alias; `latest` is MLflow's own: the highest version
# Tags of a version: its number (empty: it means nothing), and how and on which images it was computed.
NUMBER, SETTINGS = "ganpipe.number", "ganpipe.settings"
MAX_DESCRIPTION = 5000  # characters, in MLflow's databases


def register(root: Path, name: str, experiment: str | None) -> list[str]:
    """Register the generator of the workspace or of a DVC experiment, with its card as description.

    Completes its run first. The same weights are registered once; they get the numbers of their newest
    evaluation. The alias `best` moves to the version with the lowest number of those with equal settings
    (network, numbers of images, real images), and stays where the present best has other settings.

    Returns:
        Lines that say what was registered, which version is best and why, and how to serve it.

    Raises UserError: the name is not valid, the experiment is unknown or not evaluated, or MLflow fails.
    """
    if not NAME.fullmatch(name):
        expected = "expected at most 100 letters, digits, dots, hyphens and underscores"
        raise UserError(f"NAME: found {name!r:.120}, {expected}, a letter or digit first")
    home, what = root.resolve(), experiment or "workspace"
    with reported(home), open_repo(home) as repo:
        connect(home)  # reports a wrong address before DVC compares all files
        held = finished(repo).get(experiment, []) if experiment else []
        if experiment and not held:
            raise UserError(f"{what}: no such finished DVC experiment; `dvc exp list -A` names them")
        last, tracked = update_experiment(home, what, held[0], {}) if held else update_workspace(home, repo)
        if last != "evaluate":
            raise UserError(f"{what}: evaluate is not up to date; run `dvc repro`")
        with update_lock(home):
            return register_run(home, tracked.client, tracked.id, name, what)


def register_run(home: Path, client: "MlflowClient", run_id: str, name: str, what: str) -> list[str]:
    """Register the model of a complete run, as `register` does."""
    run = client.get_run(run_id)
    if (model := run.data.tags.get(MODEL)) is None:
        raise UserError(f"{what}: its weights are not in DVC's cache; `dvc pull` fetches them")
    with TemporaryDirectory(prefix="ganpipe-") as folder:
        files = (client.download_artifacts(run_id, f, folder) for f in ("card.md", "metrics.json"))
        card, metrics = (Path(file).read_text(encoding="utf-8") for file in files)
    values = json.loads(metrics)
    metric, useless = values.get("ranked_by"), _useless(values, run.data.params)
    tags = {
        DIGEST: run.data.tags[DIGEST],
        NUMBER: "" if useless else str(values[metric]),
        SETTINGS: f"{metric}; {values['protocol']}; real images {values.get('reference')}",
    }
    text = re.sub(r"^!\[.*\n+", "", card, flags=re.M)[:MAX_DESCRIPTION]  # a description shows no pictures
    if not client.search_registered_models(f"name='{name}'"):
        client.create_registered_model(name)
    versions = client.search_model_versions(f"name='{name}'")
    version = next((v for v in versions if v.tags.get(DIGEST) == tags[DIGEST]), None)
    said = "has these weights already" if version else f"is the generator of run {run.info.run_name}"
    if version:
        client.update_model_version(name, version.version, text)
        for tag, value in tags.items():
            client.set_model_version_tag(name, version.version, tag, value)
    else:
        # By its folder: MLflow would look the address models:/<id> up in the current folder's database.
        source = client.get_logged_model(model).artifact_location
        version = client.create_model_version(name, source, run_id, tags, description=text, model_id=model)
    best, why = _move_best(client, name, tags[SETTINGS], useless and f"it is not ranked, {useless}")
    uri, alias = shlex.quote(without_secrets(address(home))), BEST if best else "latest"
    serve = f"MLFLOW_TRACKING_URI={uri} mlflow models serve -m models:/{name}@{alias} --env-manager local"
    return [f"{name} version {version.version} {said}", why, f"serve it: {serve}"]


def _move_best(client: "MlflowClient", name: str, settings: str, refused: str | None) -> tuple[str, str]:
    """Let `best` name the version with the lowest number under `settings`, unless one cannot be compared.

    Return the version that is best afterwards ("": none), and a line that says why.
    """
    holder = str(client.get_registered_model(name).aliases.get(BEST, ""))
    versions = client.search_model_versions(f"name='{name}'")
    equal = {str(v.version): v.tags[NUMBER] for v in versions if v.tags.get(SETTINGS) == settings}
    if holder and holder not in equal:
        refused = refused or "its number has other settings; evaluate both alike and register both again"
    if refused:
        return holder, f"{BEST} stays {f'version {holder}' if holder else 'unset'}: {refused}"
    best = min((v for v in equal if equal[v]), key=lambda v: (float(equal[v]), int(v)))
    if best != holder:
        client.set_registered_model_alias(name, BEST, best)
    metric, count = settings.partition(";")[0], len(equal)
    return (
        best,
        f"{BEST} is version {best}: {metric} {equal[best]}, the lowest of {count} with equal settings",
    )


def _useless(metrics: Mapping[str, Any], params: Mapping[str, str]) -> str | None:
    """Return why the number by which generators are ranked means nothing for this one; None: it counts."""
    if metrics.get(metrics.get("ranked_by", "")) is None:
        return "its evaluation names no number to rank by"
    if metrics["degenerate"]:
        return f"its images are {metrics['degenerate']}"
    if aimed_at(float(params.get("train.drift_weight", 0)), metrics["ranked_by"]):
        return "its training saw the network of its number; set evaluate.extractor to lite2"
    return None
