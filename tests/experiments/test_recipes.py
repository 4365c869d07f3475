"""Recipes and grids: the papers' numbers, and settings that reach params.yaml unchanged."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, updated
from dvc.utils.cli_parse import to_path_overrides
from dvc.utils.hydra import apply_overrides

from ganpipe import params
from ganpipe.common.errors import UserError
from ganpipe.experiments import recipes
from ganpipe.params import Params

# The papers' values, and our reading where a paper is ambiguous; from the papers, not from params.yaml.
PLAIN = {
    "preprocess.held_out": 0,
    "train.ema_halflife_kimg": None,
    "train.flip": False,
    "train.real_label": 1.0,
    "train.fake_label": 0.0,
    "train.dlr": 0.0002,
    "train.glr": 0.0002,
    "train.beta1": 0.5,
    "train.beta2": 0.999,
    "train.micro_batch_size": None,
    "train.keep": "last",
    "train.on_nonfinite": "stop",
    "train.on_collapse": "warn",
    "train.precision": "float32",
    "train.sync_batch_norm": False,
    "train.extra_update_every": None,
    "train.extra_update_players": "turns",
    "train.g_label": 1.0,
    "train.steps": None,
    "preprocess.max_images": None,
    "preprocess.shard_mb": None,
    "model.d_first_channels": None,
    "model.last_stride": 2,
    "model.trunk_halvings": 5,
    "model.conditional": False,
    "train.d_batches": "separate",
    "model.nz": 100,
    "preprocess.channels": 3,
    "sample.z_scale": 1.0,
}
NORMAL = {"model.z_distribution": "normal", "model.z_limit": None}
UNIFORM = {"model.z_distribution": "uniform", "model.z_limit": 1.0}
DCGAN = PLAIN | UNIFORM | {"model.architecture": "dcgan", "model.ngf": 128, "model.ndf": 128}
DCGAN |= {"preprocess.resolution": 64, "train.batch_size": 128, "train.epochs": 25}
DCGAN |= {"model.first_channels": None, "model.discriminator_norm": "batch"}
MARCHESI = DCGAN | {"fetch.source": "folder", "model.first_channels": 1024, "train.extra_update_every": 50}
MARCHESI |= {"sample.z_scale": 0.5, "sample.intervals": [1.0, 0.5]}
MARCHESI |= {"train.epochs": None, "train.steps": 10_000}  # our choice: the paper names no length
STIFF = PLAIN | UNIFORM | {"model.architecture": "upsample", "model.first_channels": 128}
STIFF |= {"model.discriminator_norm": "batch", "train.batch_size": 128}
XIN = PLAIN | NORMAL | {"fetch.source": "animeface", "preprocess.resolution": 96, "preprocess.crop": "square"}
XIN |= {"model.ngf": 64, "model.ndf": 64, "train.epochs": 100, "train.batch_size": 128}
XIN |= {"model.architecture": "dcgan", "model.discriminator_norm": "none", "evaluate.snapshots": True}
TWO_RATES = {"train.dlr": 0.0064, "train.glr": 0.00128}
MODIFIED = {"model.architecture": "residual", "model.discriminator_norm": "batch", "train.batch_size": 24}
BEYOND = {"fetch.source": "folder", "preprocess.resolution": 64, "train.flip": True, "train.glr": 0.001}
BEYOND |= {"model.architecture": "resize", "model.ngf": 32, "model.ndf": 32, "train.drift_weight": 1.0}
BEYOND |= {"train.ema_halflife_kimg": 5.0, "train.batch_size": 32, "train.keep": "last"}
PAPERS: dict[str, dict[str, Any]] = {
    "dcgan": DCGAN,
    "marchesi2017-192": MARCHESI | {"preprocess.resolution": 192, "train.batch_size": 128},
    "marchesi2017-256": MARCHESI
    | {"preprocess.resolution": 256, "train.batch_size": 75}
    | {"sample.z_scale": 0.4, "sample.intervals": [1.0, 0.5, 0.4]},
    "marchesi2017-512": MARCHESI | {"preprocess.resolution": 512, "train.batch_size": 21},
    "marchesi2017-1024": MARCHESI | {"preprocess.resolution": 1024, "train.batch_size": 6},
    "celeba64": PLAIN
    | NORMAL
    | {"fetch.source": "celeba", "preprocess.crop": "centre", "preprocess.crop_size": 160}
    | {"preprocess.resolution": 64, "model.architecture": "celeba64", "model.discriminator_norm": "none"}
    | {"model.ngf": 64, "model.ndf": 64, "train.epochs": 20, "train.batch_size": 32},
    "stiff2018-mnist": STIFF
    | {"fetch.source": "mnist", "preprocess.resolution": 28, "preprocess.channels": 1, "train.epochs": 25},
    "stiff2018-flowers": STIFF
    | {"fetch.source": "flowers102", "preprocess.resolution": 128, "train.epochs": 40},
    "stiff2018-cat": STIFF | {"fetch.source": "cat", "preprocess.resolution": 128, "train.epochs": 60},
    "xin2024-5": XIN,
    "xin2024-6": XIN | TWO_RATES,
    "xin2024-7": XIN | TWO_RATES | MODIFIED,
    "xin2024-8": XIN | TWO_RATES | MODIFIED | {"train.real_label": 0.9, "train.fake_label": 0.1},
    # Not a paper's: the settings that docs/beyond.md measures.
    "beyond": NORMAL | BEYOND,
    "beyond-few": NORMAL | BEYOND | {"train.augment": ["jitter"]},
    "photographs": NORMAL
    | BEYOND
    | {"model.architecture": "dcgan", "train.glr": 0.0004, "train.drift_weight": 0.0, "train.steps": 2812},
}
SEARCH = (0.000208, 0.000406, 0.000604, 0.000802, 0.001, 0.0028, 0.0046, 0.0064, 0.0082, 0.01)
EXTRA = [(side, every) for side in (192, 256, 512, 1024) for every in (50, None)]
# What the recipe `dcgan` leaves as it is in params.yaml, and why.
PICTURES = "the recipe has no pictures of its own; recipes that name a source set it"
NOT_SET = dict.fromkeys(("source", "path", "url", "sha256"), PICTURES)
NOT_SET = {f"fetch.{name}": why for name, why in NOT_SET.items()}
NOT_SET |= {
    f"preprocess.{name}": PICTURES for name in ("crop", "crop_size", "crop_box", "margin", "background")
}
NOT_SET["preprocess.max_rejected"] = "decides whether the stage fails, not what it makes"
NOT_SET["train.batch_per_resolution"] = "no effect while train.batch_size is a number, as in every recipe"
NOT_SET["train.seed"] = "distinguishes the repetitions of an experiment"
# Grid → the params that vary, and their values in each cell.
GRIDS: dict[str, tuple[tuple[str, ...], list[tuple[Any, ...]]]] = {
    "xin2024-lr-search": (("train.dlr", "train.glr"), [(rate, rate) for rate in SEARCH]),
    "xin2024-two-rates": (
        ("train.dlr", "train.glr"),
        [(0.0064, 0.0032), (0.0064, 0.00128), (0.0064, 0.00064)],
    ),
    "xin2024-labels": (
        ("train.real_label", "train.fake_label", "train.dlr", "train.glr", "model.architecture"),
        [(real, fake, 0.0064, 0.00128, "dcgan") for real, fake in ((1.0, 0.0), (0.9, 0.1), (0.99, 0.01))],
    ),
    "xin2024-experiments": (
        ("model.architecture", "train.dlr", "train.glr", "train.real_label", "train.batch_size"),
        [
            ("dcgan", 0.0002, 0.0002, 1.0, 128),
            ("dcgan", 0.0002, 0.0002, 1.0, 24),
            ("dcgan", 0.0064, 0.00128, 1.0, 128),
            ("residual", 0.0064, 0.00128, 1.0, 24),
            ("residual", 0.0064, 0.00128, 0.9, 24),
            ("residual", 0.0064, 0.00128, 0.9, 128),
        ],
    ),
    "xin2024-first-epoch": (
        ("model.architecture", "train.batch_size", "train.steps", "train.glr", "preprocess.resolution"),
        [("residual", 24, 417, 0.00128, 96), ("dcgan", 128, 79, 0.00128, 96)],
    ),
    "xin2024-few-epochs": (
        ("model.architecture", "train.glr", "train.batch_size", "train.steps", "preprocess.resolution"),
        [
            ("residual", 0.00128, 24, 2083, 96),
            ("dcgan", 0.0002, 128, 391, 96),
            ("dcgan", 0.00128, 128, 391, 96),
            ("dcgan", 0.0002, 24, 2083, 96),
        ],
    ),
    "xin2024-rates": (
        ("train.dlr", "train.glr", "train.batch_size", "train.steps", "preprocess.resolution", "model.ngf"),
        [
            (d, g, 32, 4000, 32, 32)
            for d, g in (
                *((rate, rate) for rate in (0.000208, 0.001, 0.0046, 0.0064, 0.01)),
                *((0.0064, rate) for rate in (0.0032, 0.00128, 0.00064)),
            )
        ],
    ),
    "xin2024-smoothing": (
        ("train.dlr", "train.glr", "train.real_label", "train.fake_label", "train.batch_size"),
        [(0.0064, 0.00128, real, fake, 32) for real, fake in ((1.0, 0.0), (0.9, 0.1), (0.99, 0.01))],
    ),
    "marchesi2017-resolutions": (
        (
            "preprocess.resolution",
            "train.extra_update_every",
            "train.steps",
            "sample.z_scale",
            "sample.count",
        ),
        [(side, every, 10_000, 0.5, 500) for side, every in EXTRA],
    ),
    "marchesi2017-sides": (
        ("train.extra_update_every", "preprocess.resolution", "train.steps", "train.batch_size"),
        [(every, side, 2000, 32) for every in (50, None) for side in (32, 64, 128)],
    ),
    "marchesi2017-intervals": (
        ("sample.z_scale", "preprocess.resolution"),
        [(1.0, 256), (0.5, 256), (0.4, 256)],
    ),
    "stiff2018-sets": (("fetch.source",), [("mnist",), ("flowers102",), ("cat",)]),
    "stiff2018-digits": (
        ("model.architecture", "model.first_channels", "train.epochs", "train.steps", "train.drift_weight"),
        [("upsample", 64, 25, None, 0.0), ("resize", None, None, 2000, 1.0)],
    ),
    "stiff2018-cats": (
        ("preprocess.crop", "preprocess.resolution", "model.first_channels", "train.steps"),
        [("landmarks", 64, 64, 4690), ("square", 64, 64, 4690)],
    ),
    "celeba64-against-dcgan": (
        ("model.architecture", "fetch.source", "preprocess.crop_size", "train.epochs"),
        [("celeba64", "celeba", 160, 20), ("dcgan", "celeba", 160, 20)],
    ),
    "celeba64-equal-updates": (
        ("model.architecture", "model.discriminator_norm", "preprocess.resolution", "train.steps"),
        [("celeba64", "none", 64, 4700), ("dcgan", "batch", 64, 4700)],
    ),
    "beyond-against-dcgan": (
        ("model.architecture", "train.glr", "train.drift_weight", "train.steps", "evaluate.extractor"),
        [("resize", 0.001, 1.0, 1300, "lite2"), ("dcgan", 0.0004, 0.0, 2812, "lite2")],
    ),
    "beyond-few-against-dcgan": (
        ("model.architecture", "train.augment", "train.drift_weight", "train.steps", "evaluate.extractor"),
        [("resize", ["jitter"], 1.0, 1300, "lite2"), ("dcgan", [], 0.0, 2812, "lite2")],
    ),
    "precisions-digits": (
        ("train.precision", "model.architecture", "train.epochs", "preprocess.resolution"),
        [("float32", "resize", 5, 28), ("bfloat16", "resize", 5, 28)],
    ),
    "precisions-faces": (
        ("train.precision", "model.architecture", "train.steps", "preprocess.resolution"),
        [("float32", "dcgan", 1000, 64), ("bfloat16", "dcgan", 1000, 64)],
    ),
}


def values_of(applied: Params) -> dict[str, Any]:
    """Return dotted name → value, the batch size looked up."""
    plain = applied.experiment
    plain["train"]["batch_size"] = applied.train.batch_size_for(applied.preprocess.resolution)
    return {f"{section}.{name}": value for section, part in plain.items() for name, value in part.items()}


def settings_of(values: Params, recipe: str) -> dict[str, str]:
    """Return key → text of a recipe's settings."""
    pairs = (setting.partition("=") for setting in recipes.recipe_settings(values, recipe))
    return {key: text for key, _, text in pairs}


