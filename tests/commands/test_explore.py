"""`ganpipe explore`: directions, picks and what is said of them; the page itself with -m browser."""

import base64
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, chromium, digits, save_generator, updated, wait
from PIL import Image
from ruamel.yaml import YAML
from torch import nn

from ganpipe import models
from ganpipe.commands import explore_page
from ganpipe.commands.explore import Explorer, directions_of, write_zip
from ganpipe.commands.generate import GenerateOptions, generate
from ganpipe.commands.picks import Pick, file_names, picks_json
from ganpipe.common import dataset, files
from ganpipe.common.errors import UserError
from ganpipe.models.generator import images_of, latents_of_seeds, load_generator, png_bytes, z_of_seeds
from ganpipe.models.generator import save_generator as write_weights
from ganpipe.models.layers import NetworkSpec
from ganpipe.params import Params

KEEP = os.environ.get("GANPIPE_SCREENSHOTS")  # a folder that receives a screenshot, such as docs/


@pytest.fixture(scope="module")
def root(
    tmp_path_factory: pytest.TempPathFactory, small_params: Params, write_packed: Callable[..., Path]
) -> Path:
    """A checkout with a generator, a snapshot, and 300 images, digits but for the last: seed 7's own."""
    folder = tmp_path_factory.mktemp("checkout")
    train = folder / "stages/train"
    save_generator(train, small_params)
    own = images_of(load_generator(train / "generator.safetensors").network, seeds(small_params, 7))
    reals = digits()[: 5000 : 5000 // 299, 6:22, 6:22][:299]
    data = write_packed(folder, np.concatenate([reals, own]), held_out=120)
    described = json.loads((train / "model.json").read_text())
    digest = {"data_digest": dataset.load(data).digest}
    (train / "model.json").write_text(json.dumps(described | digest))
    save_generator(folder / "other", small_params, z_distribution="uniform", z_limit=1.0)
    (train / "snapshots").mkdir()
    shutil.copy(folder / "other/generator.safetensors", folder / "other.safetensors")
    moved = load_generator(train / "generator.safetensors")
    for parameter in moved.network.parameters():
        parameter.mul_(0.9)
    write_weights(moved.network, moved.spec, train / "snapshots/2.safetensors")
    shutil.copy(train / "generator.safetensors", train / "snapshots/3.safetensors")
    YAML().dump(updated(small_params, evaluate__extractor="lite0").model_dump(), folder / "params.yaml")
    return folder


def seeds(values: Params, seed: int, count: int = 1) -> torch.Tensor:
    """Return the z of seeds."""
    return z_of_seeds(values.model, seed, count, 1.0)


@pytest.mark.parametrize("architecture", ["dcgan", "upsample", "residual", "resize"])
def test_components_are_those_of_the_first_layers_outputs(
    tmp_path: Path, default_params: Params, architecture: str
) -> None:
    """A failure means that the first slider does not move along the direction that GANSpace would find."""
    from sklearn.decomposition import PCA

    save_generator(tmp_path, default_params, 32, 3, architecture=architecture, ngf=4, nz=6)
    G = load_generator(tmp_path / "generator.safetensors").network
    first = next(layer for layer in G.modules() if isinstance(layer, nn.Linear | nn.ConvTranspose2d))
    transposed = isinstance(first, nn.Linear)
    source = torch.Generator().manual_seed(0)
    mixed = torch.linalg.qr(torch.randn(6, 6, generator=source)).Q * 2.0 ** torch.arange(6)
    matrix = first.weight.T if transposed else first.weight.flatten(1)
    new = mixed @ matrix / matrix.norm(dim=1, keepdim=True)
    first.weight.copy_(new.T if transposed else new.reshape(first.weight.shape))
    z = torch.randn(8000, 6, generator=source)
    outputs = outputs_of(first, z).numpy()
    pca = PCA(6, svd_solver="covariance_eigh").fit(outputs)
    # GANSpace, section 2.2: the directions of z whose linear combinations explain z best.
    coordinates = pca.transform(outputs) / pca.explained_variance_**0.5
    expected = np.linalg.lstsq(coordinates, z.numpy(), rcond=None)[0]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    components, elements = directions_of(G, 6)
    assert (np.abs((expected * components.numpy()).sum(1)) > 0.98).all()
    assert torch.allclose(components @ components.T, torch.eye(6), atol=1e-5)
    spread = [float(outputs_of(first, torch.stack([e, -e])).var(0).sum()) for e in elements]
    assert spread == sorted(spread, reverse=True) and torch.equal(elements.sum(0), torch.ones(6))


def outputs_of(first: nn.Module, z: torch.Tensor) -> torch.Tensor:
    """Return a generator's first layer's outputs, N×outputs."""
    output: torch.Tensor = first(z if isinstance(first, nn.Linear) else z[:, :, None, None])
    return output.flatten(1)


def test_sliders_at_rest_leave_the_seeds_image_and_limits_hold(root: Path, small_params: Params) -> None:
    """A failure means other images than those of `generate`, or z that training never drew."""
    explorer = Explorer(None, root, "cpu")
    assert [weights.epoch for weights in explorer.weights] == [2, None], "3 has the trained generator's bytes"
    assert torch.equal(explorer.pick(7, 1.0, [0.0] * 12).z, seeds(small_params, 7)[0])
    assert torch.equal(explorer.pick(7, 0.5, ()).z, z_of_seeds(small_params.model, 7, 1, 0.5)[0])
    moved = explorer.pick(7, 1.0, [0, 2.0, *[0] * 10]).z - seeds(small_params, 7)[0]
    assert torch.allclose(moved, 2 * explorer.directions[1], atol=1e-5)
    uniform = Explorer(str(root / "other.safetensors"), root, "cpu")
    z = uniform.pick(7, 1.0, [0] * 6 + [6.0] * 6).z
    assert float(z.abs().max()) == 1 and len(uniform.weights) == 1
    assert uniform.names[:6] == [f"component {i}" for i in range(1, 7)]
    assert sorted({int(re.findall(r"\d+", name)[0]) for name in uniform.names[6:]} - set(range(8))) == []


def test_a_pick_is_of_the_class_that_is_chosen(tmp_path: Path, small_params: Params) -> None:
    """A failure means images of another class than the page says, or than `generate --class` makes."""
    path = generator_with_classes(tmp_path, small_params)
    explorer = Explorer(str(path), tmp_path, "cpu")
    picks = [explorer.pick(7, 0.5, (), name) for name in ("", "cat", "dog")]
    for pick, number in zip(picks, (None, 0, 1), strict=True):
        assert torch.equal(pick.z, latents_of_seeds(explorer.spec, 7, 1, 0.5, number)[0])
    moved = explorer.pick(7, 0.5, [1.0] * 12, "dog").z
    nz = small_params.model.nz
    assert torch.equal(moved[nz:], picks[2].z[nz:]) and not torch.equal(moved[:nz], picks[2].z[:nz])


def generator_with_classes(folder: Path, values: Params) -> Path:
    """Save an untrained generator of cats and dogs, and return its file."""
    model = values.model.model_copy(update={"conditional": True})
    spec = NetworkSpec(model, 16, 1, {"cat": 3, "dog": 2})
    torch.manual_seed(0)
    write_weights(models.build_generator(spec).eval(), spec, folder / "classes.safetensors")
    return folder / "classes.safetensors"


def test_a_film_begins_and_ends_with_picks(root: Path) -> None:
    """A failure means that the strip shows something else than the way between the picks."""
    explorer = Explorer(None, root, "cpu")
    picks = [explorer.pick(seed, 1.0, ()) for seed in (3, 9, 4)]
    frames, images = explorer.film(picks, explorer.weights[-1]), explorer.images(picks, explorer.weights[-1])
    assert np.abs(frames[::8].astype(int) - images).max() <= 1 and len(frames) == 17
    assert len(explorer.film(picks * 8, explorer.weights[-1])) <= 64 + 1
    difference = explorer.preview(picks[0], explorer.weights[-1]).astype(int) - images[0]
    assert np.abs(difference).max() <= 1


def test_picks_are_repeated_byte_for_byte(root: Path, tmp_path: Path) -> None:
    """A failure means that a picked image cannot be made again."""
    explorer = Explorer(None, root, "cpu")
    picks = [explorer.pick(seed, 0.7, [0.3 * seed] * 12) for seed in range(19)]
    sources = (str(root / "stages/train/snapshots/2.safetensors"), None)
    for weights, source in zip(explorer.weights, sources, strict=True):
        write_zip(tmp_path / "picks.zip", picks, explorer.images(picks, weights), weights)
        with zipfile.ZipFile(tmp_path / "picks.zip") as archive:
            archive.extractall(tmp_path / "picks")
        options = GenerateOptions(picks=tmp_path / "picks/picks.json", batch=7)
        generate(source, tmp_path / "again.zip", options, root)
        with zipfile.ZipFile(tmp_path / "again.zip") as again:
            assert again.namelist() == file_names(picks) and len(picks) == 19
            for name in again.namelist():
                assert again.read(name) == (tmp_path / "picks" / name).read_bytes(), name
    with pytest.raises(UserError, match=r"made with other weights \(sha256 .*than these"):
        generate(sources[0], tmp_path / "no", options, root)
    with pytest.raises(UserError, match="leave out -n, --seed, --z-scale and --class"):
        generate(None, tmp_path / "no", GenerateOptions(seed=3, picks=options.picks), root)
    generate(None, tmp_path / "again.npy", options, root)
    assert np.array_equal(np.load(tmp_path / "again.npy"), explorer.images(picks, explorer.weights[1]))


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not readable"),
        ("{", "not readable"),
        (DEEP, "not readable"),
        ("[]", "not readable"),
        ("{}", "key 'weights_sha256' is missing"),
        (b"\xff\xfe\x00", "not readable"),
        ({"picks": []}, "no picks"),
        ({"picks": 7}, "not readable"),
        ({"picks": [{"seed": 1}]}, "not readable"),
        ({"picks": [{"seed": 1.5, "z": [0.0]}]}, "seed 1.5"),
        ({"picks": [{"seed": -1, "z": [0.0]}]}, "seed -1"),
        ({"picks": [{"seed": 10**40, "z": [0.0]}]}, "seed 1000"),
        ({"picks": [{"seed": 1, "z": []}]}, "list of finite numbers"),
        ({"picks": [{"seed": 1, "z": "abc"}]}, "list of finite numbers"),
        ({"picks": [{"seed": 1, "z": [True] * 8}]}, "list of finite numbers"),
        ({"picks": [{"seed": 1, "z": [float("nan")] * 8}]}, "list of finite numbers"),
        ({"picks": [{"seed": 1, "z": [1e300] * 8}]}, "list of finite numbers"),
        ({"picks": [{"seed": 1, "z": [10**400] * 8}]}, "not readable"),
        ({"picks": [{"seed": 1, "z": [0.5] * 7}]}, "found a z of 7 elements, but the generator takes 8"),
        ({"weights_sha256": 5}, "made with other weights"),
        ({"weights_sha256": "a\nb", "epoch": "\n"}, "made with other weights of the snapshot"),
        ("x" * 20_000_001, "larger than 20 MB"),
        (None, "no such file"),
    ],
    ids=range(23),
)
def test_broken_picks_get_one_sentence(root: Path, tmp_path: Path, content: Any, message: str) -> None:
    """A failure means a traceback, or images that were never picked."""
    path = tmp_path / "picks.json"
    if isinstance(content, dict):
        digest = files.sha256(root / "stages/train/generator.safetensors")
        written = json.loads(picks_json([Pick(1, torch.zeros(8))], digest, None))
        path.write_text(json.dumps(written | content))
    elif content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=re.escape(message)) as error:
        generate(None, tmp_path / "out", GenerateOptions(picks=path), root)
    assert str(error.value).startswith("--picks: ") and len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 500 and not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="no such file"):
        generate(None, tmp_path / "out", GenerateOptions(picks=Path("/dev/zero")), root)


