"""MLflow's server at the prepared view, in a real browser: run with -m browser."""

import base64
import io
import json
import os
import shutil
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from conftest import chromium, digits, save_later_outputs, updated, wait
from mlflow import MlflowClient
from PIL import Image
from ruamel.yaml import YAML

from ganpipe.common import dataset
from ganpipe.common.errors import UserError
from ganpipe.common.sheets import sheet
from ganpipe.common.stages import EVALS_COLUMNS, HISTORY_COLUMNS, PERF_COLUMNS, stage_file
from ganpipe.experiments.compare import compare
from ganpipe.params import Params
from ganpipe.tracking.identity import GRID, identify
from ganpipe.tracking.mirror import stage_folders, update
from ganpipe.tracking.page import NOTE
from ganpipe.tracking.store import connect
from ganpipe.tracking.ui import served
from ganpipe.tracking.view import COLOUR, COLOURS, MAX_RUNS, SECTIONS, TAG, write_view

IMAGES, EPOCHS = 500, (1, 2, 4)
# A folder that receives screenshots of the pages, such as docs/.
KEEP = os.environ.get("GANPIPE_SCREENSHOTS")


@pytest.fixture(scope="module")
def home(
    tmp_path_factory: pytest.TempPathFactory, small_params: Params, write_packed: Callable[..., Path]
) -> Iterator[Path]:
    """A checkout whose MLflow holds three runs of a grid; GANPIPE_SHOWN names another, of real runs."""
    if checkout := os.environ.get("GANPIPE_SHOWN"):
        yield Path(checkout).resolve()
        return
    from dvc.repo import Repo

    folder = tmp_path_factory.mktemp("home")
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    identity = ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "--allow-empty", "-qm", "first"]
    subprocess.run(["git", *identity], cwd=folder, check=True)
    Repo.init(str(folder)).close()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("DVC_", "MLFLOW_"))]:
            patch.delenv(name)
        patch.setenv("DVC_ROOT", str(folder))
        for i, glr in enumerate((0.0032, 0.00128, 0.00064)):
            root = made(folder / f"made/{i}", small_params, write_packed, glr, noise=90 - 40 * i)
            patch.setenv("DVC_EXP_NAME", f"xin2024-two-rates-glr={glr}-s0")
            update(folder, identify(root), stage_folders(root, "evaluate"), "FINISHED")
        patch.delenv("DVC_EXP_NAME")
        patch.delenv("DVC_ROOT")
        shutil.rmtree(folder / "made")
        yield folder


def made(root: Path, values: Params, write_packed: Callable[..., Path], glr: float, noise: float) -> Path:
    """Write the stages' files; the grids are digits with noise that decreases with the epochs."""
    values = updated(values, train__glr=glr, train__batch_size=50, evaluate__extractor="lite2")
    for name in ("train", "sample", "evaluate"):
        (root / "ganpipe" / name).mkdir(parents=True)
        (root / "ganpipe" / name / "stage.py").write_text(f'"""{name}."""\n')
    YAML().dump(values.model_dump(), root / "params.yaml")
    data = write_packed(root, digits()[:IMAGES])
    (root / "stages/train/grids").mkdir(parents=True)
    train, rng, steps = root / "stages/train", np.random.default_rng(0), EPOCHS[-1] * IMAGES // 50
    model = values.model.model_dump() | {"train": values.train.model_dump(), "batch_size": 50}
    model |= {"train_images": IMAGES, "nimg": steps * 50, "data_digest": dataset.load(data).digest}
    model |= {"resolution": 28, "channels": 1, "epochs": EPOCHS[-1], "weights": "ema", "steps": steps}
    (train / "model.json").write_text(json.dumps(model))
    losses = [
        f"{i},{i * 50},{i / 10},0,{1 / i + noise / 90},{2 - 1 / i},0.7,0.3,1,2" for i in range(1, steps + 1)
    ]
    evals = [f"{i},{i * 50},{noise / i},0.5,0.6" for i in (10, 20, 40)]
    speeds = [f"{i},{i * 50},{i / 10},{100 + i}" for i in range(10, steps + 1, 10)]
    for name, columns, rows in (
        ("history.csv", HISTORY_COLUMNS, losses),
        ("evals.csv", EVALS_COLUMNS, evals),
        ("perf.csv", PERF_COLUMNS, speeds),
        ("events.csv", ("step",), []),
    ):
        (train / name).write_text("\n".join([",".join(columns), *rows]) + "\n")
    for epoch in EPOCHS:
        noisy = digits()[::78][:64] + rng.normal(0, noise + 200 / epoch, (64, 28, 28, 1))
        picture = sheet(noisy.clip(0, 255).astype(np.uint8), 8)
        picture.save(train / f"grids/{epoch}.png")
    save_later_outputs(root, picture)
    scores = [f"{epoch},{epoch * IMAGES},{noise / epoch},9,{noise / epoch / 4}" for epoch in EPOCHS]
    header = "epoch,nimg,kid,fd,layout_mmd"
    stage_file(root, "snapshots.csv").write_text("\n".join([header, *scores]) + "\n")
    numbers = {
        "layout_mmd_lite2": noise / 400,
        "kid_lite0": noise / 200,
        "kid_lite2": noise / 100,
        "kid_lite2_sd": 0.01,
        "fd_lite2": noise,
        "fd_lite2_floor": 9.0,
        "recall": 0.5,
    }
    (root / "stages/evaluate/metrics.json").write_text(
        json.dumps(numbers | {"authenticity": 0.8, "n": 60, "protocol": "lite2"})
    )
    return root