def test_the_papers_are_all_here(default_params: Params) -> None:
    """A failure means that a recipe or grid is not compared with its paper here."""
    assert list(default_params.recipes) == list(PAPERS) and list(default_params.grids) == list(GRIDS)


@pytest.mark.parametrize("name", PAPERS)
def test_recipes_are_the_papers(default_params: Params, name: str) -> None:
    """A failure means that the recipe repeats another setting than its paper's."""
    applied = recipes.apply_settings(default_params, recipes.recipe_settings(default_params, name), name)
    values = values_of(applied)
    assert {key: values[key] for key in PAPERS[name]} == PAPERS[name]


def test_dcgan_sets_every_value_or_says_why_not(default_params: Params) -> None:
    """A failure means that a value that somebody changed in params.yaml changes a recipe's result."""
    assert set(values_of(default_params)) - set(NOT_SET) == set(settings_of(default_params, "dcgan"))


@pytest.mark.parametrize("name", PAPERS)
def test_a_recipe_keeps_nothing_of_the_params_that_it_is_applied_to(
    default_params: Params, name: str
) -> None:
    """A failure means that fetch.path or evaluate.extractor of an earlier experiment survives."""
    settings = settings_of(default_params, name)
    free = set(NOT_SET) - set(settings)
    if "fetch.source" in settings:
        own = {"fetch.path"} if settings["fetch.source"] in ("folder", "animeface") else set()
        assert free == own | {"preprocess.max_rejected", "train.batch_per_resolution", "train.seed"}
    assert settings["train.batch_size"] != "null"
    # Another, valid params.yaml: what the recipe sets is the same on top of it.
    other = updated(
        default_params, fetch__path="/my/pictures", evaluate__extractor="pixels", sample__count=60
    )
    applied = [
        values_of(recipes.apply_settings(values, recipes.recipe_settings(values, name), name))
        for values in (default_params, other)
    ]
    assert {key for key in applied[0] if applied[0][key] != applied[1][key]} == free & {"fetch.path"}