def test_a_copy_is_called_one_and_a_new_image_is_not(root: Path, tmp_path: Path) -> None:
    """A failure means that the page calls copies new, or new images copies."""
    explorer = Explorer(None, root, "cpu")
    for seed, verdict in ((7, "<b>Near copy.</b> 0% of 120"), (8, "<b>No near copy.</b>")):
        pick = explorer.pick(seed, 1.0, ())
        images, text = explorer.nearest(explorer.images([pick], explorer.weights[-1]))
        assert text.startswith(verdict) and images.shape == (3, 16, 16, 1), text
        if seed == 7:
            assert np.array_equal(images[0], np.load(root / "stages/preprocess/images.npy")[299])
    assert list((root / ".ganpipe/features").iterdir()), "computed again at each start"


def test_without_its_training_images_nothing_is_compared(
    root: Path, tmp_path: Path, small_params: Params
) -> None:
    """A failure means that the verdict is about other images than those it was trained on."""
    assert "no training images" in Explorer(str(root / "stages/train"), tmp_path, "cpu").no_data
    unknown = Explorer(str(root / "other.safetensors"), root, "cpu")
    assert unknown.data is None and "unknown images" in unknown.no_data
    shutil.copytree(root / "stages/train", tmp_path / "train")
    (tmp_path / "train/model.json").write_text('{"data_digest": "0"}')
    other = Explorer(str(tmp_path / "train"), root, "cpu")
    assert other.data is None and "other images" in other.no_data
    (tmp_path / "train/model.json").write_text("[")
    assert "unknown images" in Explorer(str(tmp_path / "train"), root, "cpu").no_data


