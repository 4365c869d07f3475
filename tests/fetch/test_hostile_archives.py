"""Hostile archives: no file escapes, nothing runs, memory and disk are limited, and errors are one line.

All of them go through the stage in one process, which records the files that it writes and what it starts.
"""

import bz2
import gzip
import io
import json
import lzma
import os
import random
import re
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from ganpipe.common.errors import UserError
from ganpipe.fetch.archives import ZIP_METHODS, listing

PNG = b"\x89PNG\r\n\x1a\n, a picture to all who look at names only"
SHELL = "$(touch ran) `touch ran` ;touch ran; |touch ran; 'a' \"b\" & <x >y *?[]{}~!# %00.png"


def member(name: bytes | str, data: bytes = PNG, **more: Any) -> dict[str, Any]:
    """Describe one file of a raw zip; `more` overrides fields of its headers."""
    return {"name": name.encode() if isinstance(name, str) else name, "data": data} | more


def raw_zip(*members: dict[str, Any], comment: bytes = b"", **end: int) -> bytes:
    """Write a zip in which every field can be wrong.

    Members: name, data, method, flag, crc, packed (size), size, offset, mode, local (name in its own header),
    extra, stream. End: entries, length (of the directory), start (of the directory), disk.
    """
    out, directory = bytearray(), bytearray()
    for m in members:
        data, name = m["data"], m["name"]
        packed = data if m.get("method", 0) != 8 else zlib.compress(data, 9)[2:-4]
        packed = m.get("stream", packed)
        crc, psize, size = (
            m.get("crc", zlib.crc32(data)),
            m.get("packed", len(packed)),
            m.get("size", len(data)),
        )
        common = (m.get("flag", 0x800), m.get("method", 0), 0, 0x21, crc, psize, size)
        offset = m.get("offset", len(out))
        local, extra = m.get("local", name), m.get("extra", b"")
        out += struct.pack("<4s5H3I2H", b"PK\3\4", 45, *common, len(local), 0) + local + packed
        directory += struct.pack(
            "<4s6H3I5H2I",
            b"PK\1\2",
            0x31E,
            45,
            *common,
            len(name),
            len(extra),
            0,
            0,
            0,
            m.get("mode", 0o100644) << 16,
            offset,
        )
        directory += name + extra
    start, entries = len(out), end.get("entries", len(members))
    out += directory
    tail = (
        end.get("disk", 0),
        0,
        entries,
        entries,
        end.get("length", len(directory)),
        end.get("start", start),
    )
    return bytes(out) + struct.pack("<4s4H2IH", b"PK\5\6", *tail, len(comment)) + comment


def header(
    name: bytes | str, size: int = 0, kind: bytes = b"0", link: bytes = b"", raw_size: bytes = b""
) -> bytes:
    """Write the header block of a file in a tar."""
    block = bytearray(512)
    name = name.encode() if isinstance(name, str) else name
    block[: len(name[:100])] = name[:100]
    block[100:108], block[108:116], block[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    block[124:136] = raw_size or b"%011o\0" % size
    block[136:148], block[156:157], block[157 : 157 + len(link)] = b"00000000000\0", kind, link
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def entry(name: bytes | str, data: bytes = PNG, kind: bytes = b"0", **more: Any) -> bytes:
    """Write one file of a raw tar."""
    return header(name, len(data), kind, **more) + data + bytes(-len(data) % 512)


def pax(kind: bytes = b"x", **values: str | int) -> bytes:
    """Write a pax header with values for the next file."""
    body = b""
    for key, value in values.items():
        text = f" {key.replace('__', '.')}={value}\n".encode("utf-8", "surrogateescape")
        length = len(text) + len(str(len(text)))
        body += str(length + (len(str(length)) > len(str(len(text))))).encode() + text
    return entry("pax", body, kind)


END = bytes(1024)
BIG = header("a.png", 3 * 10**7)
MINUS = b"\xff" * 10 + b"\xfc\0"  # a size of -1024
HUGE = b"\x80" + b"\0" * 3 + struct.pack(">Q", 1 << 60)
ZEROS = bytes(10**7)
_DEFLATE = zlib.compressobj(9, wbits=-15)
# ZEROS compressed, to be repeated, so that a bomb of any size is made quickly.
PIECE = _DEFLATE.compress(ZEROS) + _DEFLATE.flush(zlib.Z_FULL_FLUSH)


def overlapping() -> bytes:
    """Return a zip of two files, the first of which contains the whole second one as its data."""
    inner = (
        struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0x800, 0, 0, 0x21, zlib.crc32(PNG), len(PNG), len(PNG), 5, 0)
        + b"b.png"
        + PNG
    )
    return raw_zip(member("a.png", inner), member("b.png", PNG, offset=30 + 5))