def test_recipes_use_the_published_protocol(default_params: Params) -> None:
    """A failure means that numbers of recipes do not compare with those of the default run."""
    applied = recipes.apply_settings(
        default_params, recipes.recipe_settings(default_params, "dcgan"), "dcgan"
    )
    assert applied.evaluate == default_params.evaluate
    assert applied.sample.count == default_params.sample.count


@pytest.mark.parametrize("grid", GRIDS)
def test_no_cell_of_a_grid_reads_pictures_of_before(default_params: Params, grid: str) -> None:
    """A failure means that some cells of a named set train on the folder of an earlier experiment."""
    other = updated(default_params, fetch__path="/my/pictures", preprocess__background=[0, 0, 0])
    for cell in recipes.grid_cells(other, grid):
        applied = recipes.apply_settings(other, cell.settings, cell.name)
        own = applied.fetch.source in ("folder", "animeface")
        assert (applied.fetch.path == "/my/pictures") == own, cell.name
        assert applied.preprocess.background == [255, 255, 255], cell.name


def test_snapshots_show_the_papers_figures(default_params: Params) -> None:
    """A failure means that a paper's figure cannot be repeated, such as Xin's of epochs 1, 5, 10 and 20."""
    for name, epochs in {"xin2024-7": {1, 5, 10, 20}, "stiff2018-cat": {55, 60}, "celeba64": {20}}.items():
        applied = recipes.apply_settings(default_params, recipes.recipe_settings(default_params, name), name)
        assert epochs <= set(applied.train.snapshot_epochs)