def test_without_gradio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A failure means a traceback where the extra is not installed."""
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"pip install 'ganpipe\[explore\]'"):
        explore_page.explore(None, tmp_path, "cpu", None, False)


def test_a_taken_port_is_one_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure means a traceback, or a page on another port than the user asked for."""
    import socket

    pytest.importorskip("gradio")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match=f"--port: {port} is taken; give another port"):
            explore_page.explore(None, root, "cpu", port, False)


@pytest.fixture(scope="module")
def address(root: Path) -> Iterator[str]:
    """The address that `ganpipe explore` prints; GANPIPE_SHOWN names another checkout, of a real run."""
    pytest.importorskip("gradio")
    with serving(Path(os.environ.get("GANPIPE_SHOWN") or root).resolve()) as printed:
        yield printed


@contextmanager
def serving(folder: Path, *source: str) -> Iterator[str]:
    """Run `ganpipe explore` in a folder, and give the address that it prints."""
    server = subprocess.Popen(
        [sys.executable, "-m", "ganpipe", "explore", "--no-browser", *source],
        cwd=folder,
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "HTTP_PROXY": "http://127.0.0.1:9", "GRADIO_SHARE": "True"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stdout
    yield server.stdout.readline().strip()
    server.send_signal(signal.SIGTERM)
    out, err = server.communicate(timeout=30)
    assert server.returncode == 128 + signal.SIGTERM and not out and "Traceback" not in err, err


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """Chromium without a window, as wide as a laptop, which downloads into `tmp_path`."""
    driver = chromium(1280, 1000)
    behaviour = {"behavior": "allow", "downloadPath": str(tmp_path)}
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
    yield driver
    driver.quit()


FIRST = "#first textarea, #first input"
# Moves a slider and returns the milliseconds until another picture is shown, twenty times.
MOVE = """
const done = arguments[0], times = [], slider = document.querySelectorAll('#sliders input[type=range]')[2]
const shown = () => document.querySelector('#picture img').src
const frame = () => new Promise(requestAnimationFrame)
async function move(value) {
  const before = shown(), start = performance.now()
  slider.value = value
  slider.dispatchEvent(new Event('input', {bubbles: true}))
  while (shown() === before) await frame()
  times.push(performance.now() - start)
  await new Promise(after => setTimeout(after, 100))
}
(async () => { for (let i = 1; i <= 20; i++) await move((i % 2 ? 1 : -1) * (1 + i / 10)); done(times) })()
"""


@pytest.mark.browser
def test_a_slider_moves_the_picture_and_picks_are_downloaded_and_repeated(
    root: Path, address: str, browser: Any, tmp_path: Path
) -> None:
    """A failure means that the page cannot be used, or gives picks that cannot be made again."""

    def run(script: str, *values: Any) -> Any:  # at once, because the page replaces its elements
        return browser.execute_script(script, *values)

    def images(part: str) -> list[str]:
        return list(run("return [...document.querySelectorAll(arguments[0] + ' img')].map(i => i.src)", part))

    def text(part: str) -> str:
        return str(run("return document.querySelector(arguments[0]).innerText", part))

    def click(selector: str, index: int = 0) -> None:
        run("document.querySelectorAll(arguments[0])[arguments[1]].click()", selector, index)

    browser.get(address)
    wait(lambda: len(images("#grid")) == 24 and images("#picture"), "the images")
    assert "seed 0" in text("#picture")
    click("#grid button", 7)
    wait(lambda: "seed 7" in text("#picture"), "seed 7")
    before = images("#picture")
    browser.set_script_timeout(600)  # seconds; the speed is printed, and no machine is too slow
    times = sorted(browser.execute_async_script(MOVE))
    print(f"slider to picture: median {times[10]:.0f} ms, longest {times[-1]:.0f} ms")
    assert "seed 7, moved" in text("#picture") and images("#picture") != before
    click("#take")
    wait(lambda: len(images("#picks")) == 1, "the first pick")
    click("#on")
    wait(lambda: browser.find_element("css selector", FIRST).get_attribute("value") == "24", "seed 24")
    click("#grid button", 5)
    wait(lambda: "seed 29" in text("#picture"), "seed 29")
    click("#take")
    wait(lambda: len(images("#film")) == 9 and len(images("#picks")) == 2, "the film strip")
    wait(lambda: "Pick 2" in text("#near") and len(images("#near")) == 4, "the nearest training images")
    assert "held-out images are as near" in text("#near")
    if KEEP:
        screenshot = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
        screenshot.quantize(64).save(Path(KEEP) / "explore.png", optimize=True)

    def second_png() -> Path | None:
        click("#png")
        return next(tmp_path.glob("02-seed-29*.png"), None)

    # Until the button has the second pick's file; the zip's button has got its own at the same time.
    png = wait(second_png, "the PNG")
    click("#zip")
    archive = wait(lambda: next(tmp_path.glob("picks*.zip"), None), "the zip")
    with zipfile.ZipFile(archive) as files_of:
        files_of.extractall(tmp_path / "picks")
    assert png.read_bytes() == (tmp_path / "picks/02-seed-29.png").read_bytes()
    shown = Path(os.environ.get("GANPIPE_SHOWN") or root)
    generate(None, tmp_path / "again", GenerateOptions(picks=tmp_path / "picks/picks.json"), shown)
    for path in (tmp_path / "again").iterdir():
        assert path.read_bytes() == (tmp_path / "picks" / path.name).read_bytes(), path
    click("#picks button", 0)
    wait(lambda: "seed 7, moved" in text("#picture") and "Pick 1" in text("#near"), "the first pick again")
    click("#remove")
    wait(lambda: len(images("#picks")) == 1 and not images("#film"), "the pick's removal")


@pytest.mark.browser
def test_the_page_shows_the_class_that_is_chosen(tmp_path: Path, small_params: Params, browser: Any) -> None:
    """A failure means that a user gets images of any class."""
    path = generator_with_classes(tmp_path, small_params)

    def images(part: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0] + ' img')].map(i => i.src)"
        return list(browser.execute_script(script, part))

    with serving(tmp_path, path.name) as address:
        browser.get(address)
        wait(lambda: len(images("#grid")) == 24 and images("#picture"), "the images")
        before = images("#grid")
        browser.find_element("css selector", "#class input").click()
        wait(lambda: browser.find_elements("css selector", "[role=option]"), "the classes")
        browser.find_elements("css selector", "[role=option]")[2].click()
        wait(lambda: images("#grid") != before, "the grid of dogs")
        wait(lambda: "class dog" in browser.page_source, "a dog")
        browser.execute_script("document.querySelector('#take').click()")
        wait(lambda: len(images("#picks")) == 1, "the pick")
        explorer = Explorer(str(path), tmp_path, "cpu")
        dog = explorer.images([explorer.pick(0, 1.0, (), "dog")], explorer.weights[-1])
        shown = base64.b64decode(images("#picks")[0].partition(",")[2])
        assert shown == png_bytes(dog[0])


@pytest.mark.browser
def test_absurd_seeds_get_a_sentence_on_the_page(address: str, browser: Any) -> None:
    """A failure means that the page shows old images for a seed that does not exist."""
    from selenium.webdriver.common.keys import Keys

    browser.get(address)
    wait(lambda: len(browser.find_elements("css selector", "#grid img")) == 24, "the images")
    for typed, message in (
        ("cat", "expected a whole number"),
        ("-3", "seed: found -3"),
        ("9" * 30, "seed: found 99"),
    ):
        field = browser.find_element("css selector", FIRST)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(typed, Keys.ENTER)
        wait(lambda message=message: message in browser.page_source, message)  # type: ignore[misc]
