"""The networks, against the papers' figures and plain implementations of their equations."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from torch import nn

from ganpipe import models
from ganpipe.common.errors import UserError
from ganpipe.models.layers import NetworkSpec
from ganpipe.models.resize import Double
from ganpipe.params import Model, base_and_doublings, reaches

SIDES = (28, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
# Worked out by hand for the architectures that double the side: side → (smallest side, doublings).
DCGAN_SIDES = {28: (7, 2), 32: (4, 3), 64: (4, 4), 96: (6, 4), 128: (4, 5), 192: (6, 5)}
DCGAN_SIDES |= {256: (4, 6), 384: (6, 6), 512: (4, 7), 768: (6, 7), 1024: (4, 8)}
UPSAMPLE_SIDES = {28: (7, 2), 32: (8, 2), 64: (8, 3), 96: (6, 4), 128: (8, 4), 192: (6, 5)}
UPSAMPLE_SIDES |= {256: (8, 5), 384: (6, 6), 512: (8, 6), 768: (6, 7), 1024: (8, 7)}
REACHABLE = [
    (architecture, side)
    for architecture in models.ARCHITECTURES
    for side in SIDES
    if (architecture, side) != ("residual", 28)
]


def model(architecture: str = "dcgan", **changes: Any) -> Model:
    """Params of an architecture, narrow unless told otherwise."""
    values: dict[str, Any] = {"architecture": architecture, "nz": 10, "z_distribution": "normal"}
    values |= {"z_limit": None, "ngf": 2, "ndf": 2, "first_channels": None, "discriminator_norm": "batch"}
    values |= {"d_first_channels": None, "last_stride": 2, "trunk_halvings": 5, "conditional": False}
    return Model(**values | changes)


def both(params: Model, side: int, channels: int) -> tuple[nn.Module, nn.Module]:
    """Build the two networks."""
    spec = NetworkSpec(params, side, channels)
    return models.build_generator(spec), models.build_discriminator(spec)


def count(network: nn.Module) -> int:
    """Count a network's parameters."""
    return sum(p.numel() for p in network.parameters())


def test_dcgan_has_the_published_parameter_counts() -> None:
    """A failure means that the network at 64 px is not Radford's, so that no comparison with it holds."""
    counts = [count(network) for network in both(model(nz=100, ngf=64, ndf=64), 64, 3)]
    assert counts == [3_576_704, 2_765_568]


def sizes(network: nn.Module, *shape: int) -> list[tuple[int, ...]]:
    """Return (maps, side), or (numbers,), of the output of each layer that has weights."""
    outputs: list[tuple[int, ...]] = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            module.register_forward_hook(lambda _, inputs, out: outputs.append(tuple(out.shape[1:3])))
    network(torch.empty(2, *shape, device="meta"))
    return outputs


def test_sizes_are_the_papers() -> None:
    """A failure names a layer at which a recipe's network differs from its paper's figure."""
    with torch.device("meta"):
        marchesi = both(model(nz=100, first_channels=1024), 1024, 3)
        vlad = both(model("celeba64", nz=100, ngf=64, ndf=64, discriminator_norm="none"), 64, 3)
        stiff = both(model("upsample", nz=100, first_channels=128), 128, 3)
        xin = both(model("residual", nz=100, ngf=64, ndf=64), 96, 3)
    pyramid = [(1024, 4), (512, 8), (256, 16), (128, 32), (64, 64), (32, 128), (16, 256), (8, 512)]
    assert sizes(marchesi[0], 100) == [*pyramid, (3, 1024)]
    assert sizes(marchesi[1], 3, 1024, 1024) == [*pyramid[::-1], (1, 1)]

    blocks = [(512, 4), (256, 8), (128, 16), (64, 32)]
    assert sizes(vlad[0], 100) == [*blocks, (3, 64)]
    assert sizes(vlad[1], 3, 64, 64) == [*blocks[::-1], (1, 1)]

    assert sizes(stiff[0], 100) == [(8 * 8 * 128,), (64, 16), (32, 32), (16, 64), (3, 128)]
    assert sizes(stiff[1], 3, 128, 128) == [(16, 64), (32, 32), (64, 16), (128, 8), (1,)]

    down = [(64, 48), (128, 24), (256, 12), (512, 6), (512, 3)]
    up = [(512, 6), (256, 12), (128, 24), (64, 48), (3, 96)]
    assert sizes(xin[0], 100) == [(96 * 96,), *down, *[(512, 3)] * 18, *up]
    assert sizes(xin[1], 3, 96, 96) == [*down[:4], (512, 6), (512, 3), (1, 3)]


