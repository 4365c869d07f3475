"""How fast a training step is, compared with the standard DCGAN example and with the device's limit.

    python tests/benchmarks/train_speed.py --side 64 --width 64 --batch-size 128

Both loops train the same networks on the same pictures, in turn, each in a process of its own, because the
example's idle OpenMP threads spin, as its user's would. The example's loop decodes JPEG files in two loader
workers in every epoch, computes in float32 and reads five numbers from the device in every step, as that of
pytorch/examples does. The last line is the ratio of the rates end to end, the median over the rounds.

`--overhead` measures what logging, checkpoints and MLflow cost a real `ganpipe train`.
"""

import io
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import ganpipe  # noqa: E402, F401, I001  (before torch: it tells OpenMP's threads how to wait)
import numpy as np  # noqa: E402
import torch  # noqa: E402
import typer  # noqa: E402
from PIL import Image  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from ganpipe.common.seeds import generator  # noqa: E402
from ganpipe.device import keep_freed_memory  # noqa: E402
from ganpipe.models import dcgan  # noqa: E402
from ganpipe.models.generator import draw_z  # noqa: E402
from ganpipe.models.layers import NetworkSpec  # noqa: E402
from ganpipe.params import Model  # noqa: E402
from ganpipe.train.devices.compute import Bfloat16  # noqa: E402
from ganpipe.train.devices.feed import Feed, way_for  # noqa: E402
from ganpipe.train.players import Players  # noqa: E402
from ganpipe.train.step import StepSettings, generate, update_d, update_g  # noqa: E402

PICTURES = 1024
NZ = 100
# The default of libgomp.
SPINNING = {"GOMP_SPINCOUNT": "300000"}
LOG_SECONDS = 2.0
# Seconds in which MLflow's process loads its libraries, which do not count in a long training.
START = 15.0

Rate = Callable[[float], float]  # seconds to measure → images a second


def networks(
    side: int, width: int, channels: int, first_channels: int | None = None
) -> tuple[nn.Module, nn.Module, Model]:
    """Build the DCGAN that both loops train; `first_channels` maps at the smallest side, or by `width`."""
    model = Model(
        architecture="dcgan",
        nz=NZ,
        z_distribution="normal",
        z_limit=None,
        ngf=width,
        ndf=width,
        first_channels=first_channels,
        d_first_channels=None,
        discriminator_norm="batch",
        last_stride=2,
        trunk_halvings=5,
        conditional=False,
    )
    torch.manual_seed(0)
    spec = NetworkSpec(model, side, channels)
    return dcgan.Generator(spec), dcgan.Discriminator(spec), model


def pictures(side: int, channels: int, count: int = PICTURES) -> np.ndarray:
    """Draw smooth random pictures, uint8 count×side×side×channels; noise would be slow to decode."""
    small = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    mode = "L" if channels == 1 else "RGB"
    size, filter = (side, side), Image.Resampling.BICUBIC
    drawn = [np.asarray(Image.fromarray(pixels).resize(size, filter).convert(mode)) for pixels in small]
    return np.stack(drawn).reshape(count, side, side, channels)


def limit(device: torch.device, dtype: torch.dtype, n: int | None = None) -> float:
    """Measure the highest rate of an n×n matrix multiplication on the device, in FLOP a second."""
    n = n or (8192 if device.type == "cuda" else 2048)
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    times = []
    for _ in range(12):
        began = time.perf_counter()
        a @ b
        synchronize(device)
        times.append(time.perf_counter() - began)
    return 2 * n**3 / min(times[2:])


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rate_of(step: Callable[[], Any], batch_size: int, device: torch.device) -> Rate:
    """Return a measurement of a step, after three steps of warm-up."""
    for _ in range(3):
        step()

    def rate(seconds: float) -> float:
        synchronize(device)
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            step()
            count += 1
            if device.type == "cuda" and count % 50 == 0:
                torch.cuda.synchronize(device)  # so that the queue does not outlast the measurement
        synchronize(device)
        return count * batch_size / (time.perf_counter() - began)

    return rate


