"""Trial of all that a GPU has to show: that it is right, how fast it is, what fits, and studies at full size.

    python tests/trials/gpu.py OUT --data FOLDER                  # on a GPU: about 9 minutes
    python tests/trials/gpu.py OUT --device cpu --tiny            # on a CPU: whether the trial itself works

Needs neither dvc nor mlflow. Each part runs in a process of its own and has a time limit; after a failure
the next part goes on. Each figure is printed and appended to OUT/figures.jsonl as soon as it is measured. The
pictures and tables of a study are in OUT/<study>.zip. FOLDER holds the data sets of the studies (anime6k.zip,
celeba5k.zip, mnist/); the studies of absent ones are left out.
"""

import hashlib
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/benchmarks")]
# Whether there is a GPU is asked without CUDA, because a process that has used CUDA cannot fork.
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402
import torch._dynamo  # noqa: E402  # what optimizers import when first built: once, before the parts are forked
import typer  # noqa: E402
from PIL import Image  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402
from train_speed import example, limit, pictures, rate_of, synchronize, write_checkout  # noqa: E402

from ganpipe import params  # noqa: E402
from ganpipe.common.errors import Interrupted  # noqa: E402
from ganpipe.common.stages import STEP_NUMBERS, stage_file  # noqa: E402
from ganpipe.evaluate.stage import evaluate  # noqa: E402
from ganpipe.sample.stage import sample  # noqa: E402
from ganpipe.train import stage  # noqa: E402
from ganpipe.train.devices.compute import exact_kernels  # noqa: E402
from ganpipe.train.devices.feed import Feed, to_device  # noqa: E402
from ganpipe.train.devices.graph import record_step  # noqa: E402
from ganpipe.train.devices.ranks import Ranks  # noqa: E402
from ganpipe.train.options import TrainOptions  # noqa: E402
from ganpipe.train.plan import Draws, plan_training  # noqa: E402
from ganpipe.train.players import build_players  # noqa: E402
from ganpipe.train.stage import train  # noqa: E402
from ganpipe.train.step import StepSettings, generate, update_d, update_g  # noqa: E402

GB = 1e9
STEPS = 20  # of the trainings that are compared
# Largest relative difference in the first step's numbers that counts as right. Later steps are not bounded,
# because a GAN's losses amplify the last bits: two CPUs differ by a factor after STEPS steps.
CLOSE = {"float32": 5e-4, "TF32": 5e-3, "bfloat16": 5e-2}
VARIANTS = {"plain": ("float32", False), "graph": ("float32", True)}
VARIANTS |= {"bfloat16": ("bfloat16", False), "bfloat16, graph": ("bfloat16", True)}


@dataclass(frozen=True)
class Trial:
    """What every part is given."""

    out: Path
    data: Path | None
    device: str
    tiny: bool
    begun: float  # seconds since 1970

    @property
    def gpu(self) -> bool:
        """Whether the device is a GPU."""
        return torch.device(self.device).type == "cuda"

    def note(self, part: str, name: str, **figures: Any) -> None:
        """Write and print a figure."""
        line = json.dumps({"part": part, "name": name, **figures}, default=float)
        with open(self.out / "figures.jsonl", "a") as file:
            file.write(line + "\n")
        print(f"{time.time() - self.begun:6.1f} s {line}", flush=True)


# What the parts share: trainings of the product on drawn pictures.


@dataclass(frozen=True)
class Trained:
    """What a training left."""

    root: Path
    history: pd.DataFrame
    perf: pd.DataFrame
    digest: str  # sha256 of the generator's file
    peak: float  # GB that torch reserved on the GPU


@contextmanager
def checkout(images: np.ndarray) -> Iterator[Path]:
    """Yield a temporary checkout with packed images."""
    with tempfile.TemporaryDirectory() as name:
        write_checkout(Path(name), images)
        yield Path(name)


def values_for(images: np.ndarray, width: int, **changes: Any) -> params.Params:
    """Return params of a plain DCGAN for these images, with changes such as train__epochs=1."""
    values = params.load(ROOT / "params.yaml").model_dump()
    _, side, _, channels = images.shape
    values["preprocess"] |= {"resolution": side, "channels": channels}
    values["model"] |= {"architecture": "dcgan", "ngf": width, "ndf": width, "conditional": False}
    values["train"] |= {"ema_halflife_kimg": None, "eval_every_kimg": None, "keep": "last", "drift_weight": 0}
    values["train"] |= {"snapshot_epochs": [], "real_label": 1.0, "dlr": 2e-4, "glr": 2e-4}
    values["evaluate"]["extractor"] = "lite0"  # whose weights are there
    for name, value in changes.items():
        section, _, key = name.partition("__")
        values[section][key] = value
    return params.parse(values, "trial")