def test_sizes_of_xins_other_readings() -> None:
    """A failure means that the base networks do not start from 4×4, or that the trunk is not 24×24."""
    with torch.device("meta"):
        base = both(model(nz=100, ngf=64, ndf=64, last_stride=3), 96, 3)
        G = both(model("residual", nz=100, ngf=64, ndf=64, trunk_halvings=2), 96, 3)[0]
    assert sizes(base[0], 100) == [(512, 4), (256, 8), (128, 16), (64, 32), (3, 96)]
    assert sizes(base[1], 3, 96, 96) == [(64, 32), (128, 16), (256, 8), (512, 4), (1, 1)]
    down, up = [(64, 48), (128, 24), (256, 24)], [(256, 24), (128, 24), (64, 48), (3, 96)]
    assert sizes(G, 100) == [(96 * 96,), *down, *[(512, 24)] * 20, (512, 24), *up]


# Plain implementations: each takes the layers that have weights, in order, and an input.
Weights = Iterator[nn.Module]
Slope = float


def norm(weights: Weights, x: torch.Tensor) -> torch.Tensor:
    """Apply the next layer, a batch norm with the statistics of the batch."""
    layer: Any = next(weights)
    assert isinstance(layer, nn.BatchNorm2d)
    return F.batch_norm(x, None, None, layer.weight, layer.bias, training=True)


def apply(
    weights: Weights, function: Callable[..., torch.Tensor], x: torch.Tensor, **options: int
) -> torch.Tensor:
    """Call a function of torch.nn.functional with the next layer's weight and bias."""
    layer: Any = next(weights)
    assert not isinstance(layer, nn.BatchNorm2d)
    return function(x, layer.weight, layer.bias, **options)


def dcgan_generator(w: Weights, z: torch.Tensor, slope: Slope = 0.0, last: int = 2) -> torch.Tensor:
    """Compute DCGAN's generator at 64 px, or at 96 px with a last stride of 3."""
    x = apply(w, F.conv_transpose2d, z[:, :, None, None])
    for stride in (2, 2, 2, last):
        x = F.leaky_relu(norm(w, x), slope)
        x = apply(w, F.conv_transpose2d, x, stride=stride, padding=1)
    return torch.tanh(x)


def dcgan_discriminator(w: Weights, x: torch.Tensor, batch_norm: bool = True, first: int = 2) -> torch.Tensor:
    """Compute DCGAN's discriminator at 64 px, or at 96 px with a first stride of 3."""
    for i, stride in enumerate((first, 2, 2, 2)):
        x = apply(w, F.conv2d, x, stride=stride, padding=1)
        x = F.leaky_relu(norm(w, x) if batch_norm and i > 0 else x, 0.2)
    return apply(w, F.conv2d, x)[:, 0, 0, 0]


def resize_generator(w: Weights, z: torch.Tensor) -> torch.Tensor:
    """Compute our generator of the recipes beyond at 64 px."""
    x = F.relu(norm(w, apply(w, F.conv_transpose2d, z[:, :, None, None])))
    for _ in range(4):
        x = F.interpolate(x, scale_factor=2, mode="bilinear")
        x = F.relu(norm(w, apply(w, F.conv2d, x, padding=1)))
    return torch.tanh(apply(w, F.conv2d, x, padding=1))


def upsample_generator(w: Weights, z: torch.Tensor) -> torch.Tensor:
    """Compute Stiff's generator at 128 px with 128 maps first."""
    x = apply(w, F.linear, z).reshape(len(z), 128, 8, 8)
    for _ in range(4):
        x = F.leaky_relu(norm(w, x), 0.2).repeat_interleave(2, 2).repeat_interleave(2, 3)
        x = apply(w, F.conv2d, x, padding=2)
    return torch.tanh(x)