def cut(data: bytes, share: float) -> bytes:
    """Return the first part of a file."""
    return data[: int(len(data) * share)]


def packed_zeros(name: str, count: int = 1) -> dict[str, Any]:
    """Describe a file of a zip with `count` times ZEROS."""
    return member(name, b"", method=8, stream=PIECE * count + b"\3\0", size=count * 10**7)


def xz_of_4_gb(data: bytes) -> bytes:
    """Compress as xz with a header that demands a dictionary of 4 GB."""
    packed = lzma.compress(data)
    head = bytearray(packed[12 : 12 + (packed[12] + 1) * 4])
    head[head.index(b"\x21\x01") + 2] = 40
    head[-4:] = struct.pack("<I", zlib.crc32(head[:-4]))
    return packed[:12] + bytes(head) + packed[12 + len(head) :]


def nested(levels: int) -> bytes:
    """Return a zip of ten zips, nested to a number of levels."""
    data = raw_zip(packed_zeros("0.png"))
    for _ in range(levels):
        data = raw_zip(*(member(f"{i}.zip", data, method=8) for i in range(10)))
    return data


def sparse(size: int) -> bytes:
    """Return a tar of one empty sparse file that claims a size."""
    block = bytearray(header("hole.png", 0, b"S"))
    block[483:495] = b"%011o\0" % size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + END


def names(*wanted: str) -> Callable[[dict[str, Any]], bool]:
    """Return a check that images.zip contains exactly these files."""
    return lambda done: done["names"] == sorted(wanted)