def test_batch_table_is_marchesis(default_params: Params) -> None:
    """A failure means other batches than the paper's at 192 and 1024 px, or the power law through them."""
    table = default_params.train.batch_per_resolution
    assert {int(side): size for side, size in table.items() if int(side) >= 192} == {
        192: 128,
        256: 75,
        384: 36,
        512: 21,
        768: 10,
        1024: 6,
    }


@pytest.mark.parametrize("name", GRIDS)
def test_grids_are_the_papers(default_params: Params, name: str) -> None:
    """A failure means a missing cell or a wrong value, or a name that git refuses midway through the grid."""
    cells = recipes.grid_cells(default_params, name)
    cell_values = [
        values_of(recipes.apply_settings(default_params, cell.settings, cell.name)) for cell in cells
    ]
    keys, expected = GRIDS[name]
    assert [tuple(values[key] for key in keys) for values in cell_values] == expected
    names = [f"{cell.name}-s0" for cell in cells]
    assert len(set(names)) == len(names) and all(each.startswith(f"{name}-") for each in names)
    for experiment in names:
        command = ["git", "check-ref-format", f"refs/exps/ab/cd/{experiment}"]
        assert "/" not in experiment and subprocess.run(command).returncode == 0


@pytest.mark.parametrize("name", ["celeba64", "xin2024-8", "marchesi2017-256", "stiff2018-mnist"])
def test_dvc_reads_a_recipe_as_we_do(default_params: Params, tmp_path: Path, name: str) -> None:
    """A failure means that Hydra reads null, a list or 1e-05 as text, or that an earlier setting wins."""
    settings = recipes.recipe_settings(default_params, name, ["train.glr=1e-05"])
    assert settings[-1] == "train.glr=1e-05"
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text())
    overrides = recipes.hydra_overrides(settings)
    assert to_path_overrides(overrides) == {"params.yaml": overrides}
    apply_overrides(path, overrides)
    assert params.load(path) == recipes.apply_settings(default_params, settings, "test")
    comments = [
        line for line in (ROOT / "params.yaml").read_text().splitlines() if line.strip().startswith("#")
    ]
    first = next(i for i, line in enumerate(comments) if line.startswith("# The papers'"))
    assert set(comments[first:]) <= set(path.read_text().splitlines()), "DVC deleted comments"


