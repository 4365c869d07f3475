"""Typed sections of params.yaml: frozen, without defaults; all wrong values are reported together."""

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ganpipe.common.errors import UserError

PARAMS_FILE = Path("params.yaml")

Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, lt=10, allow_inf_nan=False)]
Tau = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]

# Smallest sides in pixels from which an architecture doubles; residual halves its side five times.
BASES = {"dcgan": (4, 5, 6, 7), "celeba64": (4, 5, 6, 7), "upsample": (5, 6, 7, 8), "resize": (4, 5, 6, 7)}
RESIDUAL_STEP = 32


def base_and_doublings(architecture: str, side: int, last_stride: int = 2) -> tuple[int, int] | None:
    """Return (base, doublings ≥ 1), side = base · 2^(doublings - 1) · last_stride px; None: impossible."""
    for base in BASES[architecture]:
        factor, rest = divmod(2 * side, base * last_stride)
        if rest == 0 and factor >= 2 and factor & (factor - 1) == 0:
            return base, factor.bit_length() - 1
    return None


def reaches(architecture: str, side: int, last_stride: int = 2) -> bool:
    """Tell whether an architecture can be built for a side in pixels."""
    if architecture == "residual":
        return side % RESIDUAL_STEP == 0
    return base_and_doublings(architecture, side, last_stride) is not None


