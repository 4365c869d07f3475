"""Trainings with classes (model.conditional): networks, training, and everything that uses the generator."""

import base64
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, digit_labels, digits, updated
from PIL import Image
from torch import nn

from ganpipe import models
from ganpipe.commands.explore import Explorer
from ganpipe.commands.export import WRITERS, export
from ganpipe.commands.generate import GenerateOptions, generate
from ganpipe.common import dataset
from ganpipe.common.errors import Interrupted, UserError
from ganpipe.evaluate.stage import evaluate
from ganpipe.metrics.kid import kid
from ganpipe.metrics.lite0 import Lite0, extract
from ganpipe.models import generator
from ganpipe.models.generator import load_generator, save_generator
from ganpipe.models.layers import NetworkSpec
from ganpipe.params import Params
from ganpipe.sample.stage import sample
from ganpipe.train import loop, stage
from ganpipe.train.drift import drifting_loss
from ganpipe.train.options import TrainOptions
from ganpipe.train.plan import Draws, Plan, plan_training

EQUAL = {"a 9": 40, "a 10": 40, "b": 40}  # of the training below
CLASSES = {"cat": 3, "dog": 1, "owl 9": 6}
ARCHITECTURES = [("dcgan", 16), ("celeba64", 16), ("upsample", 20), ("residual", 32), ("resize", 16)]