def client_of(home: Path) -> tuple[MlflowClient, str]:
    """Return a client and the experiment's id."""
    return connect(home)


@pytest.mark.browser
def test_the_view_holds_what_is_looked_at_first(home: Path) -> None:
    """A failure means that the page opens with noise, with runs in one colour, or without the scores."""
    client, number = client_of(home)
    path = write_view(client, number)
    assert path.startswith(f"/#/experiments/{number}")
    before = {run.info.run_id: run.data.tags[COLOUR] for run in client.search_runs([number])}
    assert len(set(before.values())) == len(before) >= 3
    tag = json.loads(client.get_experiment(number).tags[TAG])
    state = json.loads(zlib.decompress(base64.b64decode(tag["state"].removeprefix("deflate;"))))
    assert state["selectedColumns"][:3] == [  # none of Lite0, which a training may have seen
        f"metrics.`eval/{name}`" for name in ("layout_mmd_lite2", "kid_lite2", "fd_lite2")
    ]
    assert "params.`train.glr`" in state["selectedColumns"]
    assert state["compareRunCharts"][0]["step"] > 0
    later = [chart["metricKey"] for chart in state["compareRunCharts"] if chart["metricSectionId"] == "s3"]
    snapshots = ["snapshots/layout_mmd", "snapshots/kid"]
    assert later == [*snapshots, "train/kid_light", "train/spread"], "real_spread has a single point"
    write_view(client, number)
    assert {run.info.run_id: run.data.tags[COLOUR] for run in client.search_runs([number])} == before


@pytest.fixture(scope="module")
def address(home: Path) -> Iterator[str]:
    """The address that `ganpipe ui` prints, with its server running."""
    with served(home) as (view_address, _):
        yield view_address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    driver = chromium(1640, 1200)
    yield driver
    driver.quit()


