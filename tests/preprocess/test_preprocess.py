"""Stage preprocess: every file in exactly one table, row i is image i, whatever the workers."""

import hashlib
import io
import itertools
import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from picture_files import prepared, settings
from PIL import Image

from ganpipe import params
from ganpipe.common import files
from ganpipe.common.dataset import load
from ganpipe.common.errors import UserError
from ganpipe.common.stages import OUTPUTS as STAGE_OUTPUTS
from ganpipe.fetch.stage import fetch
from ganpipe.preprocess import stage
from ganpipe.preprocess.stage import preprocess, split_of

COUNT, BROKEN = 150, 7
OUTPUTS = STAGE_OUTPUTS["preprocess"]


def section(**changes: Any) -> params.Preprocess:
    """The params section for square crops in colour at 16 px, with changes."""
    return settings(**{"crop": "square", "resolution": 16, **changes})


def run(root: Path, workers: int = 1, **changes: Any) -> dict[str, Any]:
    """Run the stage; return its report."""
    preprocess(section(**changes), root, workers)
    return json.loads((root / "stages/preprocess/report.json").read_text())


def write(path: Path, seed: int, size: tuple[int, int]) -> None:
    """Write a picture of smooth noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).resize(size).save(path)


def fetched(root: Path) -> Path:
    """Fetch root/pictures into a checkout."""
    fetch(params.Fetch(source="folder", path=str(root / "pictures"), url=None, sha256=None), root)
    return root


def sums(root: Path) -> dict[str, str]:
    """The sha256 of each file that the stage wrote."""
    out = root / "stages/preprocess"
    paths = sorted(path for path in out.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): files.sha256(path) for path in paths}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with COUNT fetched pictures of several sizes and formats, and BROKEN others."""
    root = tmp_path_factory.mktemp("checkout")
    for i in range(COUNT):
        kind = ("png", "jpg", "webp", "bmp")[i % 4]
        write(root / f"pictures/{i % 3}/{i:03d}.{kind}", i, (10 + i % 50, 12 + i % 31))
    for i in range(BROKEN):
        (root / f"pictures/1/{i:03d}_broken.png").write_bytes(b"no picture" * i)
    return fetched(root)


def test_every_file_is_in_one_table_and_row_i_is_image_i(checkout: Path) -> None:
    """A shift by one gives every image its neighbour's split, and held-out pictures are trained on."""
    report = run(checkout)
    data = load(checkout / "stages/preprocess")
    rejected = pd.read_csv(checkout / "stages/preprocess/rejected.csv", dtype=str)
    manifest = pd.read_csv(checkout / "stages/fetch/manifest.csv", dtype=str).set_index("name")["sha256"]
    assert sorted([*data.index["name"], *rejected["name"]]) == manifest.index.tolist()
    assert data.index["name"].is_monotonic_increasing
    index = pd.read_csv(checkout / "stages/preprocess/index.csv", dtype={"name": str})
    assert data.images.shape == (COUNT, 16, 16, 3) and data.images.dtype == np.uint8
    with zipfile.ZipFile(checkout / "stages/fetch/images.zip") as archive:
        for i, row in enumerate(index.to_dict("records")):
            expected = prepared(archive.read(row["name"]), section())
            np.testing.assert_array_equal(data.images[i], np.asarray(expected.image))
            assert (row["width"], row["height"], row["scale"]) == (
                expected.width,
                expected.height,
                expected.scale,
            )
            assert tuple(row[side] for side in ("left", "top", "right", "bottom")) == expected.crop.box
            assert row["split"] == split_of(manifest[row["name"]], 0.2)
    assert report["rejected_by_reason"] == {"not a picture of a known format": BROKEN - 1, "empty file": 1}
    assert [report[key] for key in ("read", "accepted", "rejected")] == [COUNT + BROKEN, COUNT, BROKEN]
    assert report["train"] == len(data.train_rows) and report["held_out"] == len(data.held_out_rows)
    assert report["share_upscaled"] == pytest.approx((index["scale"] > 1).mean())
    assert report["width"] == {"min": 10, "median": index["width"].median(), "max": 59}
    assert sum(report["scales"].values()) == COUNT
    above = sum(count for low, count in report["scales"].items() if float(low) >= 1)
    assert above == (index["scale"] >= 1).sum()