def upsample_discriminator(w: Weights, x: torch.Tensor, batch_norm: bool = True) -> torch.Tensor:
    """Compute Stiff's discriminator at 128 px."""
    for i in range(4):
        x = apply(w, F.conv2d, x, stride=2, padding=2)
        x = F.leaky_relu(norm(w, x) if batch_norm and i > 0 else x, 0.2)
    return apply(w, F.linear, x.reshape(len(x), -1))[:, 0]


def residual_generator(w: Weights, z: torch.Tensor, halvings: int = 5) -> torch.Tensor:
    """Compute Xin's generator at 96 px: y1 = F1(x0), x1 = x0 + y1; yk = Fk(x(k-1)), xk = yk + y1."""

    def residual_layer(x: torch.Tensor) -> torch.Tensor:
        x = F.relu(norm(w, apply(w, F.conv2d, x, padding=1)))
        return norm(w, apply(w, F.conv2d, x, padding=1))

    x = apply(w, F.linear, z).reshape(len(z), 1, 96, 96)
    for i in range(5):
        x = F.relu(norm(w, apply(w, F.conv2d, x, stride=2 if i < halvings else 1, padding=1)))
    xs, ys = [x], [torch.empty(0)]
    for k in range(1, 10):
        ys.append(residual_layer(xs[k - 1]))
        xs.append(xs[0] + ys[1] if k == 1 else ys[k] + ys[1])
    x = xs[9]
    for i in range(4, 0, -1):
        x = F.relu(norm(w, apply(w, F.conv_transpose2d, x, stride=2 if i < halvings else 1, padding=1)))
    return torch.tanh(apply(w, F.conv_transpose2d, x, stride=2, padding=1))


def residual_discriminator(w: Weights, x: torch.Tensor, batch_norm: bool = True) -> torch.Tensor:
    """Compute our reading of Xin's modified discriminator."""
    for i in range(5):
        if i == 4:
            x = apply(w, F.conv2d, x, padding=1)
        x = apply(w, F.conv2d, x, stride=2, padding=1)
        x = F.leaky_relu(norm(w, x) if batch_norm else x, 0.2)
    return apply(w, F.conv2d, x).mean((1, 2, 3))


IMPLEMENTATIONS: dict[str, tuple[int, Callable[..., torch.Tensor], Callable[..., torch.Tensor]]] = {
    "dcgan": (64, dcgan_generator, dcgan_discriminator),
    "celeba64": (64, lambda w, z: dcgan_generator(w, z, slope=0.2), dcgan_discriminator),
    "upsample": (128, upsample_generator, upsample_discriminator),
    "resize": (64, resize_generator, dcgan_discriminator),
    "residual": (96, residual_generator, residual_discriminator),
    "dcgan, last stride 3": (
        96,
        lambda w, z: dcgan_generator(w, z, last=3),
        lambda w, x, batch_norm: dcgan_discriminator(w, x, batch_norm, first=3),
    ),
    "residual, trunk of 24×24": (
        96,
        lambda w, z: residual_generator(w, z, halvings=2),
        residual_discriminator,
    ),
}
READINGS = {"dcgan, last stride 3": {"last_stride": 3}, "residual, trunk of 24×24": {"trunk_halvings": 2}}