# Name → the archive's bytes, and the expected result: a check of images.zip, or a pattern in the messages.
Expected = str | Callable[[dict[str, Any]], bool]
HIDES = "left out 1 links"
ZIPS: dict[str, tuple[bytes, Expected]] = {
    # Names.
    "up": (raw_zip(member("../../../evil.png")), names("evil.png")),
    "up inside": (raw_zip(member("a/../../../evil.png")), names("a/evil.png")),
    "root": (raw_zip(member("/etc/cron.d/evil.png")), names("etc/cron.d/evil.png")),
    "drive": (raw_zip(member("C:\\Windows\\evil.png")), names("Windows/evil.png")),
    "share": (raw_zip(member("\\\\server\\share\\evil.png")), names("server/share/evil.png")),
    "up windows": (raw_zip(member("..\\..\\evil.png")), names("evil.png")),
    "newline": (raw_zip(member("a\nb\r.png")), names("a_b_.png")),
    "escape codes": (raw_zip(member("\x1b[2J\x07.png")), names("_[2J_.png")),
    "zero byte": (raw_zip(member("a.png\0.exe")), names("a.png")),
    "shell": (raw_zip(member(SHELL)), names(SHELL)),
    "option": (raw_zip(member("-rf"), member("--help.png")), names("-rf", "--help.png")),
    "formula": (
        raw_zip(member("=cmd|' /C calc'!A0.png")),
        names("=cmd|' /C calc'!A0.png"),
    ),
    "any script": (raw_zip(member("猫/Ольга/قطة/🐈.png")), names("猫/Ольга/قطة/🐈.png")),
    "turned around": (raw_zip(member("gnp.\u202eexe.png")), names("gnp._exe.png")),
    "not text": (raw_zip(member(b"\xff\xfe.png")), "damaged"),
    "old code page": (raw_zip(member(b"\x81\x9a.png", flag=0)), names("üÜ.png")),
    "empty name": (raw_zip(member("")), names("unnamed")),
    "dot": (raw_zip(member("."), member("..")), names("unnamed", "unnamed-2")),
    "long name": (raw_zip(member("a" * 60_000 + ".png")), names("a" * 996 + ".png")),
    "deep name": (raw_zip(member("a/" * 30_000 + "b.png")), names("a/" * 497 + "b.png")),
    "equal names": (
        raw_zip(*[member("a.png", b"")] * 300),
        lambda done: len(set(done["names"])) == 300,
    ),
    "names that differ by case": (raw_zip(member("a.png"), member("A.PNG")), names("a.png", "A.PNG")),
    "a file that is also a folder": (raw_zip(member("a"), member("a/b.png")), names("a", "a/b.png")),
    # Kinds of files.
    "link": (raw_zip(member("a.png", b"/etc/passwd", mode=0o120777)), HIDES),
    "device": (raw_zip(member("a.png", b"", mode=0o020666)), HIDES),
    "pipe": (raw_zip(member("a.png", b"", mode=0o010666)), HIDES),
    "set-uid": (raw_zip(member("a.png", mode=0o104755)), names("a.png")),
    # Lies.
    "says a terabyte": (
        raw_zip(
            member("a.png", size=0xFFFFFFFF, flag=0x800),
            *[member(f"{i}.png", size=0xFFFFFFFE) for i in range(50)],
        ),
        "bomb",
    ),
    "says exabytes": (
        raw_zip(member("a.png", size=0xFFFFFFFF, extra=struct.pack("<2HQ", 1, 8, 1 << 62))),
        "bomb",
    ),
    "says too little": (raw_zip(member("a.png", method=8, size=3)), "damaged"),
    # The file is complete, as its checksum shows.
    "says too much": (raw_zip(member("a.png", method=8, size=9999)), names("a.png")),
    "wrong sum": (raw_zip(member("a.png", crc=1)), "damaged"),
    "broken stream": (raw_zip(member("a.png", method=8, stream=b"\xff" * 40)), "damaged"),
    "another name inside": (raw_zip(member("a.png", local=b"b.png")), "damaged"),
    "overlap": (overlapping(), "overlap"),
    "one data, many names": (
        raw_zip(
            member("a.png", bytes(10**6), method=8), *(member(f"{i}.png", b"", offset=0) for i in range(9))
        ),
        "overlap",
    ),
    "starts in the directory": (raw_zip(member("a.png"), member("b.png", offset=60)), "overlap"),
    "starts behind the end": (raw_zip(member("a.png", offset=10**9)), "damaged"),
    "starts before the file": (raw_zip(member("a.png", offset=0xFFFFFFFF)), "damaged"),
    "cut": (cut(raw_zip(member("a.png", os.urandom(9999))), 0.5), "damaged"),
    "cut in the directory": (cut(raw_zip(member("a.png"), member("b.png")), 0.8), "damaged"),
    "end only": (struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0, 0, 0, 0, 0), "contains no files"),
    "says many files": (raw_zip(member("a.png"), entries=65_534), names("a.png")),
    "says a huge directory": (raw_zip(member("a.png"), length=0x7FFFFFFF), "damaged"),
    "directory behind the end": (raw_zip(member("a.png"), start=0x7FFFFFFF), "damaged"),
    "two ends": (raw_zip(member("a.png"), comment=raw_zip(member("b.png"))), names("b.png")),
    "many disks": (raw_zip(member("a.png"), disk=3), names("a.png")),
    "odd extra field": (raw_zip(member("a.png", extra=b"\1\0\xff\xff")), "damaged"),
    # Ways of packing.
    "password": (raw_zip(member("a.png", flag=0x801)), "encrypted"),
    "strong password": (raw_zip(member("a.png", flag=0x841)), "encrypted"),
    "deflate64": (raw_zip(member("a.png", method=9)), "method 9"),
    "lzma of 4 GB": (
        raw_zip(member("a.png", method=14, stream=b"\x09\x14\5\0]\xff\xff\xff\xff" + bytes(40))),
        "method 14",
    ),
    "unknown method": (raw_zip(member("a.png", method=99)), "method 99"),
    # Bombs.
    "bomb": (raw_zip(packed_zeros("a.png", 3)), "bomb"),
    "bomb in many files": (raw_zip(*(packed_zeros(f"{i}.png") for i in range(3))), "bomb"),
    "nested bomb": (nested(2), "10 files are archives"),
    # Two things in one.
    "picture in front": (b"\xff\xd8\xff\xe0 JPEG" + raw_zip(member("a.png")), names("a.png")),
}
TARS: dict[str, tuple[bytes, Expected]] = {
    # Names.
    "up": (entry("../../../evil.png") + END, names("evil.png")),
    "root": (entry("/etc/cron.d/evil.png") + END, names("etc/cron.d/evil.png")),
    "up by pax": (pax(path="../../evil.png") + entry("a.png") + END, names("evil.png")),
    "up for all": (
        pax(b"g", path="../evil.png") + entry("a.png") + entry("b.png") + END,
        names("evil.png", "evil-2.png"),
    ),
    "newline": (entry("a\nb.png") + END, names("a_b.png")),
    "shell": (entry(SHELL) + END, names(SHELL)),
    "not text": (entry(b"\xff\xfe.png") + END, names("__.png")),
    "empty name": (entry("") + END, names("unnamed")),
    # Kinds of files.
    "link": (header("a.png", 0, b"2", b"/etc/passwd") + END, HIDES),
    "hard link": (header("a.png", 0, b"1", b"/etc/passwd") + END, HIDES),
    "link to itself": (header("a.png", 0, b"2", b"a.png") + END, HIDES),
    "through a link": (header("d", 0, b"2", b"/tmp") + entry("d/evil.png") + END, names("d/evil.png")),
    "link by pax": (pax(linkpath="/etc/passwd") + header("a.png", 0, b"2") + END, HIDES),
    "character device": (header("a.png", 0, b"3") + END, HIDES),
    "block device": (header("a.png", 0, b"4") + END, HIDES),
    "pipe": (header("a.png", 0, b"6") + END, HIDES),
    "unknown kind": (entry("a.png", kind=b"Z") + END, HIDES),
    "hole of a terabyte": (sparse(1 << 32), "left out 1 .* sparse"),
    "hole by pax": (
        pax(GNU__sparse__major=1, GNU__sparse__minor=0, GNU__sparse__realsize=1 << 40)
        + entry("a.png", b"1\n0\n5\n")
        + END,
        "left out 1 .* sparse",
    ),
    # Lies.
    "length below zero": (header("a.png", raw_size=MINUS) + END, "damaged"),
    "length that leads back": (
        entry("a.png") + header("b.png", raw_size=b"\xff" * 10 + b"\xfe\0") + END,
        "starts before",
    ),
    "length below zero by pax": (pax(size=-512) + entry("a.png") + END, "damaged"),
    "length of exabytes": (header("a.png", raw_size=HUGE) + END, "damaged"),
    "length beyond the end": (header("a.png", 10**7) + PNG, "damaged"),
    "name of a gigabyte": (header("n", 10**9, b"L") + b"a" * 1000, "header of 1,000,000,"),
    "name of 70 megabytes": (header("n", 7 * 10**7, b"L") + ZEROS * 7 + END, "header of 70,"),
    "name below zero": (header("n", kind=b"L", raw_size=MINUS) + b"a" * 1000, "header of -"),
    "pax of a gigabyte": (header("n", 10**9, b"x") + b"9" * 1000, "header of 1,000,000,"),
    "pax of digits": (entry("n", b"9" * 65_000, b"x") + entry("a.png") + END, "header of digits"),
    "pax of nonsense": (
        entry("n", b"not = a\0 header" * 9, b"x") + entry("a.png") + END,
        names("a.png") if sys.version_info >= (3, 11, 4) else "damaged",  # as Python's tarfile has it
    ),
    "wrong sum": (entry("a.png") + entry("b.png").replace(b"b.png", b"c.png", 1) + END, "damaged"),
    "cut": (cut(entry("a.png", bytes(99_999)), 0.5), "damaged"),
    # Packed.
    "ends with a zip": (entry("a.png") + entry("b.zip", raw_zip(member("c.png"))), names("a.png", "b.zip")),
    "gz bomb": (gzip.compress(BIG) + gzip.compress(ZEROS) * 3, "bomb"),
    "bz2 bomb": (bz2.compress(BIG) + bz2.compress(ZEROS) * 3, "bomb"),
    "xz bomb": (lzma.compress(BIG) + lzma.compress(ZEROS) * 3, "bomb"),
    "xz of 4 GB of memory": (xz_of_4_gb(entry("a.png") + END), "Memory usage limit"),
    "xz cut": (cut(lzma.compress(entry("a.png", os.urandom(9999)) + END), 0.5), "damaged"),
    "xz twice": (
        lzma.compress(entry("a.png")) + bytes(4) + lzma.compress(entry("b.png") + END),
        names("a.png", "b.png"),
    ),
    "gz cut": (cut(gzip.compress(entry("a.png", os.urandom(9999)) + END), 0.5), "damaged"),
    "gz with a wrong sum": (gzip.compress(entry("a.png") + END)[:-8] + bytes(8), "damaged"),
    "gz with junk behind": (gzip.compress(entry("a.png") + END) + b"junk", "damaged"),
    "gz in gz": (gzip.compress(gzip.compress(entry("a.png") + END)), "damaged"),
    "gz of nothing": (gzip.compress(b""), "damaged|contains no files"),
    # Not archives at all.
    "a script": (b"#!/bin/sh\ntouch ran\n", "damaged"),
    "a pickle": (b"cos\nsystem\n(S'touch ran'\ntR.", "damaged"),
    "a 7z": (b"7z\xbc\xaf\x27\x1c" + bytes(99), "damaged"),
    "zeros": (bytes(10_240), "damaged|contains no files"),
}
SET = {f"{name}.zip": case for name, case in ZIPS.items()} | {
    f"{name}.tar": case for name, case in TARS.items()
}

