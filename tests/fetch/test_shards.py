"""Sets in shards: WebDataset's tars, and Parquet tables such as Hugging Face's."""

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import digits
from PIL import Image

from ganpipe.common.errors import UserError
from ganpipe.fetch import shards
from ganpipe.fetch.stage import fetch
from ganpipe.params import Fetch

# How Hugging Face describes a table's columns, in its metadata.
HUGGING_FACE = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}


def png(row: int) -> bytes:
    """Return a digit as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(digits()[row, :, :, 0]).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a tar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def table(pictures: list[bytes | None], **columns: list[object]) -> pa.Table:
    """Return a table in Hugging Face's layout: records of the file's bytes and path."""
    records = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(pictures)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.table({**columns, "image": pa.array(records, kind)})


def manifest(root: Path, source: str, path: Path) -> pd.DataFrame:
    """Fetch, and return the manifest."""
    fetch(Fetch(source=source, path=str(path), url=None, sha256=None), root)  # type: ignore[arg-type]
    return pd.read_csv(root / "stages/fetch/manifest.csv", keep_default_na=False)


def classes(root: Path) -> dict[str, str]:
    """Return the classes that fetch recorded."""
    rows = pd.read_csv(root / "stages/fetch/labels.csv", dtype=str)
    return dict(rows.itertuples(index=False, name=None))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty checkout."""
    (tmp_path / "root/stages/fetch").mkdir(parents=True)
    return tmp_path / "root"


def test_a_webdataset_is_the_pictures_of_its_tars(root: Path, tmp_path: Path) -> None:
    """If it fails, a set in shards is empty, loses pictures, or trains on its captions and masks."""
    files = {"000.jpg": png(0), "000.json": b"{}", "000.seg.png": png(1), "001.PNG": png(2), "001.cls": b"7"}
    write_tar(tmp_path / "set/b/shard-1.tar.gz", files)
    write_tar(tmp_path / "set/a-0.tar", {"x/000.png": png(3), "notes.txt": b"hello"})
    (tmp_path / "set/README.md").write_text("no shard")
    rows = manifest(root, "webdataset", tmp_path / "set")
    assert rows["name"].tolist() == ["b-shard-1-000.jpg", "b-shard-1-001.PNG", "x/a-0-000.png"]
    assert rows["bytes"].tolist() == [len(png(0)), len(png(2)), len(png(3))]
    assert classes(root) == {"b-shard-1-001.PNG": "7", "x/a-0-000.png": "x"}
    alone = manifest(root, "webdataset", tmp_path / "set/a-0.tar")
    assert alone["name"].tolist() == ["x/a-0-000.png"]


@pytest.mark.parametrize("plain", [False, True])
def test_a_parquet_set_is_the_pictures_of_its_rows(root: Path, tmp_path: Path, plain: bool) -> None:
    """If it fails, pictures are exchanged between row groups or files, or a row without one ends it."""
    (tmp_path / "set").mkdir()
    for number in range(2):
        pictures = [png(5 * number + i) for i in range(4)]
        content = table([*pictures, None], label=[0, 1, 0, None, -1])
        if number:
            content = content.replace_schema_metadata({"huggingface": json.dumps(HUGGING_FACE)})
        if plain:
            content = pa.table({"text": ["a"] * 5, "picture": pa.array([*pictures, None], pa.large_binary())})
        pq.write_table(content, tmp_path / f"set/train-{number}.parquet", row_group_size=2)
    rows = manifest(root, "parquet", tmp_path / "set")
    assert rows["name"].tolist() == [f"train-{n}-{i:08}" for n in range(2) for i in range(5)]
    expected = [len(png(5 * n + i)) if i < 4 else 0 for n in range(2) for i in range(5)]
    assert rows["bytes"].tolist() == expected
    assert rows["width"].astype(str).tolist() == (["28"] * 4 + [""]) * 2
    names = [("0", "cat"), ("1", "dog"), ("0", "cat")]
    expected_classes = {f"train-{n}-{i:08}": names[i][n] for n in range(2) for i in range(3)}
    assert classes(root) == ({} if plain else expected_classes)


def test_each_row_group_is_read_once(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, a set of a million pictures takes a thousand times as long."""
    pq.write_table(table([png(i) for i in range(12)]), tmp_path / "a.parquet", row_group_size=4)
    shards._group.cache_clear()
    manifest(root, "parquet", tmp_path / "a.parquet")
    assert shards._group.cache_info().misses == 3


def test_bad_shards_are_one_sentence(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, a wrong or damaged file ends in a traceback, or in an empty set."""

    def refusal(source: str, path: Path) -> str:
        with pytest.raises(UserError) as error:
            manifest(root, source, path)
        return str(error.value)

    good = tmp_path / "good.parquet"
    pq.write_table(table([png(0)] * 3), good)
    assert "found no file that ends in .parquet" in refusal("parquet", tmp_path / "root")
    assert "found no file that ends in .tar" in refusal("webdataset", good)
    numbers = tmp_path / "numbers.parquet"
    pq.write_table(pa.table({"label": [1, 2]}), numbers)
    assert "no column has the bytes of pictures; found label (int64)" in refusal("parquet", numbers)
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(good.read_bytes()[:-20])
    assert "damaged, or not a Parquet file" in refusal("parquet", broken)
    middle = bytearray(good.read_bytes())
    middle[10:60] = bytes(50)
    broken.write_bytes(middle)
    assert "damaged" in refusal("parquet", broken)
    with monkeypatch.context() as patch:
        patch.setattr(shards, "MAX_FILES", 2)  # in one file; a set may have more
        assert "more than 2 pictures; divide it" in refusal("parquet", good)
    monkeypatch.setattr(shards, "MAX_GROUP", 100)
    assert "more than 100; write it again with smaller ones" in refusal("parquet", good)
