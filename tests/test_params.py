"""params.yaml: what is accepted, and how what is not is said."""

import re
from pathlib import Path

import pytest
from conftest import ROOT, updated

from ganpipe import params
from ganpipe.common.errors import UserError
from ganpipe.params import Params


def complaint(text: str, tmp_path: Path) -> str:
    """Return the message for the text of a params.yaml."""
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        params.load(path)
    return str(caught.value).replace(str(tmp_path), "")


def edited(pattern: str, replacement: str) -> str:
    """Return the repository's params.yaml with one line changed."""
    text = (ROOT / "params.yaml").read_text()
    changed, count = re.subn(pattern, replacement, text, count=1, flags=re.M)
    assert count == 1, pattern
    return changed


def test_no_section_has_a_default_value(default_params: Params) -> None:
    """A default in the code is a second home of a value, which DVC does not see."""
    sections = [Params, *(getattr(params, name.title()) for name in default_params.experiment)]
    for section in sections:
        for name, field in section.model_fields.items():
            assert field.is_required(), name


def test_every_key_is_commented_and_in_block_style() -> None:
    """DVC rewrites flow lists when it sets a value, and a user learns what a key means from its comment."""
    # Below the sections stand recipes and grids, lists of words.
    lines = (ROOT / "params.yaml").read_text().split("\nrecipes:")[0].splitlines()
    for above, line in zip(lines, lines[1:], strict=False):
        if line.strip().startswith("#"):
            continue
        assert not re.search(r":\s*(\[[^\]]|{[^}])", line), line
        if re.match(r"  [a-z]\w*:", line):
            # A key may share the comment of the one above it: dlr and glr, beta1 and beta2, the labels.
            assert above.strip().startswith("#") or re.match(
                r"  (glr|beta2|fake_label|batch_per_resolution|kid_subset_size):", line
            ), line


def test_numbers_as_dvc_writes_them(tmp_path: Path) -> None:
    """`-S train.glr=0.00002` makes DVC write 2e-05, which YAML 1.1 reads as text."""
    path = tmp_path / "params.yaml"
    path.write_text(edited(r"  glr: .*", "  glr: 2e-05"))
    assert params.load(path).train.glr == 2e-05


@pytest.mark.parametrize(
    ("pattern", "replacement", "expected"),
    [
        (r"  glr:", "  gglr:", "train.gglr: unknown key; did you mean train.glr?"),
        (r"  glr: .*\n", "", "train.glr: missing key"),
        (
            r"architecture: resize",
            "architecture: resise",
            "model.architecture: found 'resise', .*did you mean resize?",
        ),
        (r"  glr: .*", "  glr: -1", "train.glr: found -1, but input should be greater than 0"),
        (r"  glr: .*", "  glr: .nan", "train.glr: found nan, but input should be a finite number"),
        (r"  epochs: .*", "  epochs: '5'", "train.epochs: found '5', but input should be a valid integer"),
        (r"  steps: .*", "  steps: 5", "train: found epochs 5 and steps 5; set one .* other to null"),
        (r"  epochs: .*", "  epochs: null", "train: found epochs None and steps None; set one of them"),
        (r"  g_label: .*", "  g_label: 0.0", "train.g_label: found 0.0, but input should be greater than 0"),
        (r"  max_images: .*", "  max_images: 0", "preprocess.max_images: found 0"),
        (r"  shard_mb: .*", "  shard_mb: 0", "preprocess.shard_mb: found 0"),
        (r"  epochs: .*", "  epochs: true", "train.epochs: found True, but input should be a valid integer"),
        (r"resolution: 28", "resolution: 33", "preprocess.resolution: 33 px .* 32 and 40"),
        (r"  last_stride: .*", "  last_stride: 3", "model: last_stride must be 2 unless .* is dcgan"),
        (r"  trunk_halvings: .*", "  trunk_halvings: 2", "model: trunk_halvings must be 5 unless"),
        (r"  trunk_halvings: .*", "  trunk_halvings: 6", "model.trunk_halvings: found 6"),
        (r"crop: square", "crop: centre", "preprocess: crop_size must be a number"),
        (
            r"  url: null",
            "  url: http://a/b.zip",
            "fetch: url must be .* when source is url, and null otherwise",
        ),
        (r"source: mnist5k", "source: url", "fetch: url must be an address when source is url"),
        (r"  url: null", "  url: file:///etc/passwd", "fetch.url: found 'file:///etc/passwd', but string"),
        (r"  sha256: null", f"  sha256: {'ab' * 32}", "fetch: sha256 may only be set when"),
        (r"  sha256: null", "  sha256: ABC", "fetch.sha256: found 'ABC', but string should match"),
        (r"    '64': 128", "    '6x': 128", "train.batch_per_resolution: keys must be quoted sides"),
        (r"    '64': 128", "    '064': 128", "train.batch_per_resolution: keys must be quoted sides"),
        (r"^model:", "modle:", "modle: unknown key; did you mean model?"),
        (r"^model:", "model: 3\nx:", "model: found 3"),
        (r"  beta1: 0.5", "  beta1: 0.5\n  beta1: 0.5", "not valid YAML.*duplicate key"),
        (r"^model:", "model: [", "/params.yaml:[0-9]+: not valid YAML"),
    ],
)
def test_wrong_values_are_named(pattern: str, replacement: str, expected: str, tmp_path: Path) -> None:
    """A user who mistypes must learn which key, what was found and what is allowed."""
    assert re.search(expected, complaint(edited(pattern, replacement), tmp_path))


def test_all_wrong_values_are_reported_together(tmp_path: Path) -> None:
    """One at a time, five mistakes cost five runs."""
    text = (
        edited(r"  epochs: .*", "  epochs: 0")
        .replace("  nz: 100", "  nz: 0")
        .replace("crop: square", "crop: x")
    )
    assert len(complaint(text, tmp_path).splitlines()) == 3


def test_missing_and_empty_files(tmp_path: Path) -> None:
    """The first thing that goes wrong for a newcomer is the folder that he stands in."""
    with pytest.raises(UserError, match="cannot be read .*No such file.*run this in the folder"):
        params.load(tmp_path / "params.yaml")
    assert "expected sections" in complaint("", tmp_path)


def test_params_are_frozen(default_params: Params) -> None:
    """A stage that changed a value would train something else than params.yaml says."""
    with pytest.raises(ValueError, match="frozen"):
        default_params.train.epochs = 3


@pytest.mark.parametrize(
    ("resolution", "expected"),
    [(28, 128), (64, 128), (96, 128), (192, 128), (256, 75), (384, 36), (512, 21), (768, 10), (1024, 6)],
)
def test_batch_per_resolution(default_params: Params, resolution: int, expected: int) -> None:
    """A wrong entry is another batch size than Marchesi's, and 1024 px would not fit in memory."""
    assert updated(default_params, train__batch_size=None).train.batch_size_for(resolution) == expected


def test_batch_size_beyond_the_table_and_given(default_params: Params) -> None:
    """Above the table there is no sensible guess; a given size always wins."""
    with pytest.raises(UserError, match="no entry at or above 2048 px"):
        updated(default_params, train__batch_size=None).train.batch_size_for(2048)
    assert updated(default_params, train__batch_size=7).train.batch_size_for(2048) == 7