def test_landmarks_reach_the_crop(tmp_path: Path) -> None:
    """Another picture's points would cut every head wrongly; a picture without any would be used whole."""
    for i in range(3):
        write(tmp_path / f"pictures/{i}.png", i, (40, 40))
    (tmp_path / "pictures/landmarks.csv").write_text("name,x,y,x,y\n2.png,10,20,30,20\n0.png,4,6,4,26,9,9\n")
    with pytest.raises(UserError, match="max_rejected: 1 of 3 .*1 no landmarks"):
        run(fetched(tmp_path), crop="landmarks", held_out=0)
    table = pd.read_csv(tmp_path / "stages/preprocess/index.csv").set_index("name")
    boxes = table[["left", "top", "right", "bottom", "angle"]].to_numpy().tolist()
    assert boxes == [[-4, 6, 16, 26, 90], [10, 10, 30, 30, 0]] and table.index.tolist() == ["0.png", "2.png"]
    (tmp_path / "pictures/landmarks.csv").unlink()
    with pytest.raises(UserError, match=r"preprocess\.crop is landmarks, but the source has none"):
        run(fetched(tmp_path), crop="landmarks")


def test_the_number_of_workers_changes_no_byte(checkout: Path) -> None:
    """The same params on a larger machine would be another experiment."""
    digests = []
    for workers in (1, 3):
        run(checkout, workers)
        digests.append(sums(checkout))
    assert digests[0] == digests[1]
    assert sorted(p.name for p in (checkout / "stages/preprocess").iterdir()) == sorted(OUTPUTS)


def test_the_order_of_the_files_changes_no_byte(tmp_path: Path) -> None:
    """File systems list folders in different orders: the same pictures would be another experiment."""
    digests = []
    for order in (1, -1):
        root = tmp_path / str(order)
        root.mkdir()
        with zipfile.ZipFile(root / "pictures.zip", "w") as archive:
            for i in range(12)[::order]:
                write(tmp_path / "picture.png", i, (16, 16))
                archive.write(tmp_path / "picture.png", f"{i % 3}/{i}.png")
        fetch(params.Fetch(source="folder", path=str(root / "pictures.zip"), url=None, sha256=None), root)
        run(root)
        digests.append(sums(root))
    assert digests[0] == digests[1]


def test_the_split_follows_the_bytes_alone(tmp_path: Path) -> None:
    """An image that moves into the held-out split when others are added has been trained on before."""
    for i in range(40):
        write(tmp_path / f"pictures/{i}.png", i, (16, 16))
    (tmp_path / "pictures/copy of 7.png").write_bytes((tmp_path / "pictures/7.png").read_bytes())
    splits = []
    for _ in range(2):
        run(fetched(tmp_path), held_out=0.5)
        index = pd.read_csv(tmp_path / "stages/preprocess/index.csv", dtype=str).set_index("name")
        splits.append(index["split"])
        for i in range(40, 60):
            write(tmp_path / f"pictures/{i}.png", i, (16, 16))
    assert splits[1][splits[0].index].tolist() == splits[0].tolist()
    assert splits[0]["7.png"] == splits[0]["copy of 7.png"]
    assert len(splits[1]) == len(splits[0]) + 20


def test_the_held_out_share_is_as_configured() -> None:
    """A biased rule would leave too few images for the metrics' floor, or too few to train on."""
    hashes = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(20_000)]
    for share in (0.0, 0.1, 0.5):
        held_out = sum(split_of(digest, share) == "held_out" for digest in hashes) / len(hashes)
        assert held_out == pytest.approx(share, abs=0.01)
    assert split_of("0" * 64, 0.0) == "train" and split_of("f" * 64, 0.9) == "train"


@pytest.mark.parametrize("duplicates", ["report", "drop"])
def test_a_smaller_set_is_part_of_a_larger_one(copied: Path, duplicates: str) -> None:
    """A study of the number of images would compare other images, or judge them by other held-out ones."""
    sets: list[dict[str, np.ndarray]] = []
    held_out: list[dict[str, np.ndarray]] = []
    for most in (1, 5, 12, 999, None):
        report = run(copied, held_out=0.3, duplicates=duplicates, max_images=most, max_rejected=0.0)
        data = load(copied / "stages/preprocess")
        rows = {name: data.images[i].copy() for i, name in enumerate(data.index["name"])}
        chosen = set(data.index["name"].iloc[data.train_rows])
        sets.append({name: image for name, image in rows.items() if name in chosen})
        held_out.append({name: image for name, image in rows.items() if name not in chosen})
        left = report["rejected_by_reason"].get("beyond preprocess.max_images", 0)
        assert report["train"] == len(chosen) == min(most or 999, len(chosen) + left)
        table = pd.read_csv(copied / "stages/preprocess/duplicates.csv")
        listed = table[~table["dropped"]]
        assert set(listed["name"]) | set(listed["original"]) <= set(rows)
        rejected = pd.read_csv(copied / "stages/preprocess/rejected.csv")
        assert len(rejected) + len(rows) == 50 and (rejected["name"].is_monotonic_increasing or not left)
    for smaller, larger in (*itertools.pairwise(sets), *itertools.pairwise(held_out)):
        assert all(np.array_equal(image, larger[name]) for name, image in smaller.items())
    assert [len(images) for images in sets[:3]] == [1, 5, 12] and len(sets[3]) == len(sets[4])
    assert len({len(images) for images in held_out}) == 1 and held_out[0]


