"""A trained generator as one file that needs no ganpipe: ONNX, a program of PyTorch's (pt2), or bare weights.

Beside the file stands a short script that loads it and makes images.
"""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ganpipe.commands import trained
from ganpipe.common import files
from ganpipe.common.errors import UserError
from ganpipe.models import generator as snapshot
from ganpipe.models.generator import TrainedGenerator
from ganpipe.params import Model

FORMATS = ("onnx", "pt2", "safetensors")
SEEDS = 64  # of the images on which a file must agree with the network
TOLERANCE = 1e-4  # of float images in [-1, 1]

ImagesOf = Callable[[np.ndarray], np.ndarray]  # float32 N×nz → float32 N×C×H×W in [-1, 1]

NORM = """def norm(x, name):
    return F.batch_norm(x, *(w[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")))
"""
# What each kind of generator does with its weights `w`.
FORWARD = {
    "dcgan": """x = F.conv_transpose2d(torch.from_numpy(z)[:, :, None, None], w["layers.0.weight"])
for i in range(1, LAST, 3):
    x = F.leaky_relu(norm(x, f"layers.{i}"), SLOPE)
    x = F.conv_transpose2d(x, w[f"layers.{i + 2}.weight"], stride=2, padding=1)
""",
    "upsample": """x = norm(F.linear(torch.from_numpy(z), w["dense.weight"]).unflatten(1, START), "layers.0")
for i in range(3, LAST + 1, 4):
    x = F.interpolate(F.leaky_relu(x, 0.2), scale_factor=2)
    x = F.conv2d(x, w[f"layers.{i}.weight"], w.get(f"layers.{i}.bias"), padding=2)
    x = norm(x, f"layers.{i + 1}") if i < LAST else x
""",
    "residual": """x = F.linear(torch.from_numpy(z), w["dense.weight"], w["dense.bias"]).unflatten(1, START)
for i in range(0, 15, 3):
    x = F.relu(norm(F.conv2d(x, w[f"down.{i}.weight"], stride=2, padding=1), f"down.{i + 1}"))
for i in range(9):
    y = F.relu(norm(F.conv2d(x, w[f"residual.{i}.0.weight"], padding=1), f"residual.{i}.1"))
    y = norm(F.conv2d(y, w[f"residual.{i}.3.weight"], padding=1), f"residual.{i}.4")
    first = y if i == 0 else first
    x = y + (x if i == 0 else first)
for i in range(0, 15, 3):
    x = F.conv_transpose2d(x, w[f"up.{i}.weight"], w.get(f"up.{i}.bias"), stride=2, padding=1)
    x = F.relu(norm(x, f"up.{i + 1}")) if i < 12 else x
""",
}


def export(source: str | None, form: str, out: Path | None = None, root: Path = Path()) -> None:
    """Write a generator as a file, check it on 64 seeds, and write and print how to load it without ganpipe.

    Args:
        source: as in `trained.find`.
        form: onnx or pt2, networks for any number of z at a time, or safetensors, the weights.
        out: the file, its suffix the form; None: generator.<form>.
        root: the checkout.

    Raises:
        UserError: no such form or generator, a package is missing, or the file gives other images.
    """
    if form not in FORMATS:
        raise UserError(f"--format: found {form!r}, but it must be one of {', '.join(FORMATS)}")
    out = out or Path(f"generator.{form}")
    if out.suffix != f".{form}" or out.is_dir():
        raise UserError(f"--out: found {out}, but it must name a file that ends in .{form}")
    if form == "onnx":
        _need("onnx", "onnxscript", "onnxruntime")
    generator = trained.find(source, root)
    with files.whole(out) as path:
        difference = {"onnx": _onnx, "pt2": _pt2, "safetensors": _safetensors}[form](generator, path)
        if not difference <= TOLERANCE:
            raise UserError(
                f"{out}: not written, its images differ from the network's by {difference:.2g}; allowed are "
                f"{TOLERANCE:g}"
            )
    script = script_for(generator, form, out.name)
    with files.whole(out.with_name(f"{out.name}.py")) as path:
        path.write_text(script, encoding="utf-8")
    print(
        f"{out}: {out.stat().st_size / 1e6:.1f} MB; largest difference to the network over {SEEDS} seeds: "
        f"{difference:.2g}, in images from -1 to 1\n{out}.py loads it without ganpipe:\n\n{script}",
        end="",
    )