def run(root: Path, values: params.Params, options: TrainOptions) -> Trained:
    """Train in a checkout, resuming what an interruption left, and return the result."""
    gpu = torch.device(options.device).type == "cuda"
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    train(plan_training(values.model, values.train, root), root, options)
    return Trained(
        root,
        pd.read_csv(stage_file(root, "history.csv")),
        pd.read_csv(stage_file(root, "perf.csv")),
        hashlib.sha256(stage_file(root, "generator.safetensors").read_bytes()).hexdigest(),
        torch.cuda.max_memory_reserved() / GB if gpu else 0.0,
    )


def distance(a: pd.DataFrame, b: pd.DataFrame) -> list[float]:
    """Return the largest relative difference of two histories' numbers in the first, fifth and last step."""
    ours, theirs = (frame[list(STEP_NUMBERS)].to_numpy() for frame in (a, b))
    relative = np.abs(ours - theirs) / np.maximum(np.abs(theirs), 1e-2)
    return [float(relative[step].max()) for step in (0, 4, -1)]


# The parts.


def right(trial: Trial) -> None:
    """Compare GPU with CPU, graph with plain step, bfloat16 with float32, and resumed trainings."""
    width, side, batch = (4, 16, 8) if trial.tiny else (64, 64, 64)
    images = pictures(side, 3, batch * STEPS // 2)
    base = {"train__epochs": 2, "train__batch_size": batch, "train__snapshot_epochs": [1]}
    values, gpu = values_for(images, width, **base), TrainOptions(trial.device)
    low = values_for(images, width, **base, train__precision="bfloat16")

    def fresh(name: str, values: params.Params, options: TrainOptions) -> Trained:
        with checkout(images) as root:
            trained = run(root, values, options)
        trial.note("right", name, sha256=trained.digest[:12], peak_gb=trained.peak)
        return trained

    def close(name: str, kind: str, a: Trained, b: Trained) -> None:
        apart = distance(a.history, b.history)
        trial.note("right", name, ok=apart[0] <= CLOSE[kind], steps_1_5_20_differ_by=apart)

    def same(name: str, a: Trained, b: Trained) -> None:
        ok = a.digest == b.digest and a.history.equals(b.history)
        trial.note("right", name, ok=ok, steps_1_5_20_differ_by=distance(a.history, b.history))

    # Close to the CPU, and bfloat16 close to float32.
    plain_gpu = replace(gpu, graph=False)
    plain = fresh("plain", values, plain_gpu)
    exact = {"enabled": True, "deterministic": True, "allow_tf32": False}
    with mock.patch.object(stage, "exact_kernels", lambda: torch.backends.cudnn.flags(**exact)):
        without = fresh("without TF32", values, plain_gpu)
    cpu = fresh("CPU", values, TrainOptions("cpu"))
    close("GPU without TF32 against CPU", "float32", without, cpu)
    close("GPU against CPU", "TF32", plain, cpu)
    half = fresh("bfloat16", low, plain_gpu)
    close("bfloat16 against float32", "bfloat16", half, plain)
    less = fresh("recomputed activations", values, replace(gpu, save_memory=True))
    close("recomputed activations against plain", "TF32", less, plain)

    # The same bytes: repeated, by the graph, with images gathered ahead, and resumed.
    same("again", fresh("again", values, plain_gpu), plain)
    same("graph against plain", fresh("graph", values, gpu), plain)
    same("bfloat16: graph against plain", fresh("bfloat16, graph", low, gpu), half)
    ahead = fresh("images gathered ahead", values, replace(gpu, data_memory_gb=0.0))
    same("images gathered ahead against all on the device", ahead, plain)
    for name, chosen, options, whole in (
        ("plain", values, plain_gpu, plain),
        ("graph", values, gpu, plain),
        ("bfloat16, graph", low, gpu, half),
    ):
        with checkout(images) as root:
            interrupt(root, chosen, options, STEPS // 2 - 1)
            same(f"resumed, {name}", run(root, chosen, options), whole)
    for architecture in () if trial.tiny else ("celeba64", "upsample", "residual"):
        norm = "none" if architecture == "celeba64" else "batch"
        other: dict[str, Any] = {"model__architecture": architecture, "model__discriminator_norm": norm}
        other |= {"model__ngf": width // 2, "model__ndf": width // 2}
        for precision in ("float32", "bfloat16"):
            chosen = values_for(images, width, **base, **other, train__precision=precision)
            name = f"{architecture}, {precision}"
            with checkout(images) as root, checkout(images) as again:
                same(f"{name}: graph against plain", run(root, chosen, gpu), run(again, chosen, plain_gpu))

    # The recipe beyond with augmentation: its drawn numbers reach the graph, and its gradients repeat.
    beyond: dict[str, Any] = {
        "model__architecture": "resize",
        "train__drift_weight": 1.0,
        "train__flip": True,
    }
    beyond |= {"train__augment": ["colour", "translation", "cutout", "jitter"], "train__drift_bank": 64}
    for precision in () if trial.tiny else ("float32", "bfloat16"):
        chosen = values_for(images, width, **base, **beyond, train__precision=precision)
        whole = fresh(f"beyond, {precision}", chosen, plain_gpu)
        same(f"beyond, {precision}: graph against plain", fresh("beyond, graph", chosen, gpu), whole)
        with checkout(images) as root:
            interrupt(root, chosen, gpu, STEPS // 2 - 1)
            same(f"beyond, {precision}: resumed", run(root, chosen, gpu), whole)


def everything(trial: Trial) -> None:
    """Train with all options at once, and run the later stages on the GPU and on the CPU."""
    width, side, batch = (4, 16, 8) if trial.tiny else (64, 64, 64)
    images = pictures(side, 3, batch * STEPS // 2)
    values = values_for(
        images, width, train__epochs=2, train__batch_size=batch, train__snapshot_epochs=[1], train__flip=True,
        train__ema_halflife_kimg=0.1, train__eval_every_kimg=0.1, train__keep="best",
        train__micro_batch_size=batch // 2, train__extra_update_every=3, sample__count=60,
        evaluate__search_images=100, evaluate__seeds=2, preprocess__held_out=0.0,
    )  # fmt: skip
    gpu = TrainOptions(trial.device, save_memory=True)
    numbers, generated = {}, {}
    with checkout(images) as root, checkout(images) as again:
        trained, plain = run(root, values, gpu), run(again, values, replace(gpu, graph=False))
        ok = trained.digest == plain.digest and trained.history.equals(plain.history)
        trial.note("everything", "graph against plain", ok=ok)
        for device in dict.fromkeys((trial.device, "cpu")):
            sample(values.sample, root, device)
            generated[device] = np.load(stage_file(root, "samples.npy")).astype(int)
            metrics = evaluate(values.evaluate, values.sample, root, device)
            numbers[device] = {key: value for key, value in metrics.items() if isinstance(value, float)}
    apart = int(np.abs(generated[trial.device] - generated["cpu"]).max())
    trial.note("everything", "sample and evaluate", samples_differ_by=apart, **numbers)
    if trial.gpu:
        command_line(trial, images, values)


def interrupt(root: Path, values: params.Params, options: TrainOptions, at: int) -> None:
    """Train until SIGTERM comes during a step."""
    draw = Draws.z

    def z(self: Draws, step: int, rows: np.ndarray, purpose: str = "z") -> torch.Tensor:
        if step == at:
            signal.raise_signal(signal.SIGTERM)
        return draw(self, step, rows, purpose)

    with mock.patch.object(Draws, "z", z), suppress(Interrupted):
        train(plan_training(values.model, values.train, root), root, options)
        raise AssertionError("the training was not interrupted")


def command_line(trial: Trial, images: np.ndarray, values: params.Params) -> None:
    """Run `ganpipe train` itself, with the device that it chooses."""
    with checkout(images) as root:
        (root / "params.yaml").write_text(json.dumps(values.model_dump()))
        words = [sys.executable, "-m", "ganpipe", "train"]
        done = subprocess.run(
            words, cwd=root, capture_output=True, text=True, env=environment(), timeout=60, check=False
        )
        trial.note("everything", "ganpipe train", rc=done.returncode, stderr=done.stderr[-1500:])


def environment() -> dict[str, str]:
    """Return the environment of a process that imports what this one does."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}


def fast(trial: Trial) -> None:
    """Measure images a second: the step on resident images, whole trainings, and the standard example."""
    device = torch.device(trial.device)
    seconds, whole_seconds, logged = (0.05, 0.2, 0.01) if trial.tiny else (1.0, 2.5, 0.25)
    sizes = {64: (128, None), 128: (128, 1024), 256: (75, 1024), 512: (21, 1024), 1024: (6, 1024)}
    if trial.tiny:
        sizes = {16: (8, None)}
    for name in ("float32", "TF32", "bfloat16"):
        torch.backends.cuda.matmul.allow_tf32 = name == "TF32"
        dtype = torch.bfloat16 if name == "bfloat16" else torch.float32
        tflops = limit(device, dtype, 64 if trial.tiny else None) / 1e12
        trial.note("fast", f"matrix multiplication, {name}", tflops=tflops)
    torch.backends.cuda.matmul.allow_tf32 = False
    for side, (batch, first_channels) in sizes.items():
        width = 4 if trial.tiny else 64
        images = np.resize(
            pictures(side, 3, 64),
            (2 * batch if trial.tiny else max(2 * batch, 2**22 // side**2), side, side, 3),
        )
        theirs = example(images[:256], width, batch, device, first_channels)(2 * seconds)
        trial.note("fast", f"{side} px, example", batch=batch, images_per_second=theirs)
        with checkout(images) as root:
            for name, (precision, graph) in VARIANTS.items():
                changes = {"model__first_channels": first_channels, "train__precision": precision}
                values = values_for(images, width, **changes, train__batch_size=batch)
                options = TrainOptions(trial.device, graph=graph and trial.gpu, log_seconds=logged)
                with exact_kernels():
                    rate, gflop = step_rate(root, values, options, seconds)
                epochs = max(2, round(rate * whole_seconds / len(images)))
                values = values_for(images, width, **changes, train__batch_size=batch, train__epochs=epochs)
                trained = run(root, values, options)
                later = trained.perf[trained.perf.seconds >= (0.0 if trial.tiny else 1.0)]
                made, elapsed = (later[name].iloc[-1] - later[name].iloc[0] for name in ("nimg", "seconds"))
                end_to_end = float(made / max(elapsed, 1e-9))
                trial.note(
                    "fast", f"{side} px, {name}", batch=batch, step=rate, end_to_end=end_to_end,
                    share_of_step=end_to_end / rate, times_example=end_to_end / theirs,
                    gflop_an_image=gflop, tflops=gflop * rate / 1e3, peak_gb=trained.peak,
                )  # fmt: skip


def a_step(
    root: Path, values: params.Params, options: TrainOptions
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return the step of a training on one resident batch, plain, and as `options` say."""
    plan, device = plan_training(values.model, values.train, root), torch.device(options.device)
    players, B = build_players(plan, 0, options, Ranks()), plan.batch_size
    settings = StepSettings(values.train.real_label, values.train.fake_label, B)
    draws = Draws(plan, 0, slice(0, B))
    real = Feed(plan.data.images, device, "host")(np.arange(B), None)
    z = to_device(draws.z(0, plan.rows[:B]), device)

    def plain() -> None:
        fake = generate(players.G, z, settings)
        update_d(players, real, z, fake, settings)
        update_g(players, z, fake, settings)

    if options.graph:
        replay = record_step(players, settings, (real, z), values.train.precision)
        if replay:
            return plain, lambda: replay(real, z)
    return plain, plain


def step_rate(
    root: Path, values: params.Params, options: TrainOptions, seconds: float
) -> tuple[float, float]:
    """Return images a second of the step alone, and its GFLOP an image."""
    plain, step = a_step(root, values, options)
    with FlopCounterMode(display=False) as counter:
        plain()
    batch = values.train.batch_size_for(values.preprocess.resolution)
    rate = rate_of(step, batch, torch.device(options.device))(seconds)
    return rate, counter.get_total_flops() / batch / 1e9


def algorithms(trial: Trial) -> None:
    """Measure what cuDNN's choices cost: timed, deterministic, and both."""
    sizes = {16: (8, None)} if trial.tiny else {64: (128, None), 256: (75, 1024)}
    for side, (batch, first_channels) in sizes.items():
        images = np.resize(pictures(side, 3, 64), (2 * batch, side, side, 3))
        for precision in ("float32", "bfloat16"):
            changes = {"model__first_channels": first_channels, "train__precision": precision}
            values = values_for(images, 4 if trial.tiny else 64, **changes, train__batch_size=batch)
            for name in ("any", "deterministic", "timed", "timed, deterministic"):
                how: Any = {"benchmark": "timed" in name, "deterministic": "deterministic" in name}
                options = TrainOptions(trial.device, graph=trial.gpu)
                with checkout(images) as root, torch.backends.cudnn.flags(enabled=True, **how):
                    rate, _ = step_rate(root, values, options, 0.1 if trial.tiny else 0.5)
                trial.note("algorithms", f"{side} px, {precision}, {name}", step=rate)


def profile(trial: Trial) -> None:
    """Say what the step at 64 px waits for: the longest kernels, and the share of time without any."""
    from torch.profiler import ProfilerActivity

    side, width, batch = (16, 4, 8) if trial.tiny else (64, 64, 128)
    images = np.resize(pictures(side, 3, 64), (2 * batch, side, side, 3))
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if trial.gpu else [])]
    tables = []
    for name, (precision, graph) in VARIANTS.items():
        values = values_for(images, width, train__precision=precision, train__batch_size=batch)
        with checkout(images) as root, exact_kernels():
            options = TrainOptions(trial.device, graph=graph and trial.gpu)
            _, step = a_step(root, values, options)
            for _ in range(5):
                step()
            synchronize(torch.device(trial.device))
            with torch.profiler.profile(activities=activities) as profiler:
                began = time.perf_counter()
                for _ in range(10):
                    step()
                synchronize(torch.device(trial.device))
                elapsed = time.perf_counter() - began
        rows = profiler.key_averages()
        busy = sum(row.self_device_time_total for row in rows) / 1e6
        trial.note("profile", name, ms_a_step=elapsed * 100, kernels_busy=busy / elapsed)
        order = "self_cuda_time_total" if trial.gpu else "self_cpu_time_total"
        tables.append(f"{name}\n{rows.table(sort_by=order, row_limit=25, max_name_column_width=90)}")
    (trial.out / "profile.txt").write_text("\n\n".join(tables))


def memory(trial: Trial) -> None:
    """Find what 12 GB hold at 1,024 px with 1,024 maps (Marchesi 2017), and measure D from 64 maps on too."""
    side, first = (16, 16) if trial.tiny else (1024, 1024)
    if trial.gpu:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, 12 * GB / total))
    for precision in ("float32", "bfloat16"):
        for save_memory in (False, True) if precision == "float32" else (False,):
            largest, rate, peak = 0, 0.0, 0.0
            for batch in (6, 12, 24, 32, 48, 64, 96, 128):
                images = np.resize(pictures(side, 3, 6), (batch, side, side, 3))
                changes = {"model__first_channels": first, "train__precision": precision}
                values = values_for(images, 64, **changes, train__batch_size=batch)
                try:
                    with checkout(images) as root, exact_kernels():
                        options = TrainOptions(trial.device, save_memory=save_memory, graph=False)
                        _, step = a_step(root, values, options)
                        rate = rate_of(step, batch, torch.device(trial.device))(0.1 if trial.tiny else 0.5)
                except torch.OutOfMemoryError:
                    torch.cuda.empty_cache()
                    break
                largest, peak = batch, 0.0
                if trial.gpu:
                    peak = torch.cuda.max_memory_reserved() / GB
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats()
                name = f"{side} px, {precision}{', recomputed' if save_memory else ''}, batch {batch}"
                trial.note("memory", name, peak_gb=peak, step=rate)
                if trial.tiny:
                    break
            trial.note("memory", f"largest batch, {precision}, recomputed {save_memory}", batch=largest)
    if trial.gpu:
        wide_discriminator(trial)


def wide_discriminator(trial: Trial) -> None:
    """Measure 1,024 px in batches of 6 with a D that begins with 64 maps, as DCGAN's does."""
    images = np.resize(pictures(1024, 3, 6), (6, 1024, 1024, 3))
    wide = {"model__first_channels": 1024, "model__d_first_channels": 64 * 2**7}
    values = values_for(images, 64, train__batch_size=6, **wide)
    for save_memory in (False, True):
        name = f"1024 px, D from 64 maps{', recomputed' if save_memory else ''}, batch 6"
        try:
            with checkout(images) as root, exact_kernels():
                options = TrainOptions(trial.device, save_memory=save_memory, graph=False)
                _, step = a_step(root, values, options)
                rate = rate_of(step, 6, torch.device(trial.device))(1.0)
            trial.note("memory", name, peak_gb=torch.cuda.max_memory_reserved() / GB, step=rate)
        except torch.OutOfMemoryError as error:
            trial.note("memory", name, ok=False, error=str(error).splitlines()[0][:200])
        torch.cuda.empty_cache()


# The studies at the papers' sizes, in order of worth: data set, the grid's lines, settings, seeds.
Study = tuple[str, list[str], list[str], int]
# Lite2's weights are too much to carry: beyond is judged by Lite0, in which it is trained, which flatters it.
EVALUATED = ["evaluate.snapshots=false", "evaluate.extractor=lite0"]
ANIME = ["fetch.path=$DATA/anime6k.zip", "preprocess.held_out=0.1", *EVALUATED]
FACES = ["fetch.source=archive", "fetch.path=$DATA/celeba5k.zip", "preprocess.held_out=0.1", *EVALUATED]
STUDIES: dict[str, Study] = {
    "beyond": (
        "anime6k.zip",
        [
            "recipe=beyond",
            "model.architecture,train.glr,train.drift_weight=resize:0.001:1.0,dcgan:0.0004:0.0",
            "train.steps=4000",
        ],
        [*ANIME, "fetch.source=archive", "model.ngf=64", "model.ndf=64"],
        1,
    ),
    "xin-experiments": (
        "anime6k.zip",
        ["recipe,train.batch_size=xin2024-5:128,xin2024-6:128,xin2024-8:24,xin2024-7:24,xin2024-5:24,xin2024-8:128"],
        [*ANIME, "train.epochs=20", "train.snapshot_epochs=[1,5,10,20]"],
        3,
    ),
    "stiff-digits": (
        "mnist",
        ["recipe=stiff2018-mnist"],
        ["fetch.path=$DATA/mnist", "preprocess.held_out=0.1", *EVALUATED],
        3,
    ),
    "vlad": (
        "celeba5k.zip",
        ["recipe=celeba64,dcgan"],
        [
            *FACES, "preprocess.crop=centre", "preprocess.crop_size=80", "train.batch_size=32",
            "train.epochs=40", "train.snapshot_epochs=[1,5,10,20,40]",
        ],
        3,
    ),
    "xin-rates": (
        "anime6k.zip",
        ["recipe=xin2024-5", "train.dlr,train.glr=0.0064:0.0032,0.0064:0.00128,0.0064:0.00064,0.0002:0.0002"],
        [*ANIME, "train.epochs=40", "train.snapshot_epochs=[1,5,10,20,40]"],
        3,
    ),
    "marchesi-step": (
        "celeba5k.zip",
        [
            "recipe=marchesi2017-192", "train.extra_update_every=50,null",
            "train.dlr,train.glr=0.0002:0.0002,0.001:0.001",
        ],
        [
            *FACES, "preprocess.resolution=64", "train.batch_size=128", "train.epochs=60", "train.steps=null",
            "train.snapshot_epochs=[1,10,30,60]",
        ],
        2,
    ),
    "xin-labels": (
        "anime6k.zip",
        ["recipe=xin2024-6", "train.real_label,train.fake_label=1.0:0.0,0.9:0.1,0.99:0.01"],
        [*ANIME, "train.epochs=40", "train.snapshot_epochs=[1,5,10,20,40]"],
        3,
    ),
}  # fmt: skip


def studies(trial: Trial) -> None:
    """Run the studies whose data are there, several cells at once, and keep what is finished at the end."""
    with tempfile.TemporaryDirectory() as name:
        for study, (data, lines, settings, seeds) in STUDIES.items():
            if trial.data is None or not (trial.data / data).exists():
                trial.note("studies", study, left_out=f"no {data}")
                continue
            if trial.tiny:
                settings = [*settings, "preprocess.resolution=32", "train.epochs=1"]
                settings += ["model.ngf=4", "model.ndf=4", "sample.count=12", "evaluate.seeds=1"]
                settings += ["preprocess.crop=square", "preprocess.crop_size=null"]
                if not study.startswith("xin"):
                    settings += ["model.first_channels=8"]
                settings += ["evaluate.neighbours=2", "train.snapshot_epochs=[1]"]
            words = [sys.executable, str(ROOT / "tests/benchmarks/study.py"), f"{name}/{study}", study]
            words += ["--seeds", "1" if trial.tiny else str(seeds), "--device", trial.device]
            words += ["--jobs", "1" if trial.tiny else "6"]
            for flag, texts in (("--word", lines), ("--set", settings)):
                words += [word for text in texts for word in (flag, text.replace("$DATA", str(trial.data)))]
            began, folder = time.time(), Path(name) / study
            folder.mkdir()
            with open(folder / "study.log", "w") as log:
                process = subprocess.Popen(
                    words, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=environment()
                )
                while process.poll() is None:
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(20)
                    with suppress(OSError, ValueError):  # a file is being written
                        keep(folder, trial.out / f"{study}.zip")
            trial.note("studies", study, rc=process.returncode, seconds=time.time() - began)
            lines_of_log = (folder / "study.log").read_text().splitlines()
            print(*[line for line in lines_of_log if ": trained in" in line or "Error" in line], sep="\n")


KEPT = ("metrics.json", "model.json", "history.csv", "events.csv", "intervals.csv", "grid.png", "epochs.png")


def keep(folder: Path, target: Path) -> None:
    """Write the tables and pictures (as JPEG) of a study's cells so far into a zip."""
    paths = [*folder.glob("*.csv"), *folder.glob("*.log")]
    for root in sorted(folder.glob("*-s?")):
        paths += [stage_file(root, name) for name in KEPT] + [stage_file(root, "grids") / "1.png"]
        if root.name.startswith("stiff"):
            paths.append(stage_file(root, "samples.npy"))
    temporary = target.with_suffix(".tmp")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in filter(Path.exists, paths):
            name = path.relative_to(folder)
            if path.suffix == ".png":
                file = io.BytesIO()
                Image.open(path).convert("RGB").save(file, "JPEG", quality=90)
                archive.writestr(str(name.with_suffix(".jpg")), file.getvalue())
            else:
                archive.write(path, name)
    temporary.replace(target)


# Parts in order of worth, and their limits in seconds.
PARTS: dict[str, tuple[Callable[[Trial], None], float]] = {
    "right": (right, 80),
    "everything": (everything, 50),
    "fast": (fast, 160),
    "memory": (memory, 60),
    "algorithms": (algorithms, 30),
    "profile": (profile, 25),
    "studies": (studies, 400),
}


def _child(part: str, trial: Trial) -> None:
    os.setsid()
    try:
        PARTS[part][0](trial)
    except BaseException:
        trial.note(part, "failed", ok=False, error=traceback.format_exc()[-3000:])
        raise SystemExit(1) from None


def main(
    out: Path,
    data: Annotated[Path | None, typer.Option(help="The folder of the studies' data sets.")] = None,
    device: str = "cuda",
    tiny: Annotated[bool, typer.Option(help="Smallest sizes: whether the trial itself works.")] = False,
    parts: Annotated[str, typer.Option(help="Of: " + ", ".join(PARTS))] = ",".join(PARTS),
    seconds: Annotated[float, typer.Option(help="In all.")] = 540.0,
) -> None:
    """Run the parts; see the top of this file. The exit code is 1 if a part failed or was cut off."""
    out.mkdir(parents=True, exist_ok=True)
    trial = Trial(out.resolve(), data and data.resolve(), device, tiny, time.time())
    fork, failed = multiprocessing.get_context("fork"), []
    for part in parts.split(","):
        left = seconds - (time.time() - trial.begun)
        child = fork.Process(target=_child, args=(part, trial))
        began = time.time()
        child.start()
        child.join(max(0.0, min(left, PARTS[part][1])))
        late = child.is_alive()
        with suppress(ProcessLookupError):
            os.killpg(child.pid or 0, signal.SIGKILL)
        child.join()
        if late or child.exitcode:
            failed.append(part)
        trial.note(part, "ended", late=late, exit_code=child.exitcode, seconds=time.time() - began)
    print(f"failed or cut off: {', '.join(failed) or 'none'}")
    raise typer.Exit(bool(failed))


if __name__ == "__main__":
    typer.run(main)