def keep(browser: Any, name: str) -> None:
    """Save a screenshot of the page as a PNG of few colours and less than 150 kB."""
    if KEEP:
        picture = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
        colours = 128
        while True:
            # By the colours' range: by their count, the few pixels of a run's colour would get another's.
            method = Image.Quantize.MAXCOVERAGE
            small = picture.quantize(colours, method=method, kmeans=1, dither=Image.Dither.NONE)
            small.save(Path(KEEP) / name, optimize=True)
            if (Path(KEEP) / name).stat().st_size < 150_000:
                break
            picture, colours = picture.resize((picture.width * 4 // 5, picture.height * 4 // 5)), 96


@pytest.mark.browser
def test_grids_stand_side_by_side_at_the_last_step_in_three_colours(
    home: Path, address: str, browser: Any
) -> None:
    """A failure means that the view is as poor as MLflow's own: grids of step 0, two runs in one colour."""
    from selenium.webdriver.common.by import By

    browser.get(address)
    close_panels(browser, "Close", "Hide banner")
    client, number = client_of(home)
    runs = {run.info.run_id: run for run in client.search_runs([number], max_results=MAX_RUNS)}

    def loaded() -> list[Any]:
        cards = browser.find_elements(By.CSS_SELECTOR, ".rc-image-img")
        wide = [card for card in cards if int(card.get_property("naturalWidth")) > 9]
        return wide if len(wide) == len(runs) else []

    cards = wait(loaded, "the grids of all runs")
    addresses = [unquote(card.get_attribute("src")) for card in cards]
    assert {address.rpartition("run_uuid=")[2] for address in addresses} == set(runs) and len(runs) >= 3
    steps = {address.partition("+step+")[2].partition("+")[0] for address in addresses}
    assert steps == {str(max(_steps(client, run) for run in runs))}
    tops, lefts = ([card.location[axis] for card in cards[:3]] for axis in "yx")
    assert max(tops) - min(tops) < 20, "the grids are not in one row"
    assert min(right - left for left, right in pairwise(sorted(lefts))) > 100
    above = "let e = arguments[0]; while (!e.querySelector('label')) e = e.parentElement;"
    colour = f"{above} return getComputedStyle(e.querySelector('label')).backgroundColor"
    colours = {browser.execute_script(colour, card) for card in cards}
    assert len(colours) == min(len(runs), len(COLOURS))
    for title in (*SECTIONS, "eval/fd_lite2 vs eval/fd_lite2_floor"):
        wait(partial(_contains, browser, title), title)
    keep(browser, "mlflow-view.png")


@pytest.mark.browser
def test_a_runs_page_says_what_it_is(home: Path, address: str, browser: Any) -> None:
    """A failure means that the page shows curves, but not which data and training they belong to."""
    from selenium.webdriver.common.by import By

    client, number = client_of(home)
    run = client.search_runs([number], order_by=["metrics.`eval/kid_lite2` ASC"])[0]
    base = address.partition("/#/")[0]
    browser.get(f"{base}/#/experiments/{number}/runs/{run.info.run_id}?workflowType=machine_learning")
    close_panels(browser, "Close")
    wait(partial(_contains, browser, "kid_lite2"), "the note")
    for button in browser.find_elements(By.XPATH, "//button[contains(., 'Show more')]"):
        button.click()  # a long note is folded
    repeat = ["Repeat this run"] if "Repeat this" in run.data.tags[NOTE] else []  # a commit is known
    for words in ("digest", "Training", "Recipe", "mnist5k", *repeat):
        wait(partial(_contains, browser, words), words)
    time.sleep(1)  # the note unfolds
    keep(browser, "mlflow-run.png")
    if grid := run.data.tags.get(GRID):
        outsider = client.create_run(number, run_name="outsider").info.run_id
        try:
            link = browser.find_element(By.PARTIAL_LINK_TEXT, f"all runs of {grid}")
            browser.get(link.get_attribute("href"))  # a click would open another window
            for other in client.search_runs([number], f"tags.`{GRID}` = '{grid}'"):
                wait(partial(_contains, browser, f">{other.info.run_name}<"), other.info.run_name)
            assert ">outsider<" not in browser.page_source
            keep(browser, "mlflow-grid.png")
        finally:
            client.delete_run(outsider)


@pytest.mark.browser
def test_the_comparison_is_a_page_that_a_stranger_understands(
    home: Path, tmp_path: Path, browser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure means that the comparison's page cannot be understood without its author."""
    if not os.environ.get("GANPIPE_SHOWN"):
        pytest.skip("needs finished experiments: GANPIPE_SHOWN names a checkout with some")
    monkeypatch.chdir(home)
    compare(Path(), grid="xin2024-two-rates", page=tmp_path / "page.html")
    browser.get(f"file://{tmp_path}/page.html")
    wait(partial(_contains, browser, "KID"), "the page")
    keep(browser, "compare.png")


def close_panels(browser: Any, *names: str) -> None:
    """Close the panels that MLflow opens over the page."""
    from selenium.webdriver.common.by import By

    for name in names:
        deadline = time.monotonic() + 10  # it may not open, if it was closed before
        while time.monotonic() < deadline:
            if buttons := browser.find_elements(By.CSS_SELECTOR, f"button[aria-label='{name}']"):
                buttons[0].click()
                break
            time.sleep(0.5)


def _contains(browser: Any, text: str) -> bool:
    return text in browser.page_source


def _steps(client: MlflowClient, run: str) -> int:
    """Return the last step of a run's grids."""
    names = [file.path for file in client.list_artifacts(run, "images") if "fixed_z" in file.path]
    return max(int(name.partition("+step+")[2].partition("+")[0]) for name in names)


@pytest.mark.browser
def test_without_a_run_the_message_says_so(tmp_path: Path) -> None:
    """A failure means that a newcomer sees an empty page and no remedy."""
    from dvc.repo import Repo

    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    identity = ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "--allow-empty", "-qm", "first"]
    subprocess.run(["git", *identity], cwd=tmp_path, check=True)
    Repo.init(str(tmp_path)).close()
    with pytest.raises(UserError, match="no run yet; `dvc repro`"), served(tmp_path):
        pass