# The program of the other process; its arguments are the folder of archives and a working folder.
PROGRAM = """
import contextlib, io, json, os, resource, sys, zipfile
from pathlib import Path
from ganpipe.fetch import archives
from ganpipe.common.errors import UserError
from ganpipe.fetch.stage import fetch
from ganpipe.params import Fetch

archives.RATIO_FROM = 10**7  # so that small bombs count
folder, work = map(Path, sys.argv[1:])
written, started = set(), []

def watch(event, args):
    if event == "open":
        path, mode, flags = args
        if (mode and set(mode) & set("wax+")) or (flags or 0) & (os.O_WRONLY | os.O_RDWR):
            written.add(str(path))
    elif event in ("os.rename", "os.link", "os.symlink", "os.mkdir", "os.truncate"):
        written.update(str(arg) for arg in args[:2] if isinstance(arg, (str, Path)))
    elif event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn"):
        started.append(str(args))

import tempfile; tempfile.tempdir = str(work / "tmp")
(work / "tmp").mkdir()
os.chdir(work)

def peak():  # getrusage also counts the parent's memory at the fork
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

before = peak()
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000_000,) * 2)
sys.addaudithook(watch)
results = {}
for archive in sorted(folder.iterdir()):
    root = work / "runs" / archive.name
    messages = io.StringIO()
    line = None
    with contextlib.redirect_stderr(messages):
        try:
            fetch(Fetch(source="archive", path=str(archive), url=None, sha256=None), root)
        except UserError as error:
            line = str(error)
        except BaseException as error:
            line = f"CRASH\\n{error!r}"
    out, packed = root / "stages/fetch", []
    if (out / "images.zip").exists():
        with zipfile.ZipFile(out / "images.zip") as made:
            packed = made.namelist()
    left = sorted(path.name for path in out.iterdir()) if out.exists() else []
    results[archive.name] = {"line": line, "messages": messages.getvalue(), "left": left}
    results[archive.name]["names"] = sorted(packed)
json.dump({"results": results, "written": sorted(written), "started": started, "grown": peak() - before,
           "temporary": os.listdir(work / "tmp")}, sys.stdout)
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Run the stage on the whole set; yield the results and the `folder` in which it ran."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "archives").mkdir()
    (folder / "work").mkdir()
    for name, (data, _) in SET.items():
        (folder / "archives" / name).write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, folder / "archives", folder / "work"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    yield json.loads(done.stdout) | {"folder": str(folder)}


def test_there_are_enough() -> None:
    """The set would have lost archives."""
    assert len(SET) >= 60


@pytest.mark.parametrize("name", SET)
def test_each_ends_as_it_should(outcome: dict[str, Any], name: str) -> None:
    """A hostile archive would be accepted, or a harmless one refused."""
    done, expected = outcome["results"][name], SET[name][1]
    if not isinstance(expected, str):
        assert done["line"] is None and expected(done), str(done)[:3000]
        assert done["left"] == ["images.zip", "labels.csv", "landmarks.csv", "manifest.csv", "source.json"]
        return
    output = f"{done['line'] or ''}{done['messages']}"
    assert re.search(expected, output), done
    if done["line"] is not None:
        assert "\n" not in done["line"] and len(done["line"]) < 600 and done["left"] == []


def test_names_in_the_stages_archive_are_safe(outcome: dict[str, Any]) -> None:
    """A user who unpacks images.zip would be attacked instead."""
    for done in outcome["results"].values():
        for name in done["names"]:
            assert not {"", ".", ".."} & set(name.split("/")) and "\\" not in name and len(name) <= 1000
            assert name.isprintable(), name


def test_nothing_escapes_and_nothing_runs(outcome: dict[str, Any]) -> None:
    """An archive of pictures could write files or run programs on the user's machine."""
    work = Path(outcome["folder"]) / "work"
    allowed = re.compile(
        re.escape(f"{work}/") + r"(runs(/[^/]+(/stages(/fetch(/\.?[\w.]+)?)?)?)?|tmp(/\w+)?)"
    )
    assert not [path for path in outcome["written"] if not allowed.fullmatch(path)]
    assert outcome["started"] == [] and not list(Path(outcome["folder"]).rglob("ran"))
    assert outcome["temporary"] == []