@pytest.mark.parametrize("discriminator_norm", ["batch", "none"])
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_networks_compute_what_the_papers_write(name: str, discriminator_norm: str) -> None:
    """A failure means a layer order, norm, activation, padding or shortcut that is not the paper's."""
    side, generator, discriminator = IMPLEMENTATIONS[name]
    architecture = name.partition(",")[0]
    changes = {"first_channels": 128 if architecture == "upsample" else None} | READINGS.get(name, {})
    torch.manual_seed(0)
    params = model(architecture, **changes, discriminator_norm=discriminator_norm)
    networks = both(params, side, 3)
    for network in networks:
        for parameter in network.parameters():
            # Large enough that each layer, biases included, affects the output visibly.
            nn.init.normal_(parameter, 0.0, 0.2)
    G_weights, D_weights = (
        iter([m for m in network.modules() if next(m.parameters(recurse=False), None) is not None])
        for network in networks
    )
    z = torch.randn(3, 10)
    images = networks[0](z)
    torch.testing.assert_close(generator(G_weights, z), images, rtol=1e-5, atol=1e-5)
    logits = discriminator(D_weights, images, discriminator_norm == "batch")
    torch.testing.assert_close(logits, networks[1](images), rtol=1e-5, atol=1e-5)
    assert next(G_weights, None) is None and next(D_weights, None) is None


def test_a_gpu_doubles_sides_as_a_cpu_does() -> None:
    """A generator would sample other images on a GPU than those it was judged by on a CPU."""
    double, results = Double(3), []
    for way in (double, double.by_convolution):
        x = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
        images = way(x)
        images.square().sum().backward()
        results.append((images, x.grad))
    torch.testing.assert_close(*results)


def formula(architecture: str, side: int, channels: int, params: Model) -> tuple[int, int]:
    """Return the number of parameters of both networks in closed form."""
    nz, g, d, C = params.nz, params.ngf, params.ndf, channels
    batch = params.discriminator_norm == "batch"
    if architecture == "residual":
        down = 16 * (g + (2 + 8 + 32 + 64) * g**2)
        residual, up = 9 * 2 * 9 * 64 * g**2, 16 * (64 + 32 + 8 + 2) * g**2 + 16 * g * C + C
        norms = 2 * g * (1 + 2 + 4 + 8 + 8) + 9 * 2 * 2 * 8 * g + 2 * g * (8 + 4 + 2 + 1)
        D = 16 * (C * d + (2 + 8 + 32 + 64) * d**2) + 9 * 64 * d**2 + 8 * d + 1
        D += 2 * d * (1 + 2 + 4 + 8 + 8) if batch else d * (1 + 2 + 4 + 8 + 8 + 8)
        return (nz + 1) * side**2 + down + residual + up + norms, D
    dense_ends = architecture == "upsample"
    b, k = (UPSAMPLE_SIDES if dense_ends else DCGAN_SIDES)[side]
    # Between the ends: kernel · Σ (n·2^j)(n·2^(j+1)), j from 0 to k - 2, a geometric series.
    kernel, series = 25 if dense_ends else 16, 2 * (4 ** (k - 1) - 1) // 3
    G = nz * g * 2 ** (k - 1) * b**2 + kernel * (series * g**2 + g * C) + 2 * g * (2**k - 1)
    D = d * 2 ** (k - 1) * b**2 + kernel * (series * d**2 + d * C)
    D += 2 * d * (2**k - 2) if batch else d * (2**k - 1) + 1
    if architecture == "resize":
        G = nz * g * 2 ** (k - 1) * b**2 + 9 * ((series + 1) * g**2 + g * C) + 2 * g * 2**k
    if dense_ends:
        G += C
        D += d + 1 if batch else 0
    return G, D


@pytest.mark.parametrize("discriminator_norm", ["batch", "none"])
@pytest.mark.parametrize(("architecture", "side"), REACHABLE)
def test_parameter_counts(architecture: str, side: int, discriminator_norm: str) -> None:
    """A failure means an extra layer, a wrong width, or a bias or norm that the table does not have."""
    params = model(architecture, nz=7, ngf=3, ndf=5, discriminator_norm=discriminator_norm)
    for channels in (1, 3):
        with torch.device("meta"):
            G, D = both(params, side, channels)
        assert (count(G), count(D)) == formula(architecture, side, channels, params)