@pytest.fixture(scope="module")
def values(small_params: Params) -> Params:
    """The small training, of two steps an epoch, with classes."""
    return updated(small_params, model__conditional=True, train__batch_size=30, train__augment=["cutout"])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, write_packed: Callable[..., Path], values: Params) -> Path:
    """A checkout with a finished training on 40 digits each of 1, 0 and 7, named "a 10", "a 9" and "b"."""
    folder = tmp_path_factory.mktemp("checkout")
    rows = np.concatenate([np.flatnonzero(digit_labels() == digit)[:40] for digit in (1, 0, 7)])
    write_packed(folder, digits()[rows, 6:22, 6:22])
    (folder / "ganpipe").symlink_to(ROOT / "ganpipe")
    write_labels(folder, {f"{i}.png": ("a 10", "a 9", "b")[i // 40] for i in range(120)})
    train(folder, values)
    sample(values.sample, folder)
    return folder


def write_labels(root: Path, labels: dict[str, str]) -> None:
    """Write the table of classes as fetch does."""
    (root / "stages/fetch").mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(list(labels.items()), columns=["name", "class"])
    table.to_csv(root / "stages/fetch/labels.csv", index=False)


def train(root: Path, values: Params, **options: Any) -> Plan:
    """Train in a checkout."""
    plan = plan_training(values.model, values.train, root)
    stage.train(plan, root, TrainOptions(**({"checkpoint_seconds": 0} | options)))
    return plan


def copy_of(root: Path, target: Path) -> Path:
    """Copy a checkout without what its training left."""
    shutil.copytree(root, target, symlinks=True, ignore=shutil.ignore_patterns(".ganpipe", "train", "sample"))
    return target


@pytest.mark.parametrize(("architecture", "side"), ARCHITECTURES)
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_d_is_a_projection_discriminator(
    architecture: str, side: int, norm: str, small_params: Params
) -> None:
    """The class would not reach D as Miyato & Koyama write it: f(y, φ(x)) = V_y·φ(x) + ψ(φ(x))."""
    params = updated(small_params, preprocess__resolution=32).model
    params = params.model_copy(update={"architecture": architecture, "discriminator_norm": norm})
    plain = models.build_discriminator(NetworkSpec(params, side, 1)).eval()
    torch.manual_seed(0)
    D = models.build_discriminator(NetworkSpec(params, side, 1, CLASSES)).eval()
    names = zip(plain.state_dict(), (name for name in D.state_dict() if "embed" not in name), strict=True)
    plain.load_state_dict({name: D.state_dict()[other] for name, other in names})
    maps: list[torch.Tensor] = []
    last = [module for module in plain.modules() if isinstance(module, nn.LeakyReLU)][-1]
    last.register_forward_hook(lambda module, inputs, output: maps.append(output.clone()))
    images, numbers = torch.rand(4, 1, side, side) * 2 - 1, torch.tensor([2, 0, 1, 2])
    logits = plain(images)
    V = D.get_parameter("embedding.weight").T
    assert V.shape == (3, maps[0].shape[1]) and 0.01 < V.std() < 0.03
    inner = (V[numbers] * maps[0].sum((2, 3))).sum(1)
    torch.testing.assert_close(D(images, torch.eye(3)[numbers]), logits + inner)


@pytest.mark.parametrize(("architecture", "side"), ARCHITECTURES)
def test_a_file_of_weights_knows_its_classes(
    architecture: str, side: int, small_params: Params, tmp_path: Path
) -> None:
    """A generator could not be asked for a class, or would draw another one's images."""
    params = small_params.model.model_copy(update={"architecture": architecture, "conditional": True})
    spec = NetworkSpec(params, side, 1, CLASSES)
    G = models.build_generator(spec).eval()
    save_generator(G, spec, tmp_path / "g.safetensors")
    loaded = load_generator(tmp_path / "g.safetensors")
    assert loaded.spec == spec and list(loaded.spec.classes) == list(CLASSES)
    z = generator.latents_of_seeds(spec, 5, 3, 0.5, 1)
    assert torch.equal(z[:, :8], generator.z_of_seeds(params, 5, 3, 0.5))
    of_class = generator.CLASS_LENGTH * 8**0.5 * torch.tensor([[0.0, 1.0, 0.0]])
    assert torch.equal(z[:, 8:], of_class.repeat(3, 1))
    assert torch.equal(loaded.network(z), G(z))
    assert not torch.equal(G(z), G(generator.latents_of_seeds(spec, 5, 3, 0.5, 0)))
    for wrong in ({}, {"cat": 1}, {"cat": 1, "dog": 0}):
        save_generator(G, NetworkSpec(params, side, 1, wrong), tmp_path / "g.safetensors")
        with pytest.raises(UserError, match="the header's description is not readable"):
            load_generator(tmp_path / "g.safetensors")


def test_seeds_draw_classes_as_often_as_training_has_them() -> None:
    """Metrics against the whole training set would punish other shares of the classes."""
    numbers = generator.classes_of_seeds(CLASSES, 0, 3000)
    shares = torch.bincount(numbers, minlength=3) / 3000
    assert torch.allclose(shares, torch.tensor([0.3, 0.1, 0.6]), atol=0.03)
    assert torch.equal(numbers[7:9], generator.classes_of_seeds(CLASSES, 7, 2))


def test_the_drift_stays_within_classes() -> None:
    """Images of one class would be pulled towards those of another."""
    torch.manual_seed(0)
    fake, real = torch.randn(2, 6, 4, requires_grad=True), torch.randn(2, 8, 4) + 1
    fakes, reals = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 0, 0, 0, 1, 1, 1])
    apart = fakes[:, None] != torch.cat([reals, fakes])
    drifting_loss(fake, real, [0.2], apart).backward()
    scale = torch.cdist(fake, real).mean((1, 2), keepdim=True).detach()
    V = torch.zeros_like(fake)
    for number in (0, 1):  # by itself, each class is the plain loss; class 2 has no real image, and rests
        of_fake, of_real = fakes == number, reals == number
        X, P = fake.detach()[:, of_fake] / scale, real[:, of_real] / scale
        distances = torch.cat([torch.cdist(X, P), torch.cdist(X, X) + 1e9 * torch.eye(len(X[0]))], 2)
        K = ((-distances / 0.2).softmax(1) * (-distances / 0.2).softmax(2)).sqrt()
        pull, push = K.split([P.shape[1], X.shape[1]], 2)
        V[:, of_fake] = pull @ P * push.sum(2, keepdim=True) - push @ X * pull.sum(2, keepdim=True)
    V = V / V.square().sum(2).mean(1).sqrt()[:, None, None]
    assert fake.grad is not None and not fake.grad[:, 5].any()
    torch.testing.assert_close(fake.grad, -V / (scale * 6 * 2), rtol=1e-4, atol=1e-6)


def test_fakes_have_the_classes_of_the_real_images(root: Path, values: Params) -> None:
    """D's batch norm would tell real from generated images by the classes in the batch."""
    plan = plan_training(values.model, values.train, root)
    assert plan.classes == EQUAL
    draws = Draws(plan, 0, slice(3, 9))
    for step, (rows, _) in enumerate(draws.batches(0), 1):
        z = draws.z(step, rows)
        expected = np.array([1, 0, 2])[rows // 40]
        assert z.shape == (6, 11) and np.array_equal(z[:, 8:].argmax(1), expected)
        assert ((z[:, 8:] > 0).sum(1) == 1).all()


VARIANTS: dict[str, dict[str, Any]] = {
    "drift": {"train__drift_weight": 1.0, "train__drift_bank": 20, "train__drift_positives": 8},
    "mixed": {"train__d_batches": "mixed", "train__micro_batch_size": 10, "train__extra_update_every": 2},
    "bfloat16": {"train__precision": "bfloat16", "train__eval_every_kimg": 0.1, "train__keep": "best"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_training_is_the_same(
    root: Path, values: Params, tmp_path: Path, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted training would end in another generator."""
    values = updated(values, train__epochs=1, train__flip=True, **VARIANTS[variant])
    values = updated(values, preprocess__resolution=16)
    results, original = [], loop._record
    for name in ("whole", "interrupted"):
        folder = copy_of(root, tmp_path / name)
        if name == "interrupted":

            def record(journal: Any, ranks: Any, step: int, numbers: Any, stopping: bool) -> None:
                original(journal, ranks, step, numbers, stopping or step == 3)
                if step == 3:
                    raise Interrupted(15, step)

            with monkeypatch.context() as patch:
                patch.setattr(loop, "_record", record)
                with pytest.raises(Interrupted):
                    train(folder, values)
        train(folder, values, save_memory=True)
        files = ("generator.safetensors", "history.csv", "grids/1.png")
        results.append([(folder / "stages/train" / file).read_bytes() for file in files])
    assert results[0] == results[1]


def test_two_ranks_train_as_one(root: Path, values: Params, tmp_path: Path) -> None:
    """Each rank would tell D the classes of another rank's images."""
    values = updated(values, model__discriminator_norm="none", train__sync_batch_norm=True, train__augment=[])
    one, two = (copy_of(root, tmp_path / ranks) for ranks in ("one", "two"))
    train(one, values)
    (two / "params.yaml").write_text(json.dumps(values.model_dump()))
    command = [sys.executable, "-m", "ganpipe", "train", "--device", "cpu", "--devices", "2"]
    done = subprocess.run(command, cwd=two, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tables = (pd.read_csv(folder / "stages/train/history.csv") for folder in (one, two))
    losses = [table[["d_loss", "g_loss"]] for table in tables]
    assert np.allclose(losses[0], losses[1], rtol=1e-5)


def test_other_labels_are_another_training(root: Path, values: Params, tmp_path: Path) -> None:
    """A training on other classes would resume this one's weights; one without classes would start anew."""
    folder = copy_of(root, tmp_path / "other")

    def folder_of(conditional: bool) -> Path:
        params = updated(values, model__conditional=conditional)
        return plan_training(params.model, params.train, folder).folder

    first = [folder_of(conditional) for conditional in (True, False)]
    write_labels(folder, {f"{i}.png": ("b", "a 9", "a 10")[i // 40] for i in range(120)})
    second = [folder_of(conditional) for conditional in (True, False)]
    assert first[0] != second[0] and first[1] == second[1] and len({*first, *second}) == 3


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({}, r"120 of 120 training images have no class \(0\.png\); name the pictures' folders by class"),
        (
            {f"{i}.png": "ab"[i % 2] for i in range(119)},
            r"1 of 120 training images have no class \(119\.png\)",
        ),
        ({f"{i}.png": "a" for i in range(120)}, "all 120 training images have the class 'a'"),
        ({f"{i}.png": "ab"[i == 7] for i in range(120)}, r"class 'b' has only one training image \(7\.png\)"),
    ],
)
def test_classes_that_are_no_use(
    root: Path, values: Params, tmp_path: Path, labels: dict[str, str], words: str
) -> None:
    """A user would not learn which picture or class is at fault."""
    folder = copy_of(root, tmp_path / "bad")
    write_labels(folder, labels)
    with pytest.raises(UserError, match=words) as caught:
        train(folder, values)
    assert "\n" not in str(caught.value) and "or set it to false" in str(caught.value)
    shutil.rmtree(folder / "stages/fetch")
    with pytest.raises(UserError, match=r"labels\.csv: no table of classes .* run the fetch stage again"):
        train(folder, values)


def test_samples_and_their_pictures(root: Path, values: Params, tmp_path: Path) -> None:
    """Pictures would show other classes than they say, or evaluate judge others than generate makes."""
    samples = np.load(root / "stages/sample/samples.npy")
    made = {}
    for name in (None, "a 9", "b"):
        out = tmp_path / f"{name}.npy"
        generate(None, out, GenerateOptions(n=20, class_name=name), root)
        made[name] = np.load(out)
    assert np.array_equal(made[None], samples)
    numbers = generator.classes_of_seeds(EQUAL, 0, 20).numpy()
    for number, name in ((0, "a 9"), (2, "b")):
        same = [np.array_equal(a, b) for a, b in zip(made[name], samples, strict=True)]
        assert same == (numbers == number).tolist()
    grid = Image.open(root / "stages/sample/grid.png").convert("L")
    row = np.asarray(grid)[-64:, -(8 * 66 - 2) :][::4, :62:4]  # the last row's first image, enlarged 4 times
    assert np.array_equal(row, made["b"][0, :, :16, 0][:, : row.shape[1]])
    grid = Image.open(root / "stages/train/grids/1.png")
    assert grid.size == (8 * 16, 3 * 16)
    explorer = Explorer(None, root, "cpu")
    picks = [explorer.pick(seed, 1.0, ()) for seed in range(4)]
    assert np.array_equal(explorer.images(picks, explorer.weights[-1]), samples[:4])
    moved = explorer.pick(0, 1.0, [1.0] * len(explorer.names)).z - picks[0].z
    assert moved[:8].any() and not moved[8:].any()
    assert explorer.film(picks[:2], explorer.weights[-1]).shape == (9, 16, 16, 1)


@pytest.mark.parametrize("name", ["a  9", "zebra", ""])
def test_a_class_that_there_is_not(root: Path, tmp_path: Path, name: str, small_params: Params) -> None:
    """A user would get images of another class, or not learn what classes there are."""
    with pytest.raises(UserError, match="the generator has no class .*; it has 3, such as a 9") as caught:
        generate(None, tmp_path / "a.npy", GenerateOptions(class_name=name), root)
    assert "\n" not in str(caught.value)
    spec = NetworkSpec(small_params.model, 16, 1)
    save_generator(models.build_generator(spec), spec, tmp_path / "g.safetensors")
    with pytest.raises(UserError, match=r"trained with model\.conditional=false"):
        generate(str(tmp_path / "g.safetensors"), tmp_path / "a.npy", GenerateOptions(class_name=name), root)


def test_numbers_of_each_class(root: Path, values: Params, tmp_path: Path) -> None:
    """A class that fails would be hidden by the others, or be judged by another class's images."""
    folder = copy_of(root, tmp_path / "scored")
    for name in ("train", "sample"):
        shutil.copytree(root / "stages" / name, folder / "stages" / name)
    values = updated(values, sample__count=65, evaluate__seeds=1, evaluate__feature_resolution=32)
    sample(values.sample, folder)
    metrics = evaluate(values.evaluate, values.sample, folder, "cpu")
    counts = torch.bincount(generator.classes_of_seeds(EQUAL, 0, 65)).tolist()
    assert min(counts) < 20 <= max(counts)
    network, rows = Lite0(32), generator.classes_of_seeds(EQUAL, 0, 65).numpy()
    data = dataset.load(folder / "stages/preprocess")
    fakes = np.load(folder / "stages/sample/samples.npy")
    scored = []
    for number, (name, digit) in enumerate((("a 9", 1), ("a 10", 0), ("b", 2))):
        if counts[number] < 20:
            assert metrics["classes"][name] is None
            assert f"1 of 3 classes, such as {name}, have fewer than 20" in metrics["classes_unscored"]
            continue
        real = extract(network, data.images[40 * digit : 40 * digit + 40], 32, "cpu")
        fake = extract(network, fakes[rows == number], 32, "cpu")
        expected = np.mean([kid(real, fake, 1, counts[number], seed)[0] for seed in range(50)])
        scored.append(metrics["classes"][name])
        assert metrics["classes"][name] == pytest.approx(expected, rel=0.2)
    assert metrics["class_kid_lite0"] == pytest.approx(np.mean(scored), rel=1e-4)
    card = (folder / "stages/evaluate/card.md").read_text()
    assert "| a 10 | 40 | " in card and "Mean KID within the classes: " in card and "fewer than 20" in card


@pytest.mark.parametrize("form", WRITERS)
def test_an_exported_file_takes_the_class(
    root: Path, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other programs could not ask for a class, or would get another one."""
    export(None, form, tmp_path / f"g.{form}", root)
    printed = capsys.readouterr().out
    assert "number is the class of each image, int64 N: 0 to 2, in this order:\na 9, a 10, b\n" in printed
    if form != "safetensors":
        monkeypatch.chdir(tmp_path)
        names: dict[str, Any] = {}
        lines = [line.strip() for line in printed.splitlines() if line.startswith("    ")]
        exec("\n".join(lines).replace("numpy.full(8, 0,", "numpy.arange(8) % 3 + numpy.full(8, 0,"), names)
        trained = load_generator(root / "stages/train/generator.safetensors")
        z, numbers = torch.from_numpy(names["z"]), torch.arange(8) % 3
        expected = trained.network(generator.with_classes(trained.spec, z, numbers))
        assert np.abs(names["images"] - expected.numpy()).max() < 1e-4


def test_the_served_model_takes_the_class(root: Path, tmp_path: Path) -> None:
    """A server would answer with images of any class."""
    from mlflow import pyfunc
    from mlflow.exceptions import MlflowException

    from ganpipe.tracking.model import write_model

    write_model(root / "stages/train", tmp_path / "model")
    model = pyfunc.load_model(str(tmp_path / "model"))
    generate(None, tmp_path / "b.npy", GenerateOptions(n=2, seed=4, class_name="b"), root)
    answer = model.predict(["x"], params={"n": 2, "seed": 4, "class": "b"})
    images = [np.asarray(Image.open(io.BytesIO(base64.b64decode(row["png"])))) for row in answer]
    assert np.array_equal(np.stack(images), np.load(tmp_path / "b.npy")[..., 0])
    with pytest.raises(MlflowException, match="has no class 'c'"):
        model.predict(["x"], params={"class": "c"})