def test_memory_is_bounded(outcome: dict[str, Any]) -> None:
    """A small archive would use up the memory of the machine."""
    assert outcome["grown"] < 60_000, "kB"


def good_archives() -> dict[str, bytes]:
    """Return an archive of each kind by name, with long and non-ASCII file names."""
    archives = {}
    wanted = ["a.png", "é" * 60 + ".png", "x" * 150 + "/b.png"]
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(fileobj=(buffer := io.BytesIO()), mode="w", format=kind) as archive:
            for name in wanted:
                info = tarfile.TarInfo(name)
                info.size, info.mtime = len(PNG) * 20, 1.5
                archive.addfile(info, io.BytesIO(PNG * 20))
        archives[f"tar {kind}"] = buffer.getvalue()
    archives["gz"], archives["xz"] = gzip.compress(buffer.getvalue()), lzma.compress(buffer.getvalue())
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as packed:
        for name, method in zip(wanted, sorted(ZIP_METHODS), strict=True):
            packed.writestr(name, PNG * 20, method)
    return archives | {"zip": buffer.getvalue()}


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.long)])
def test_damage_of_any_kind_is_one_line(tmp_path: Path, count: int) -> None:
    """An archive damaged in transfer would cause a traceback or an endless loop."""
    good = good_archives()
    assert all(len(read(tmp_path, data)) == 3 for data in good.values())
    rng, refused = random.Random(0), 0
    for _ in range(count):
        data = bytearray(rng.choice([*good.values()]))
        for _ in range(rng.choice((1, 1, 2, 4))):
            offset, other = rng.randrange(len(data)), rng.randrange(len(data))
            match rng.choice("bbbbcsd"):
                case "b":
                    data[offset] = rng.choice((0, 255, data[offset] ^ 1 << rng.randrange(8)))
                case "c":
                    del data[offset + 1 :]
                case "s":
                    data[offset:offset] = data[other : other + rng.choice((1, 30, 512))]
                case "d":
                    del data[offset + 1 : offset + rng.choice((2, 4, 513))]
        try:
            read(tmp_path, bytes(data))
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > count / 2


def read(folder: Path, data: bytes) -> list[bytes]:
    """Read all files of an archive."""
    (folder / "a").write_bytes(data)
    content = []
    with listing(folder / "a") as files:
        for _, opener in files:
            with opener() as stream:
                content.append(stream.read())
    return content