def _need(*packages: str) -> None:
    from importlib.util import find_spec

    if missing := [name for name in packages if find_spec(name) is None]:
        raise UserError(f"--format onnx needs {', '.join(missing)}; `pip install 'ganpipe[export]'`")


def _z(generator: TrainedGenerator) -> torch.Tensor:
    return snapshot.z_of_seeds(generator.spec.params, 0, SEEDS, 1.0)


def _difference(generator: TrainedGenerator, images_of: ImagesOf) -> float:
    """Return the largest difference of an exported network's images, in batches of 1, 3 and the others."""
    parts = _z(generator).split([1, 3, SEEDS - 4])
    both = [(images_of(z.numpy()), generator.network(z).numpy()) for z in parts]
    return max(float(np.abs(found - expected).max()) for found, expected in both)


def _program(generator: TrainedGenerator) -> torch.export.ExportedProgram:
    shapes = ({0: torch.export.Dim("n", min=1)},)
    return torch.export.export(generator.network, (_z(generator)[:2],), dynamic_shapes=shapes)


def _onnx(generator: TrainedGenerator, path: Path) -> float:
    import onnxruntime

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _program(generator),
            (),
            path,
            input_names=["z"],
            output_names=["images"],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return _difference(generator, lambda z: session.run(None, {"z": z})[0])


def _pt2(generator: TrainedGenerator, path: Path) -> float:
    with open(path, "wb") as file:
        torch.export.save(_program(generator), file)
    with open(path, "rb") as file:
        G = torch.export.load(file).module()
    return _difference(generator, lambda z: G(torch.from_numpy(z)).numpy())


def _safetensors(generator: TrainedGenerator, path: Path) -> float:
    snapshot.save_generator(generator.network, generator.spec, path)
    G = snapshot.load_generator(path).network
    return _difference(generator, lambda z: G(torch.from_numpy(z)).numpy())


def script_for(generator: TrainedGenerator, form: str, name: str) -> str:
    """Return Python that makes eight images with a file of that name beside it, without ganpipe."""
    packages = {"onnx": "onnxruntime", "pt2": "torch", "safetensors": "torch safetensors"}[form]
    lines = [f"# Images of {name}: pip install {packages} numpy pillow", "import numpy as np"]
    lines += {
        "onnx": ["import onnxruntime"],
        "pt2": ["import torch"],
        "safetensors": ["import torch", "from safetensors.torch import load_file"],
    }[form]
    lines += ["from PIL import Image"]
    lines += ["from torch.nn import functional as F"] if form == "safetensors" else []
    lines += ["", *_draw(generator.spec.params)]
    if form == "onnx":
        lines += [f'images = onnxruntime.InferenceSession("{name}").run(None, {{"z": z}})[0]']
    elif form == "pt2":
        lines += [f'images = torch.export.load("{name}").module()(torch.from_numpy(z)).numpy()']
    else:
        lines += [f'w = load_file("{name}")', "", "", *NORM.splitlines(), "", "", *_forward(generator)]
        lines += ["images = x.tanh().numpy()"]
    lines += ['images = ((images + 1) * 127.5).round().clip(0, 255).astype("uint8").transpose(0, 2, 3, 1)']
    lines += ["for i, image in enumerate(images):", '    Image.fromarray(image.squeeze()).save(f"{i}.png")']
    return "\n".join(lines) + "\n"


def _draw(model: Model) -> list[str]:
    """Return lines that draw z as the training did; NumPy's seeds give other numbers than ours."""
    lines, shape = ["rng = np.random.default_rng(0)"], (8, model.nz)
    if model.z_distribution == "uniform":
        return [*lines, f'z = rng.uniform(-{model.z_limit}, {model.z_limit}, {shape}).astype("float32")']
    lines += [f'z = rng.standard_normal({shape}, "float32")']
    if model.z_limit is not None:
        lines += [f"while (beyond := np.abs(z) > {model.z_limit}).any():"]
        lines += ['    z[beyond] = rng.standard_normal(beyond.sum(), "float32")']
    return lines


def _forward(generator: TrainedGenerator) -> list[str]:
    kind = "dcgan" if generator.spec.params.architecture == "celeba64" else generator.spec.params.architecture
    start = getattr(generator.network, "start", ())
    last = max(
        (int(name.split(".")[1]) for name in generator.network.state_dict() if "layers" in name), default=0
    )
    slope = 0.2 if generator.spec.params.architecture == "celeba64" else 0.0
    text = FORWARD[kind].replace("LAST", str(last)).replace("SLOPE", str(slope))
    return text.replace("START", str(tuple(start))).splitlines()
