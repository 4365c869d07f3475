"""The generator as an MLflow model in MLflow's own server, without a checkout."""

import base64
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import save_generator
from PIL import Image

from ganpipe.commands.trained import find_generator
from ganpipe.models.generator import images_of, z_of_seeds
from ganpipe.params import Params
from ganpipe.tracking.model import write_model

Ask = Callable[[str], tuple[int, dict[str, Any]]]


def test_writing_a_model_says_nothing(
    tmp_path: Path, small_params: Params, recwarn: pytest.WarningsRecorder
) -> None:
    """A failure means that `ganpipe sync` prints MLflow's advice to programmers."""
    save_generator(tmp_path, small_params)
    warnings.onceregistry.clear()  # type: ignore[attr-defined]  # warn again of what other tests caused
    write_model(tmp_path, tmp_path / "model")
    assert not [warning for warning in recwarn if "type hints" in str(warning.message)]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory, small_params: Params) -> Iterator[Ask]:
    """Return a function that posts JSON to `mlflow models serve` and returns status and answer."""
    folder = tmp_path_factory.mktemp("served")
    save_generator(folder / "train", small_params)
    write_model(folder / "train", folder / "model")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    words = ["models", "serve", "-m", str(folder / "model"), "--env-manager", "local", "-p", str(port)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-m", "mlflow", *words]
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )

    def post(text: str) -> tuple[int, dict[str, Any]]:
        headers = {"Content-Type": "application/json"}
        address = f"http://127.0.0.1:{port}/invocations"
        try:
            with urllib.request.urlopen(
                urllib.request.Request(address, text.encode(), headers), timeout=60
            ) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5)
                break
            except OSError:
                assert server.poll() is None, (folder / "log").read_text()
                time.sleep(0.3)
        yield post
    finally:
        os.killpg(server.pid, 15)
        server.wait()


@pytest.mark.long
def test_a_server_answers_with_images(ask: Ask, small_params: Params, tmp_path: Path) -> None:
    """A failure means that the server does not answer, or not with the images of the seeds."""
    status, answer = ask('{"inputs": ["x"], "params": {"n": 5, "seed": 9, "z_scale": 0.7}}')
    assert status == 200
    save_generator(tmp_path, small_params)
    here = find_generator(str(tmp_path))
    expected = images_of(here.network, z_of_seeds(here.spec.params, 9, 5, 0.7))
    assert ask('{"inputs": ["x"], "params": {"n": null, "z_scale": null}}') == ask('{"inputs": ["x"]}')
    for i, prediction in enumerate(answer["predictions"]):
        assert prediction["seed"] == 9 + i
        image = np.asarray(Image.open(io.BytesIO(base64.b64decode(prediction["png"]))))
        assert np.array_equal(image, expected[i, :, :, 0])


@pytest.mark.long
@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ('"n": 0', "n: found 0, but it must be between 1 and 1,024"),
        ('"n": -1', "n: found -1"),
        ('"n": 1000000000000', "n: found 1000000000000"),
        ('"z_scale": NaN', "z_scale: found nan"),
        ('"z_scale": 0', "z_scale: found 0"),
        ('"seed": -1', "seed: found -1"),
        ('"n": "many"', "Can not safely convert"),
        ('"n": 2.5', "Can not safely convert"),
    ],
)
def test_absurd_values_get_one_sentence(ask: Ask, wanted: str, words: str) -> None:
    """A failure means that a wrong value stops the server, or is answered with a traceback."""
    status, answer = ask(f'{{"inputs": ["x"], "params": {{{wanted}}}}}')
    assert status == 400 and words in answer["message"] and "Traceback" not in json.dumps(answer)
    assert ask('{"inputs": ["x"]}')[0] == 200