def test_texts_reach_params_yaml_unchanged(default_params: Params, tmp_path: Path) -> None:
    """A failure means that a folder named 2024, or with spaces, commas or quotes, becomes another one."""
    for text in ("'2024'", "/a b/c, d", '/it\'s "x"', "/äöü:1=2", "/with#hash", "/a(b)/[c],d"):
        (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
        settings = [f"fetch.path={text}"]
        apply_overrides(tmp_path / "params.yaml", recipes.hydra_overrides(settings))
        applied = recipes.apply_settings(default_params, settings, "test")
        assert params.load(tmp_path / "params.yaml").fetch.path == applied.fetch.path == text.strip("'")


def test_a_home_folder_is_written_out(default_params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure means that DVC looks for a folder named ~ in the checkout."""
    monkeypatch.setenv("HOME", "/home/me")
    assert recipes.hydra_overrides(["fetch.path=~/cats"]) == ['fetch.path="/home/me/cats"']
    assert recipes.apply_settings(default_params, ["fetch.path=~/cats"], "test").fetch.path == "/home/me/cats"


def test_later_settings_win_and_recipes_build_on_recipes(default_params: Params) -> None:
    """A failure means that a recipe overrides the settings after it, or not those before it."""
    values = default_params.model_copy(
        update={"recipes": {"a": ["train.glr=1e-3", "train.dlr=1e-3"], "b": ["recipe=a", "train.glr=2e-3"]}}
    )
    assert sorted(recipes.recipe_settings(values, "b")) == ["train.dlr=1e-3", "train.glr=2e-3"]
    grid = {"g": ["train.epochs=1,2", "train.glr=9e-3", "recipe=b", "train.seed,train.dlr=3:4e-3,5"]}
    cells = recipes.grid_cells(values.model_copy(update={"grids": grid}), "g", ["train.epochs=7"])
    assert [cell.name for cell in cells] == [
        f"g-epochs={epochs}-{rest}" for epochs in (1, 2) for rest in ("seed=3-dlr=4e-3", "seed=5-dlr=5")
    ]
    assert set(cells[0].settings) == {"train.epochs=7", "train.glr=2e-3", "train.seed=3", "train.dlr=4e-3"}


def test_a_list_is_one_value(default_params: Params) -> None:
    """A failure means that a list is split at its commas into several cells."""
    grid = {"g": ["train.snapshot_epochs=[1,2],[3]"]}
    cells = recipes.grid_cells(default_params.model_copy(update={"grids": grid}), "g")
    epochs = [
        recipes.apply_settings(default_params, cell.settings, "g").train.snapshot_epochs for cell in cells
    ]
    assert epochs == [[1, 2], [3]] and cells[0].name == "g-snapshot_epochs=_1,2_"


@pytest.mark.parametrize(
    ("recipe", "grid", "message"),
    [
        (["recipe=a"], [], "recipes.a: builds on itself through a"),
        (["recipe=dgcan"], [], "recipes.dgcan: no such recipe"),
        (["train.glr"], [], "train.glr: expected key=value"),
        ([], ["train.glr,train.dlr=1:2:3"], "grids.g: 1:2:3 has 3 values for the 2 keys"),
    ],
)
def test_what_cannot_be_read_is_named(
    default_params: Params, recipe: list[str], grid: list[str], message: str
) -> None:
    """A failure means that a mistake in a user's recipe ends in a traceback or an endless loop."""
    values = default_params.model_copy(update={"recipes": {"a": recipe}, "grids": {"g": grid}})
    with pytest.raises(UserError, match=message):
        recipes.grid_cells(values, "g") if grid else recipes.recipe_settings(values, "a")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.gglr=1", "train.gglr: unknown key; did you mean train.glr"),
        ("train.glr=fast", "train.glr: found 'fast'"),
        ("trian.glr=1", "expected section.name=value with a section of"),
        ("recipes.a=1", "expected section.name=value with a section of"),
        ("train.batch_per_resolution.64=2", "unknown key"),
        ("preprocess.resolution=50", "50"),
    ],
)
def test_wrong_settings_are_refused_by_name(default_params: Params, setting: str, message: str) -> None:
    """A failure means that a wrong setting fails hours later, in the queue."""
    with pytest.raises(UserError, match=f"cell.*{message}"):
        recipes.apply_settings(default_params, [setting], "cell")


def test_a_resolution_without_a_batch_size_is_refused(default_params: Params) -> None:
    """A failure means that the missing entry shows only when training starts, after preprocessing."""
    values = updated(default_params, train__batch_size=None, train__batch_per_resolution={"16": 8})
    with pytest.raises(UserError, match="cell: train.batch_size: null"):
        recipes.apply_settings(values, [], "cell")


def test_the_command_lists_recipes_and_prints_one() -> None:
    """A failure means that recipes are not listed, or not printed one setting a line without escapes."""

    def printed(*words: str) -> str:
        command = [sys.executable, "-m", "ganpipe", "recipe", *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    listed, lines = printed(), printed("celeba64").splitlines()
    assert all(name in listed for name in PAPERS) and "celeba" in listed and "your own" in listed
    assert "Xin 2024, experiment 5" in listed
    assert lines == recipes.recipe_settings(params.load(ROOT / "params.yaml"), "celeba64")
    assert "train.snapshot_epochs=[1,5,10,20]" in lines and "train.glr=0.0002" in lines