def test_too_many_rejected_fails_with_everything_written(checkout: Path) -> None:
    """The user needs the tables most when the stage fails."""
    share = BROKEN / (COUNT + BROKEN)
    run(checkout, max_rejected=share)
    shutil.rmtree(checkout / "stages/preprocess")
    with pytest.raises(
        UserError, match=r"preprocess\.max_rejected.*6 not a picture.*rejected\.csv"
    ) as caught:
        run(checkout, max_rejected=share - 1e-6)
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in (checkout / "stages/preprocess").iterdir()) == sorted(OUTPUTS)
    assert len(load(checkout / "stages/preprocess").index) == COUNT


def test_nothing_to_train_on_fails(tmp_path: Path) -> None:
    """Training would fail later with a division by zero."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"none of 1 files can be used"):
        run(fetched(tmp_path), max_rejected=1.0)
    write(tmp_path / "pictures/a.png", 0, (16, 16))
    digest = hashlib.sha256((tmp_path / "pictures/a.png").read_bytes()).hexdigest()
    share = int(digest[:16], 16) / 2**64
    assert share < 0.89, "choose another seed"
    assert run(fetched(tmp_path), held_out=share)["train"] == 1
    with pytest.raises(UserError, match=r"none of 1 images is left to train on"):
        run(tmp_path, held_out=share + 0.01)


def test_missing_or_damaged_fetched_files_name_the_stage_to_run(tmp_path: Path) -> None:
    """A stage that is run out of order would end with a traceback."""
    with pytest.raises(UserError, match="run the fetch stage"):
        run(tmp_path)
    write(tmp_path / "pictures/a.png", 0, (16, 16))
    fetched(tmp_path)
    archive = tmp_path / "stages/fetch/images.zip"
    data = bytearray(archive.read_bytes())
    data[100] ^= 1
    archive.write_bytes(data)
    with pytest.raises(UserError, match="run the fetch stage again"):
        run(tmp_path)
    with zipfile.ZipFile(archive, "w") as other:
        other.writestr("b.png", b"")
    with pytest.raises(UserError, match="run the fetch stage again"):
        run(tmp_path)


@pytest.mark.parametrize(("resolution", "channels", "width"), [(16, 3, 1038), (48, 1, 782), (200, 3, 1038)])
def test_the_contact_sheet_fits_a_screen(checkout: Path, resolution: int, channels: int, width: int) -> None:
    """People check their training images on it; they would not on one that is too small or too large."""
    run(checkout, resolution=resolution, channels=channels)
    with Image.open(checkout / "stages/preprocess/contact_sheet.png") as sheet:
        assert sheet.size == (width, width)
        first = np.asarray(sheet.convert("RGB"))[: (width - 14) // 8, : (width - 14) // 8]
    image = load(checkout / "stages/preprocess").images[0]
    assert abs(float(first.mean()) - float(image.mean())) < 1


def test_names_that_look_like_something_else_stay_text(tmp_path: Path) -> None:
    """Pandas reads "007" as 7 and "null" as missing: files would be lost or confused."""
    picture = io.BytesIO()
    Image.new("L", (16, 16), 100).save(picture, "PNG")
    names = ["007", "1e5", "NA", "null", 'quo"te,comma.png', "ünï.png"]
    (tmp_path / "pictures").mkdir()
    for name in names:
        (tmp_path / "pictures" / name).write_bytes(picture.getvalue() + name.encode())
    run(fetched(tmp_path))
    index = pd.read_csv(tmp_path / "stages/preprocess/index.csv", dtype=str, keep_default_na=False)
    assert index["name"].tolist() == sorted(names)


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with 30 fetched pictures, 10 of them again as the same bytes, 10 saved another way."""
    root = tmp_path_factory.mktemp("copied")
    for i in range(30):
        write(root / f"pictures/{i:02d}.png", i, (64, 64))
        data = (root / f"pictures/{i:02d}.png").read_bytes()
        if i < 10:
            (root / f"pictures/{i:02d} <b>again.png").write_bytes(data)
        elif i < 20:
            Image.open(io.BytesIO(data)).resize((48, 48)).save(
                root / f"pictures/{i:02d} smaller.jpg", quality=90
            )
    return fetched(root)