@pytest.mark.parametrize(("architecture", "side"), REACHABLE)
def test_every_reachable_side_trains(architecture: str, side: int) -> None:
    """A failure means that a side from the papers cannot be trained at, or that a layer gets no gradient."""
    torch.manual_seed(0)
    for channels in (1, 3):
        networks = both(model(architecture, ngf=1, ndf=1), side, channels)
        G, D = (network.to(memory_format=torch.channels_last) for network in networks)
        images = G(torch.randn(2 if side > 64 else 4, 10))
        logits = D(images)
        assert images.shape == (len(images), channels, side, side)
        assert images.dtype == logits.dtype == torch.float32 and logits.shape == (len(images),)
        assert -1 <= images.min() and images.max() <= 1
        (logits * torch.randn(len(logits))).sum().backward()
        for name, parameter in [*G.named_parameters(), *D.named_parameters()]:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
def test_memory_format_changes_nothing(architecture: str) -> None:
    """A failure means that channels-last networks, which training uses, compute something else."""
    torch.manual_seed(0)
    G, D = both(model(architecture), 64, 3)
    z = torch.randn(4, 10)
    images = G(z)
    logits = D(images)
    G, D = (network.to(memory_format=torch.channels_last) for network in (G, D))
    torch.testing.assert_close(G(z), images)
    torch.testing.assert_close(D(images), logits)


@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
def test_weights_start_as_the_paper_says(architecture: str) -> None:
    """A failure means that training does not start from N(0, 0.02), which changes its course."""
    torch.manual_seed(0)
    for network in both(model(architecture, nz=100, ngf=16, ndf=16, discriminator_norm="none"), 64, 3):
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert abs(module.weight.mean().item() - 1) < 0.02 and 0.005 < module.weight.std() < 0.04
            elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                spread = 0.02 / module.weight.numel() ** 0.5
                assert abs(module.weight.std().item() - 0.02) < 4 * spread
                assert abs(module.weight.mean().item()) < 4 * spread
            bias = getattr(module, "bias", None)
            assert bias is None or not bias.any()


@pytest.mark.parametrize(
    ("params", "side", "message"),
    [
        (model(), 100, r"dcgan cannot produce 100 px; give 4 to 7 px times 2, .* as 8 or 28"),
        (model(last_stride=3), 64, r"cannot produce 64 px; give 4 to 7 px times 3, .* such as 12 or 42"),
        (model("celeba64"), 9, "preprocess.resolution: architecture celeba64 cannot produce 9 px"),
        (
            model("upsample"),
            8,
            "preprocess.resolution: architecture upsample cannot produce 8 px; give 5 to 8",
        ),
        (model("residual"), 28, "preprocess.resolution: architecture residual cannot produce 28 px"),
        (model("residual", first_channels=64), 64, "model.first_channels: found 64, but .* give null"),
        (model("residual", d_first_channels=64), 64, "model.d_first_channels: found 64, but .* give null"),
        (model(first_channels=127), 1024, "model.first_channels: found 127, .* give 128 or more, or null"),
        (
            model("upsample", first_channels=1),
            28,
            "model.first_channels: found 1, .* give 2 or more, or null",
        ),
    ],
)
def test_unsupported_params_get_one_sentence(params: Model, side: int, message: str) -> None:
    """A failure means a traceback or a silently different network for params that the user can correct."""
    for build in (models.build_generator, models.build_discriminator):
        with pytest.raises(UserError, match=message):
            build(NetworkSpec(params, side, 3))


def test_first_channels_replace_ngf_and_ndf() -> None:
    """A failure means that the widths of Marchesi's networks depend on params that should not matter."""
    for architecture in ("dcgan", "celeba64", "upsample"):
        doublings = (UPSAMPLE_SIDES if architecture == "upsample" else DCGAN_SIDES)[64][1]
        by_width = both(model(architecture, ngf=2, ndf=2), 64, 3)
        by_first = both(model(architecture, ngf=9, ndf=7, first_channels=2 * 2 ** (doublings - 1)), 64, 3)
        for one, other in zip(by_width, by_first, strict=True):
            assert [p.shape for p in one.parameters()] == [p.shape for p in other.parameters()]
    with torch.device("meta"):
        G = models.build_generator(NetworkSpec(model(first_channels=100), 64, 3))
    assert sizes(G, 10) == [(100, 4), (50, 8), (25, 16), (12, 32), (3, 64)]