def ours(
    images: np.ndarray, width: int, batch_size: int, device: torch.device, precision: str
) -> tuple[Rate, Rate, float]:
    """Return measurements of our step alone and of our loop end to end, and the step's FLOP an image."""
    _, side, _, channels = images.shape
    G, D, model = networks(side, width, channels)
    layout: Any = {"device": device, "memory_format": torch.channels_last}
    G, D = (network.to(**layout) for network in (G, D))
    if precision == "bfloat16":
        G, D = (Bfloat16(network, device.type) for network in (G, D))
    adams = [torch.optim.Adam(net.parameters(), 2e-4, (0.5, 0.999), fused=True) for net in (G, D)]
    players, settings = Players(G, D, adams[0], adams[1]), StepSettings(1.0, 0.0, batch_size)
    feed = Feed(images, device, way_for(images.nbytes, device))

    def update(real: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        fake = generate(G, z, settings)
        d_numbers = update_d(players, real, z, fake, settings)
        return torch.cat([d_numbers, update_g(players, z, fake, settings)])

    def draws() -> Iterator[tuple[np.ndarray, None]]:
        epoch = 0
        while True:
            order = torch.randperm(PICTURES, generator=generator(0, "shuffle", epoch)).numpy()
            yield from (
                (rows, None) for rows in np.split(order, range(batch_size, PICTURES, batch_size))[:-1]
            )
            epoch += 1

    batches, rows, read, count = feed.batches(draws()), [], time.perf_counter(), 0
    real, z = feed(np.arange(batch_size), None), torch.randn(batch_size, NZ).to(device)
    with FlopCounterMode(display=False) as counter:
        update(real, z)

    def loop() -> None:
        nonlocal read, count
        count += 1
        z = draw_z(model, batch_size, generator(0, "z", count)).to(device)
        rows.append(update(next(batches), z))
        if time.perf_counter() - read > LOG_SECONDS:
            torch.stack(rows).cpu().tolist()
            rows.clear()
            read = time.perf_counter()

    step = rate_of(lambda: update(real, z), batch_size, device)
    return step, rate_of(loop, batch_size, device), counter.get_total_flops() / batch_size


class Files(torch.utils.data.Dataset[torch.Tensor]):
    """JPEG files, decoded at each access, float32 C×H×W in [-1, 1]."""

    def __init__(self, files: list[bytes], side: int, mode: str) -> None:
        self.files, self.side, self.mode = files, side, mode

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> torch.Tensor:
        picture = Image.open(io.BytesIO(self.files[i])).convert(self.mode)
        if picture.size != (self.side, self.side):
            picture = picture.resize((self.side, self.side), Image.Resampling.BILINEAR)
        pixels = np.asarray(picture, dtype=np.float32).reshape(self.side, self.side, -1).transpose(2, 0, 1)
        return torch.from_numpy(np.ascontiguousarray(pixels)) / 255 * 2 - 1


def example(
    images: np.ndarray, width: int, batch_size: int, device: torch.device, first_channels: int | None = None
) -> Rate:
    """Return a measurement of the standard DCGAN example's loop."""
    _, side, _, channels = images.shape
    netG, netD, _ = networks(side, width, channels, first_channels)
    netG.to(device), netD.to(device)
    optimizerD = torch.optim.Adam(netD.parameters(), lr=2e-4, betas=(0.5, 0.999))
    optimizerG = torch.optim.Adam(netG.parameters(), lr=2e-4, betas=(0.5, 0.999))
    criterion = nn.BCELoss()
    files = []
    for pixels in images:
        file = io.BytesIO()
        Image.fromarray(pixels.squeeze()).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    dataset = Files(files, side, "L" if channels == 1 else "RGB")
    loader = torch.utils.data.DataLoader(
        dataset, batch_size, shuffle=True, num_workers=2, drop_last=True, timeout=60
    )

    def epochs() -> Iterator[torch.Tensor]:
        while True:
            yield from loader

    batches = epochs()

    def step() -> tuple[float, ...]:
        netD.zero_grad()
        real = next(batches).to(device)
        label = torch.full((batch_size,), 1.0, device=device)
        output = netD(real).sigmoid()
        errD_real = criterion(output, label)
        errD_real.backward()
        D_x = output.mean().item()
        fake = netG(torch.randn(batch_size, NZ, device=device))
        label.fill_(0.0)
        output = netD(fake.detach()).sigmoid()
        errD_fake = criterion(output, label)
        errD_fake.backward()
        D_G_z1 = output.mean().item()
        optimizerD.step()
        netG.zero_grad()
        label.fill_(1.0)
        output = netD(fake).sigmoid()
        errG = criterion(output, label)
        errG.backward()
        D_G_z2 = output.mean().item()
        optimizerG.step()
        return (errD_real + errD_fake).item(), errG.item(), D_x, D_G_z1, D_G_z2

    return rate_of(step, batch_size, device)


@contextmanager
def example_process(words: list[str]) -> Iterator[Rate]:
    """Run the example in a process of its own, which measures on request and sleeps otherwise."""
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "KMP_BLOCKTIME")}
    process = subprocess.Popen(
        [sys.executable, __file__, *words, "--serve-example"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment | SPINNING,
    )
    assert process.stdin and process.stdout
    send, receive = process.stdin, process.stdout

    def rate(seconds: float) -> float:
        print(seconds, file=send, flush=True)
        line = receive.readline()
        if not line:
            raise RuntimeError("the example's process ended")
        return float(line)

    try:
        rate(0)
        yield rate
    finally:
        send.close()
        process.wait()


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Run `count` busy processes, as other users of the machine would."""
    program = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: sum(range(10**5))"
    processes = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def write_checkout(root: Path, images: np.ndarray) -> None:
    """Write packed images, uint8 N×H×W×C, into a folder that `plan_training` takes for a checkout."""
    import pandas as pd

    from ganpipe.common import dataset
    from ganpipe.common.stages import stage_folder

    for stage in ("fetch", "preprocess", "train", "sample", "evaluate"):
        stage_folder(root, stage).mkdir(parents=True)
    (root / "ganpipe").symlink_to(ROOT / "ganpipe")
    folder, side = stage_folder(root, "preprocess"), images.shape[1]
    np.save(folder / dataset.IMAGES, images)
    table = {"name": [f"{i}.png" for i in range(len(images))], "width": side, "height": side, "left": 0}
    table |= {"top": 0, "right": side, "bottom": side, "scale": 1.0, "split": "train"}
    pd.DataFrame(table).to_csv(folder / dataset.INDEX, index=False)
    dataset.write_description(folder)


def overhead(side: int, width: int, batch_size: int, seconds: float, device: str) -> float:
    """Measure a real training with and without logging, checkpoints and MLflow; return the ratio of rates."""
    import pandas as pd

    from ganpipe import params
    from ganpipe.common.stages import stage_file
    from ganpipe.tracking.mirror import recording
    from ganpipe.train.options import TrainOptions
    from ganpipe.train.plan import plan_training
    from ganpipe.train.stage import train

    with tempfile.TemporaryDirectory() as name:
        root, images = Path(name), pictures(side, 3)
        write_checkout(root, images)
        values = params.load(ROOT / "params.yaml").model_dump()
        values["preprocess"] |= {"resolution": side, "channels": 3}
        values["model"] |= {"architecture": "dcgan", "ngf": width, "ndf": width, "conditional": False}
        values["train"] |= {"batch_size": batch_size, "snapshot_epochs": []}
        values["train"] |= {"eval_every_kimg": None, "keep": "last", "drift_weight": 0.0}
        step, _, _ = ours(images, width, batch_size, torch.device(device), "float32")
        # Beyond START also where the training is up to twice as fast as the step was just now.
        epochs = max(2, math.ceil(step(3.0) * (2 * START + seconds) / PICTURES))
        values["train"] |= {"epochs": epochs}
        rates: dict[str, list[float]] = {"bare": [], "whole": []}
        for seed in range(2 * 3):
            kind = ("bare", "whole")[seed % 2]
            values["train"]["seed"] = seed
            chosen = params.parse(values, "benchmark")
            (root / "params.yaml").write_text(json.dumps(values))
            plan = plan_training(chosen.model, chosen.train, root)
            with ExitStack() as stack:
                if kind == "whole":
                    stack.enter_context(recording(root, "train", plan.folder))
                bare = TrainOptions(device, log_seconds=START, checkpoint_seconds=1e9)
                train(plan, root, TrainOptions(device) if kind == "whole" else bare)
            perf = pd.read_csv(stage_file(root, "perf.csv"))
            begun, ended = perf[perf.seconds >= START].iloc[0], perf.iloc[-1]
            rates[kind].append((ended.nimg - begun.nimg) / (ended.seconds - begun.seconds))
            print(f"{kind}: {rates[kind][-1]:,.1f} images/s", flush=True)
    return ratio(rates["whole"], rates["bare"])


def main(
    side: Annotated[int, typer.Option(help="Pixels a side.")] = 64,
    width: Annotated[int, typer.Option(help="ngf and ndf.")] = 64,
    batch_size: Annotated[int, typer.Option()] = 128,
    channels: Annotated[int, typer.Option(help="1 or 3.")] = 3,
    device: Annotated[str, typer.Option()] = "cuda" if torch.cuda.is_available() else "cpu",
    precision: Annotated[str, typer.Option(help="Of our loop: float32 or bfloat16.")] = "float32",
    jpeg_side: Annotated[int, typer.Option(help="Of the example's files; 0: the training's side.")] = 0,
    busy_processes: Annotated[int, typer.Option(help="Run beside the measurement.")] = 0,
    rounds: Annotated[int, typer.Option()] = 4,
    seconds: Annotated[float, typer.Option(help="Of one measurement; a round has four.")] = 3.0,
    with_overhead: Annotated[bool, typer.Option("--overhead", help="Measure the overhead instead.")] = False,
    serve_example: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Print the rates; see the top of this file."""
    torch.backends.cudnn.benchmark = True  # for both loops
    where = torch.device(device)
    if serve_example:
        rate = example(pictures(jpeg_side or side, channels), width, batch_size, where)
        for line in sys.stdin:
            print(rate(float(line)), flush=True)
        return
    keep_freed_memory()  # as every command that computes
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{side} px, width {width}, batch {batch_size}, {device} ({name}), torch {torch.__version__}")
    if with_overhead:
        share = overhead(side, width, batch_size, seconds, device)
        print(f"rate with logging, checkpoints and MLflow, relative to the rate without: {share:.3f}")
        return
    words = ["--side", side, "--width", width, "--batch-size", batch_size, "--channels", channels]
    words += ["--device", device, "--jpeg-side", jpeg_side]
    images = pictures(side, channels)
    step, loop, flop = ours(images, width, batch_size, where, precision)
    top = limit(where, torch.bfloat16 if precision == "bfloat16" else torch.float32)
    threads = torch.get_num_threads()
    measured: dict[str, list[float]] = {}
    with example_process([str(word) for word in words]) as theirs, busy(busy_processes):
        for _ in range(rounds):
            measured.setdefault("our step", []).append(step(seconds))
            measured.setdefault("our loop", []).append(loop(seconds))
            measured.setdefault("example", []).append(theirs(seconds))
            if where.type == "cpu" and threads > 1:
                torch.set_num_threads(1)
                measured.setdefault("our step, one thread", []).append(step(seconds))
                torch.set_num_threads(threads)
    for name, rates in measured.items():
        print(f"{name}: {statistics.median(rates):,.1f} images/s ({min(rates):,.1f} to {max(rates):,.1f})")
    reached = statistics.median(measured["our step"]) * flop
    print(
        f"our step: {flop / 1e9:.2f} GFLOP an image, {reached / 1e9:,.0f} GFLOP/s: {reached / top:.0%} of the"
    )
    print(f"limit, the {top / 1e9:,.0f} GFLOP/s of a matrix multiplication in {precision}")
    if one := measured.get("our step, one thread"):
        print(f"our step relative to one thread: {ratio(measured['our step'], one):.2f}")
    print(f"ratio {ratio(measured['our loop'], measured['example']):.2f}")


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Return the median over the rounds of the ratio of two rates."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


if __name__ == "__main__":
    typer.run(main)