def test_copies_are_reported_and_dropped_only_on_request(copied: Path) -> None:
    """A copy on the other side of the split hides that the generator repeats its training images."""
    out = copied / "stages/preprocess"
    report = run(copied, held_out=0.5)
    copies = pd.read_csv(out / "duplicates.csv")
    assert len(load(out).index) == 50 and report["rejected"] == 0
    # "00 <b>…" sorts before "00.png".
    exact = [f"{i:02d}.png" for i in range(10)]
    assert copies["name"].tolist() == sorted([*exact, *(f"{i:02d}.png" for i in range(10, 20))])
    assert copies["kind"].tolist() == ["exact"] * 10 + ["near"] * 10 and not copies["dropped"].any()
    across = (copies["split"] != copies["original_split"]).sum()
    assert report["copies"] == {"exact": 10, "near": 10, "dropped": 0, "across_splits": across} and across > 0
    data = load(out)
    pixels = {name: data.images[i].copy() for i, name in enumerate(data.index["name"])}

    report = run(copied, held_out=0.5, duplicates="drop", max_rejected=0.0)
    data = load(out)
    assert sorted([*data.index["name"], *copies["name"]]) == sorted(pixels)
    assert [*report["rejected_by_reason"].items()] == [
        ("exact copy of another picture", 10),
        ("near copy of another picture", 10),
    ]
    assert report["copies"] == {"exact": 10, "near": 10, "dropped": 20, "across_splits": 0}
    for i, name in enumerate(data.index["name"]):
        np.testing.assert_array_equal(data.images[i], pixels[name])
    assert (out / "images.npy").stat().st_size == 128 + 30 * 16 * 16 * 3


def test_the_page_escapes_names_of_files_and_sources(copied: Path) -> None:
    """Opening the report would run a script in a file's name."""
    (copied / "pictures/<script>alert(1).png").write_bytes(b"no picture")
    fetched(copied)
    (copied / "stages/fetch/source.json").write_text('{"name": "mine", "licence": "CC BY & <i>more</i>"}')
    run(copied)
    page = (copied / "stages/preprocess/report.html").read_text()
    assert "&lt;script&gt;alert(1).png" in page and "&lt;b&gt;again.png" in page
    assert "<script" not in page and "<b>again" not in page and "CC BY &amp; &lt;i&gt;more" in page
    assert page.count("<img") == 3 + 2 * 20 and "http" not in page


def test_too_many_images_for_the_disk_are_refused(checkout: Path) -> None:
    """Hours later the disk would be full."""
    before = sorted((checkout / "stages").rglob("*"))
    need = (COUNT + BROKEN) * 16 * 16 * 3 / 1e9
    with pytest.raises(UserError, match=r"157 images .* 0\.000121 GB, more than 0\.0001 GB .*MAX_DISK=1"):
        preprocess(section(), checkout, 1, max_disk=0.0001)
    assert sorted((checkout / "stages").rglob("*")) == before
    preprocess(section(), checkout, 1, max_disk=need)


@pytest.mark.parametrize(
    ("shard_mb", "limits", "rows"),
    [
        (1, {}, [20, 10]),
        (None, {"ONE_FILE_MB": 1, "SHARD_MB": 1}, [20, 10]),
        (None, {"ONE_FILE_MB": 1, "SHARD_MB": 0.1, "MOST_FILES": 2}, [15, 15]),
    ],
)
def test_a_large_set_is_divided_and_stays_the_same(
    copied: Path,
    shard_mb: int | None,
    limits: dict[str, float],
    rows: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Images would be lost between the files, or training on them would be another experiment."""
    changes: dict[str, Any] = {"resolution": 128, "duplicates": "drop"}
    run(copied, **changes)
    before, pixels = sums(copied), load(copied / "stages/preprocess").images[:]
    for name, value in limits.items():
        monkeypatch.setattr(stage, name, value)
    run(copied, 2, **changes, shard_mb=shard_mb)
    names = ["images.npy", "shards/00001.npy"]
    table = (copied / "stages/preprocess/shards/index.csv").read_text()
    assert table == f"file,first_row\n../images.npy,0\n00001.npy,{rows[0]}\n"
    after = sums(copied)
    assert [name for name in after if after[name] != before.get(name)] == [*names, "shards/index.csv"]
    assert [len(np.load(copied / "stages/preprocess" / name, mmap_mode="r")) for name in names] == rows
    assert np.array_equal(load(copied / "stages/preprocess").images[:], pixels)
    monkeypatch.undo()
    run(copied, **changes)
    assert sums(copied) == before


@pytest.mark.parametrize("after", [0, 1])
def test_a_kill_while_it_writes_leaves_a_whole_set_or_none(
    checkout: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of one run beside the index of another: every image would have another file's split."""
    run(checkout)
    replace, calls = os.replace, []

    def killed(*paths: Any) -> None:
        calls.append(paths)
        if len(calls) > after:
            raise KeyboardInterrupt
        replace(*paths)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        run(checkout, crop="none")
    monkeypatch.undo()
    out = checkout / "stages/preprocess"
    assert len(sums(checkout)) == after + 1  # the list of files in shards, which stands for no set
    with pytest.raises(UserError, match="run the preprocess stage"):
        load(out)
    run(checkout)
    assert sorted(p.name for p in out.iterdir()) == sorted(OUTPUTS)