@pytest.mark.parametrize("architecture", ["dcgan", "celeba64", "upsample"])
def test_d_first_channels_widen_the_discriminator_alone(architecture: str) -> None:
    """A failure means that D is bound to G's widths: at 1024 px Marchesi's D would begin with 8 maps."""
    mirrored, alone = (
        both(model(architecture, first_channels=16, d_first_channels=wide), 64, 3) for wide in (None, 64)
    )
    wide = both(model(architecture, first_channels=64), 64, 3)
    shapes = [
        [[p.shape for p in network.parameters()] for network in pair] for pair in (mirrored, alone, wide)
    ]
    assert shapes[1] == [shapes[0][0], shapes[2][1]]
    with pytest.raises(UserError, match="model.d_first_channels: found 3, .* give . or more, or null"):
        both(model(architecture, d_first_channels=3), 64, 3)


def test_marchesis_discriminator_from_64_maps_on() -> None:
    """A failure means that the recipe's comment names another width than the one of 64 maps at 512×512."""
    with torch.device("meta"):
        D = both(model(first_channels=1024, d_first_channels=8192), 1024, 3)[1]
    assert sizes(D, 3, 1024, 1024)[0] == (64, 512)


def test_base_and_doublings() -> None:
    """A failure means that networks start from another side than in the papers: 192, 384, 768 from 6×6."""
    for architecture, table in (
        ("dcgan", DCGAN_SIDES),
        ("celeba64", DCGAN_SIDES),
        ("upsample", UPSAMPLE_SIDES),
    ):
        assert {side: base_and_doublings(architecture, side) for side in SIDES} == table
    assert [base_and_doublings("dcgan", side) for side in (4, 7, 9, 33, 100)] == [None] * 5
    for side in range(8, 2049):
        if factors := base_and_doublings("dcgan", side):
            base, doublings = factors
            assert base * 2**doublings == side and 4 <= base <= 7 and doublings >= 1
    assert reaches("residual", 96) and not reaches("residual", 28)


STEP = """
import json, pathlib, resource, sys
import torch
from ganpipe import models, params
from ganpipe.experiments.recipes import apply_settings, recipe_settings
from ganpipe.models.layers import NetworkSpec
from ganpipe.train import losses

values = params.load(pathlib.Path("params.yaml"))
settings = recipe_settings(values, "marchesi2017-1024", [f"model.d_first_channels={sys.argv[1]}"])
spec = NetworkSpec(apply_settings(values, settings, "test").model, 1024, 3)
layout = {"memory_format": torch.channels_last}
G, D = models.build_generator(spec).to(**layout), models.build_discriminator(spec).to(**layout)
optimizers = [torch.optim.Adam(n.parameters(), 2e-4, (0.5, 0.999), fused=True) for n in (D, G)]
real, fake = torch.rand(6, 3, 1024, 1024) * 2 - 1, G(torch.rand(6, 100) * 2 - 1)
d_loss = losses.d_loss_real(D(real), 1.0) + losses.d_loss_fake(D(fake.detach()), 0.0)
d_loss.backward()
optimizers[0].step()
D.requires_grad_(False)
g_loss = losses.g_loss(D(fake))
g_loss.backward()
optimizers[1].step()
print(json.dumps({"losses": [d_loss.item(), g_loss.item()],
                  "gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}))
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("maps", "d_first_channels", "fits"), [(8, 1024, True), (32, 4096, True), (64, 8192, False)]
)
def test_marchesi_at_1024_px_fits_in_12_gb(maps: int, d_first_channels: int, fits: bool) -> None:
    """A failure means that docs/studies/marchesi2017.md is wrong about which discriminators need 12 GB."""
    needed = 7 if fits else 18
    if psutil.virtual_memory().available < needed * 1e9:
        pytest.skip(f"needs {needed} GB of free memory")
    run = subprocess.run(
        [sys.executable, "-c", STEP, str(d_first_channels)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    print(maps, result)
    assert (result["gb"] < 12) == fits
    assert all(map(math.isfinite, result["losses"]))