class Section(BaseModel):
    """One section of params.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Fetch(Section):
    """Where the pictures come from."""

    source: Literal[
        "mnist5k", "mnist", "fashion_mnist", "flowers102", "celeba", "cat", "animeface",
        "folder", "archive", "webdataset", "parquet", "url",
    ]  # fmt: skip
    path: Annotated[str, Field(min_length=1)]
    url: Annotated[str, Field(pattern=r"^https?://\S+$")] | None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None

    @model_validator(mode="after")
    def _url_and_sha256_belong_to_a_source(self) -> Self:
        if (self.source == "url") != (self.url is not None):
            raise ValueError("url must be an address when source is url, and null otherwise")
        if self.sha256 is not None and self.source not in ("url", "archive"):
            raise ValueError("sha256 may only be set when source is url or archive")
        return self


class Preprocess(Section):
    """How pictures become training images."""

    crop: Literal["none", "square", "smart", "pad", "centre", "box", "landmarks"]
    crop_size: Positive | None
    crop_box: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=4, max_length=4)] | None
    margin: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]
    min_side: Positive
    resolution: Annotated[int, Field(ge=8, le=4096)]
    channels: Literal[1, 3]
    background: Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=3, max_length=3)]
    held_out: Annotated[float, Field(ge=0, le=0.9, allow_inf_nan=False)]
    max_rejected: Share
    duplicates: Literal["report", "drop"]
    max_images: Positive | None
    shard_mb: Positive | None

    @model_validator(mode="after")
    def _sizes_belong_to_the_crop(self) -> Self:
        if (self.crop == "centre") != (self.crop_size is not None):
            raise ValueError("crop_size must be a number of pixels when crop is centre, and null otherwise")
        if (self.crop == "box") != (self.crop_box is not None):
            raise ValueError("crop_box must be four numbers when crop is box, and null otherwise")
        if self.crop_box is not None:
            left, top, right, bottom = self.crop_box
            if right - left != bottom - top or right <= left:
                raise ValueError("crop_box must be the left, top, right and bottom of a square")
        return self


class Model(Section):
    """The two networks and the distribution of z."""

    architecture: Literal["dcgan", "celeba64", "upsample", "residual", "resize"]
    nz: Positive
    z_distribution: Literal["normal", "uniform"]
    z_limit: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None
    ngf: Positive
    ndf: Positive
    first_channels: Positive | None
    d_first_channels: Positive | None
    discriminator_norm: Literal["batch", "none"]
    last_stride: Literal[2, 3]
    trunk_halvings: Annotated[int, Field(ge=1, le=5)]
    conditional: bool

    @model_validator(mode="after")
    def _values_belong_together(self) -> Self:
        if self.z_distribution == "uniform" and self.z_limit is None:
            raise ValueError("z_limit must be a number when z_distribution is uniform; 1.0 for [-1, 1]")
        if self.last_stride == 3 and self.architecture not in ("dcgan", "celeba64"):
            raise ValueError("last_stride must be 2 unless architecture is dcgan or celeba64")
        if self.trunk_halvings != 5 and self.architecture != "residual":
            raise ValueError("trunk_halvings must be 5 unless architecture is residual")
        return self


class Train(Section):
    """The training run."""

    epochs: Positive | None
    steps: Positive | None
    batch_size: Annotated[int, Field(ge=2)] | None
    batch_per_resolution: dict[str, Annotated[int, Field(ge=2)]]
    dlr: Rate
    glr: Rate
    beta1: Decay
    beta2: Decay
    real_label: Share
    fake_label: Share
    g_label: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
    flip: bool
    ema_halflife_kimg: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None
    seed: Seed
    augment: list[Literal["colour", "translation", "cutout", "jitter"]]
    drift_weight: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]
    drift_fade_from: Share
    drift_taus: Annotated[list[Tau], Field(min_length=1)]
    drift_resolution: Annotated[int, Field(ge=32, le=1024)] | None
    drift_positives: Annotated[int, Field(ge=2)]
    drift_bank: Annotated[int, Field(ge=2)]
    extra_update_every: Positive | None
    extra_update_players: Literal["turns", "both"]
    d_batches: Literal["separate", "mixed"]
    micro_batch_size: Positive | None
    snapshot_epochs: list[Positive]
    eval_every_kimg: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None
    keep: Literal["best", "last"]
    on_nonfinite: Literal["stop", "rescue"]
    on_collapse: Literal["warn", "stop", "rollback"]
    precision: Literal["float32", "bfloat16"]
    sync_batch_norm: bool

    @model_validator(mode="after")
    def _has_one_length_and_best_is_judged(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            found = f"found epochs {self.epochs} and steps {self.steps}"
            raise ValueError(f"{found}; set one of them to a number and the other to null")
        if self.keep == "best" and self.eval_every_kimg is None:
            raise ValueError("keep=best needs eval_every_kimg, a number, to decide what weights are best")
        return self

    @field_validator("batch_per_resolution")
    @classmethod
    def _keys_are_sides(cls, table: dict[str, int]) -> dict[str, int]:
        if bad := ", ".join(repr(key) for key in table if not re.fullmatch("[1-9][0-9]*", key)):
            raise ValueError(f"keys must be quoted sides in pixels such as '64', found {bad}")
        return table

    def batch_size_for(self, resolution: int) -> int:
        """Return the number of images in one step at a resolution in pixels.

        Raises UserError: batch_size is null and the table has no entry at or above the resolution.
        """
        if self.batch_size is not None:
            return self.batch_size
        sides = sorted(int(key) for key in self.batch_per_resolution if int(key) >= resolution)
        if not sides:
            source = f"train.batch_per_resolution, which has no entry at or above {resolution} px"
            remedy = f"set train.batch_size or add an entry '{resolution}'"
            raise UserError(f"train.batch_size: null takes it from {source}; {remedy}")
        return self.batch_per_resolution[str(sides[0])]


class Sample(Section):
    """The generated images."""

    count: Positive
    seed: Seed
    z_scale: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    intervals: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]]
    traversal_elements: list[Annotated[int, Field(ge=0)]] | None


class Evaluate(Section):
    """The protocol of the metrics."""

    extractor: Literal["lite0", "lite2", "inception", "dinov2_vits14", "pixels"]
    second_extractor: Literal["lite0", "lite2"] | None
    weights: str | None
    feature_resolution: Annotated[int, Field(ge=32, le=1024)]
    seeds: Positive
    snapshots: bool
    search_images: Positive | None
    rank_by: Literal["layout_mmd", "layout_kid", "kid"]
    neighbours: Positive
    kid_subsets: Positive
    kid_subset_size: Annotated[int, Field(ge=2)]
    seed: Seed


class Params(Section):
    """All of params.yaml."""

    fetch: Fetch
    preprocess: Preprocess
    model: Model
    train: Train
    sample: Sample
    evaluate: Evaluate
    recipes: dict[str, list[str]]
    grids: dict[str, list[str]]

    @property
    def experiment(self) -> dict[str, dict[str, Any]]:
        """The values of an experiment by section: everything except recipes and grids."""
        return self.model_dump(exclude={"recipes", "grids"})

    @model_validator(mode="after")
    def _side_can_be_built(self) -> Self:
        side, architecture, k = self.preprocess.resolution, self.model.architecture, self.model.last_stride
        if not reaches(architecture, side, k):
            bases = ", ".join(map(str, BASES.get(architecture, ())))
            rule = f"{bases} times {k}, {2 * k}, {4 * k} …" if bases else f"multiples of {RESIDUAL_STEP}"
            spans = (range(side, 7, -1), range(side, 8193))
            near = [next((str(s) for s in span if reaches(architecture, s, k)), None) for span in spans]
            raise ValueError(
                f"preprocess.resolution: {side} px is not reached by architecture {architecture} ({rule}); "
                f"the nearest possible sides are {' and '.join(filter(None, near))}"
            )
        return self


def load(path: Path = PARAMS_FILE) -> Params:
    """Read params.yaml as YAML 1.2, where 2e-05, as DVC writes it, is a number; UserError: all faults."""
    from ruamel.yaml import YAML  # here, so that networks can be built where it is not installed
    from ruamel.yaml.error import YAMLError

    try:
        values = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run this in the folder of dvc.yaml") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else f"{path}"
        raise UserError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected sections such as 'train:', found {type(values).__name__}")
    return parse(values, str(path))


def parse(values: dict[str, Any], origin: str) -> Params:
    """Check plain values against the sections; raise a UserError with a line for each wrong value."""
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        missing = {d["loc"] for d in error.errors() if d["type"] == "missing"}
        lines = [f"{origin}: {_explain(dict(detail), missing)}" for detail in error.errors()]
        raise UserError("\n".join(lines)) from None


def _explain(detail: dict[str, Any], missing: set[tuple[Any, ...]]) -> str:
    """Describe a wrong value: dotted name, what was found, what is allowed, the nearest valid name."""
    *above, key = detail["loc"] or ("",)
    name, kind, value = ".".join(map(str, detail["loc"])), detail["type"], detail["input"]
    if kind == "extra_forbidden":
        section = Params.__annotations__[above[0]] if above else Params
        # A misspelt key is reported twice, as unknown and as missing: suggest the missing one first.
        absent = [str(path[-1]) for path in missing if path[:-1] == (*above,)]
        known = list(section.model_fields)
        near = difflib.get_close_matches(str(key), absent) or difflib.get_close_matches(str(key), known)
        hint = f"did you mean {'.'.join([*above, near[0]])}?" if near else f"known: {', '.join(known)}"
        return f"{name}: unknown key; {hint}"
    if kind == "missing":
        return f"{name}: missing key; the file must set every value"
    if kind == "value_error":
        message = detail["msg"].removeprefix("Value error, ")
        return f"{name}: {message}" if name else message
    found = type(value).__name__ if isinstance(value, dict | list) else repr(value)
    message = detail["msg"][0].lower() + detail["msg"][1:]
    choices = detail.get("ctx", {}).get("expected", "").replace(" or ", ", ").split(", ")
    near = difflib.get_close_matches(str(value), [choice.strip("'") for choice in choices])
    return f"{name}: found {found}, but {message}" + (f"; did you mean {near[0]}?" if near else "")
