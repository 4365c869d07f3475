"""Write a trained generator as a file that other programs load: ONNX, PyTorch's pt2, or safetensors."""

import textwrap
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ganpipe.commands.trained import find_generator
from ganpipe.common.errors import UserError
from ganpipe.common.files import whole
from ganpipe.models.generator import (
    HEADER,
    TrainedGenerator,
    load_generator,
    save_generator,
    with_classes,
    z_of_seeds,
)
from ganpipe.params import Model

SEEDS = 64  # number of images that a file is checked on, in batches of 1, 3 and the rest
TOLERANCE = 1e-4  # largest allowed difference of float images in [-1, 1]

# z, float32 N×nz, and with classes the number of each image's, int64 N → float32 N×C×H×W in [-1, 1].
Generate = Callable[..., torch.Tensor]


class OfClass(nn.Module):
    """A conditional generator that takes z and the number of each image's class."""

    def __init__(self, generator: TrainedGenerator) -> None:
        super().__init__()
        self.network, self.spec = generator.network, generator.spec

    def forward(self, z: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
        """Turn z, float32 N×nz, and classes, int64 N, into images float32 N×C×H×W in [-1, 1]."""
        return self.network(with_classes(self.spec, z, number))


def export(source: str | None, form: str, out: Path | None = None, root: Path = Path()) -> None:
    """Export the generator that `find_generator` loads, check the file on 64 seeds, and print how to load it.

    The form is onnx or pt2, networks for any number of z at a time, or safetensors, the weights alone. The
    file `out` has the form as its suffix; its default is generator.<form>.

    Raises:
        UserError: `out` has another suffix, the generator is not found, a package is missing, or the file's
            images differ from the network's.
    """
    out = out or Path(f"generator.{form}")
    if out.suffix != f".{form}" or out.is_dir():
        raise UserError(f"--out: found {out}, but it must name a file that ends in .{form}")
    packages = ("onnx", "onnxscript", "onnxruntime") if form == "onnx" else ()
    if missing := [name for name in packages if find_spec(name) is None]:
        raise UserError(f"--format onnx needs {', '.join(missing)}; run `pip install 'ganpipe[export]'`")
    generator = find_generator(source, root)
    inputs = _inputs(generator, SEEDS)
    batches = list(zip(*(tensor.split([1, 3, SEEDS - 4]) for tensor in inputs), strict=True))
    with whole(out) as path:
        G, network = WRITERS[form](generator, path), _network(generator)
        difference = max(float((G(*batch) - network(*batch)).abs().max()) for batch in batches)
        if not difference <= TOLERANCE:
            problem = f"its images differ from the network's by {difference:.2g}, more than {TOLERANCE:g}"
            raise UserError(f"{out}: not written, because {problem}")
    print(
        f"{out}: {out.stat().st_size / 1e6:.1f} MB; largest difference from the network over {SEEDS} seeds: "
        f"{difference:.2g}, in images from -1 to 1\n\n{usage(generator, form, out.name)}"
    )


def _network(generator: TrainedGenerator) -> nn.Module:
    return OfClass(generator) if generator.spec.classes else generator.network


def _inputs(generator: TrainedGenerator, n: int) -> tuple[torch.Tensor, ...]:
    """Return n z of seeds, and where there are classes n numbers of them in turn."""
    classes = len(generator.spec.classes)
    return z_of_seeds(generator.spec.params, 0, n, 1.0), *((torch.arange(n) % classes,) if classes else ())


def usage(generator: TrainedGenerator, form: str, name: str) -> str:
    """Return how to load the file `name`: lines of Python, and what they take and return."""
    spec = generator.spec
    distribution, module, draw = _z_distribution(spec.params)
    arrays, tensors = '{"z": z}', "torch.from_numpy(z)"
    if spec.classes:
        arrays, tensors = '{"z": z, "class": number}', f"{tensors}, torch.from_numpy(number)"
    package, load = {
        "onnx": ("onnxruntime", f'images = onnxruntime.InferenceSession("{name}").run(None, {arrays})[0]'),
        "pt2": ("torch", f'images = torch.export.load("{name}").module()({tensors}).numpy()'),
        "safetensors": ("safetensors.torch", f'weights = safetensors.torch.load_file("{name}")'),
    }[form]
    lines = [f"import {module}, {package}", f'z = {draw}.astype("float32")', load]
    side = f"{spec.channels}×{spec.resolution}×{spec.resolution}"
    notes = [f"z is float32 N×{spec.params.nz}, {distribution}; images are float32 N×{side} from -1 to 1."]
    if spec.classes:
        lines.insert(2, 'import numpy; number = numpy.full(8, 0, "int64")')
        notes += [f"number is the class of each image, int64 N: 0 to {len(spec.classes) - 1}, in this order:"]
        notes += textwrap.wrap(", ".join(spec.classes), 100)
        if form == "safetensors":
            notes += ["ganpipe.models.generator.with_classes joins z and number to the network's input."]
    if form == "safetensors":
        notes += [f'The key "{HEADER}" of the header\'s metadata describes the network, which']
        notes += [f'ganpipe.models.generator.load_generator(Path("{name}")).network builds.']
    return "\n".join([*(f"    {line}" for line in lines), "", *notes])


def _z_distribution(model: Model) -> tuple[str, str, str]:
    """Return the distribution of z in training: in words, and as a module and a call that draws 8 z."""
    limit, size = model.z_limit, f"(8, {model.nz})"
    if model.z_distribution == "uniform":
        return f"uniform in [-{limit}, {limit}]", "numpy", f"numpy.random.uniform(-{limit}, {limit}, {size})"
    if limit is None:
        return "standard normal", "numpy", f"numpy.random.standard_normal({size})"
    words = f"standard normal, truncated to [-{limit}, {limit}]"
    return words, "scipy.stats", f"scipy.stats.truncnorm.rvs(-{limit}, {limit}, size={size})"


def _program(generator: TrainedGenerator) -> torch.export.ExportedProgram:
    inputs = _inputs(generator, 2)
    any_count = tuple({0: torch.export.Dim("n", min=1)} for _ in inputs)
    return torch.export.export(_network(generator), inputs, dynamic_shapes=any_count)


def _onnx(generator: TrainedGenerator, path: Path) -> Generate:
    import onnxruntime

    inputs = ["z", "class"] if generator.spec.classes else ["z"]
    names: dict[str, Any] = {"input_names": inputs, "output_names": ["images"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = _program(generator)
        torch.onnx.export(program, (), path, **names, dynamo=True, external_data=False, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def generate(*tensors: torch.Tensor) -> torch.Tensor:
        arrays = {name: tensor.numpy() for name, tensor in zip(inputs, tensors, strict=True)}
        return torch.from_numpy(session.run(None, arrays)[0])

    return generate


def _pt2(generator: TrainedGenerator, path: Path) -> Generate:
    with open(path, "wb") as file:
        torch.export.save(_program(generator), file)
    with open(path, "rb") as file:
        return torch.export.load(file).module()


def _safetensors(generator: TrainedGenerator, path: Path) -> Generate:
    save_generator(generator.network, generator.spec, path)
    return _network(load_generator(path))


# Each writes a generator to a file, and returns what another program loads from it.
WRITERS = {"onnx": _onnx, "pt2": _pt2, "safetensors": _safetensors}
