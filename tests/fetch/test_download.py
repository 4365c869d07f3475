"""Downloads from a real server that breaks off, stalls, sends wrong lengths or changes its file."""

import dataclasses
import functools
import hashlib
import http.server
import json
import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_zip

from ganpipe.common.errors import UserError
from ganpipe.fetch import download
from ganpipe.fetch.catalogue import SOURCES
from ganpipe.fetch.download import Remote, cached
from ganpipe.fetch.paths import PLACEHOLDER
from ganpipe.fetch.stage import fetch
from ganpipe.params import Fetch

DATA = np.random.default_rng(0).bytes(3_000_000)


class Site:
    """The behaviour of a server, which offers one file under every path.

    Attributes:
        data, etag: the file and its version.
        later: (data, etag) that replace them after the first request.
        cuts: offsets in the file at which connections end, one after the other.
        answers: status codes of the first answers.
        ranges, conditions: whether the server obeys Range and If-Range.
        lie: error of the Content-Length. chunked: it is left out. endless: the answer never ends.
        stall: once, the first cut leaves the connection open without bytes. patience: an event that ends it.
        requests: the Range of each request. paths: their paths. sent: bytes of the file that were sent.
    """

    def __init__(self, data: bytes = DATA) -> None:
        self.data, self.etag = data, '"1"'
        self.later: tuple[bytes, str] | None = None
        self.cuts: list[int] = []
        self.answers: list[int] = []
        self.ranges = self.conditions = True
        self.lie, self.chunked, self.endless, self.stall = 0, False, False, False
        self.patience = threading.Event()
        self.requests: list[str | None] = []
        self.paths: list[str] = []
        self.sent = 0


class Handler(http.server.BaseHTTPRequestHandler):
    """Serve a Site."""

    def __init__(self, site: Site, *args: Any) -> None:
        self.site = site
        super().__init__(*args)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        """Answer as the site describes."""
        site, span = self.site, self.headers.get("Range")
        site.requests.append(span)
        site.paths.append(self.path)
        if site.answers and (code := site.answers.pop(0)) != 200:
            self.send_error(code)
            return
        data, etag = site.data, site.etag
        if site.later:
            (site.data, site.etag), site.later = site.later, None
        start = 0
        if span and site.ranges and (not site.conditions or self.headers.get("If-Range", etag) == etag):
            start = int(span.removeprefix("bytes=").removesuffix("-"))
        if start >= len(data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(data)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if etag:
            self.send_header("ETag", etag)
        if not site.chunked:
            self.send_header("Content-Length", str(len(data) - start + site.lie))
        self.end_headers()
        end = len(data)
        if site.cuts:
            end = site.cuts.pop(0)
        self._write(data[start:end])
        if site.stall and end < len(data):
            site.stall = False
            site.patience.wait(10)
        while site.endless and self._write(bytes(100_000)):
            pass

    def _write(self, block: bytes) -> bool:
        try:
            self.wfile.write(block)
        except OSError:
            return False  # the client closed the connection
        self.site.sent += len(block)
        return True


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace waiting between attempts; return the list of the waits in seconds."""
    waited: list[float] = []
    monkeypatch.setattr(download, "sleep", waited.append)
    return waited


@pytest.fixture
def serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> Iterator[Callable[..., str]]:
    """Return a function that serves a site and returns its address; use a cache of the test's own."""
    monkeypatch.setenv("GANPIPE_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    servers = []

    def start(site: Site) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, site))
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append((server, site))
        return f"http://127.0.0.1:{server.server_port}/a.zip"

    yield start
    for server, site in servers:
        site.patience.set()
        server.shutdown()
        server.server_close()


def get(*addresses: str, data: bytes = DATA, sha256: bool = True, size: bool = True) -> bytes:
    """Download a file of known or unknown sha256 and size; return its bytes in the cache."""
    digest = hashlib.sha256(data).hexdigest() if sha256 else None
    remote = Remote("a.zip", len(data) if size else None, digest, addresses)
    (path,) = cached("some", [remote], "get it by hand", offline=False)
    assert sorted(p.name for p in path.parent.iterdir()) in (["a.zip"], [".lock", "a.zip"])
    return path.read_bytes()


def refusal(*addresses: str, **known: bool) -> str:
    """Return the one-line error of a download; check that the cache has no such file."""
    with pytest.raises(UserError) as caught:
        get(*addresses, **known)  # type: ignore[arg-type]
    line = str(caught.value)
    assert "\n" not in line and line.endswith("; get it by hand") and all(a in line for a in addresses)
    assert not (download.cache() / "some/a.zip").exists()
    return line


def closed_port() -> str:
    """Return a local address on which no server listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}/a.zip"


@pytest.mark.parametrize("known", [True, False])
def test_twenty_cuts_at_random_places(
    serve: Callable[..., str], waits: list[float], capsys: pytest.CaptureFixture[str], known: bool
) -> None:
    """1.4 GB over a bad connection would never arrive, or with lost or repeated bytes."""
    site = Site()
    offsets = sorted(random.Random(0).sample(range(1, len(DATA)), 20))
    site.cuts = [*offsets]
    assert get(serve(site), sha256=known, size=known) == DATA
    assert site.requests == [None, *(f"bytes={offset}-" for offset in offsets)]
    assert site.sent == len(DATA) and waits == [1] * 20
    output = capsys.readouterr().err
    assert "fetch some: 3/3 MB (100%)" in output and output.count("trying again in 1 s") == 20


@pytest.mark.parametrize("known", [True, False])
def test_a_later_run_resumes(serve: Callable[..., str], known: bool) -> None:
    """A killed download would start again from the beginning each time."""
    site = Site()
    site.cuts, site.answers = [1_234_567], [200, 404]
    address = serve(site)
    assert "404" in refusal(address, sha256=known, size=known)
    part = download.cache() / "some/a.zip.part"
    assert part.read_bytes() == DATA[:1_234_567]
    assert get(address, sha256=known, size=known) == DATA and site.requests[-1] == "bytes=1234567-"


def test_a_part_from_another_address_or_without_a_version(serve: Callable[..., str]) -> None:
    """Without a known sha256, parts of different files would be joined unnoticed."""
    for note in (b"", b'http://other/a.zip\n"1"', b"\xff\0", None):
        site = Site()
        address = serve(site)
        folder = download.cache() / "some"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "a.zip").unlink(missing_ok=True)
        (folder / "a.zip.part").write_bytes(b"of another file")
        (folder / "a.zip.part.version").write_bytes(f"{address}\n".encode() if note is None else note)
        assert get(address, sha256=False, size=False) == DATA and site.requests == [None]


def test_a_whole_part_needs_no_download(serve: Callable[..., str]) -> None:
    """A run killed between the last byte and the rename would download everything again."""
    site = Site()
    folder = download.cache() / "some"
    folder.mkdir(parents=True)
    address = serve(site)
    for size in (True, False):
        (folder / "a.zip").unlink(missing_ok=True)
        (folder / "a.zip.part").write_bytes(DATA)
        assert get(address, size=size) == DATA
    assert site.requests == [f"bytes={len(DATA)}-"] and site.sent == 0


def test_a_server_that_ignores_ranges(serve: Callable[..., str], waits: list[float]) -> None:
    """The start of the file would be written into its middle, or the same cut be retried endlessly."""
    site = Site()
    site.ranges, site.cuts = False, [500_000, 2_000_000, 1_000_000]
    assert get(serve(site)) == DATA and len(site.requests) == 4 and waits == [1, 1, 2]
    stubborn = Site()
    stubborn.ranges, stubborn.cuts = False, [500_000] * 99
    (download.cache() / "some/a.zip").unlink()
    assert (
        "500000" in refusal(serve(stubborn)).replace(",", "") and len(stubborn.requests) == download.ATTEMPTS
    )


@pytest.mark.parametrize("conditions", [True, False])
@pytest.mark.parametrize("etags", [('"1"', '"2"'), ("", ""), ('W/"1"', 'W/"2"')])
@pytest.mark.parametrize("known", [True, False])
def test_a_file_that_changes_between_parts(
    serve: Callable[..., str], conditions: bool, etags: tuple[str, str], known: bool
) -> None:
    """Half of the old and half of the new file would be joined."""
    site = Site(bytes(reversed(DATA)))
    site.etag, site.later, site.conditions = etags[0], (DATA, etags[1]), conditions
    site.cuts = [1_000_000]
    assert get(serve(site), sha256=known, size=known) == DATA
    if conditions and etags[0].startswith('"'):
        assert site.requests == [None, "bytes=1000000-"]  # answered with the whole file
    if not known and not etags[0].startswith('"'):
        assert site.requests == [None, None]  # a wrong join would not be noticed


def test_wrong_bytes_never_arrive(serve: Callable[..., str], waits: list[float]) -> None:
    """A login page or a changed file would be taken for the data set."""
    wrong = Site(DATA[:-1] + b"x")
    line = refusal(serve(wrong))
    assert "its bytes are not those with the sha256" in line and len(wrong.requests) == 1 and not waits
    wrong.cuts = [10]
    refusal(serve(wrong))
    assert len(wrong.requests) == 4, "a joined file was not downloaded once more from the start"
    portal = Site(b"please log in")
    assert "has 13 bytes, not 3,000,000" in refusal(serve(portal))
    assert get(serve(wrong), serve(portal), serve(Site())) == DATA


def test_errors_of_the_server(serve: Callable[..., str], waits: list[float]) -> None:
    """A busy server would end a queue; a missing file would be requested again and again."""
    busy = Site()
    busy.answers = [503, 429, 204]
    assert get(serve(busy)) == DATA and waits == [1, 2, 4]
    (download.cache() / "some/a.zip").unlink()
    waits.clear()
    broken, gone = Site(), Site()
    broken.answers, gone.answers = [502] * 99, [404] * 99
    assert get(serve(broken), serve(gone), closed_port(), serve(Site())) == DATA
    assert waits == [1, 2, 4, 8] * 2 and len(gone.requests) == 1
    (download.cache() / "some/a.zip").unlink()
    assert "502" in (line := refusal(serve(broken), serve(gone), closed_port()))
    assert "404" in line and "refused" in line


def test_lies_about_the_length(serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is too short or too long would be accepted, or fill the disk."""
    longer, shorter, endless = Site(), Site(), Site()
    longer.lie, shorter.lie, endless.endless, endless.chunked = 10, -10, True, True
    assert "bytes, not 3,000,000" in refusal(serve(longer))
    assert "bytes, not 3,000,000" in refusal(serve(shorter))
    assert "its bytes are not those" in refusal(serve(shorter), size=False)
    assert "goes on after 3,000,000 bytes" in refusal(serve(endless))
    monkeypatch.setattr(download, "MAX_BYTES", 5_000_000)
    assert "goes on after 5,000,000 bytes" in refusal(serve(endless), size=False)
    assert not list((download.cache() / "some").glob("a.zip*"))
    plain = Site()
    plain.chunked, plain.cuts = True, [700_000]  # only the known size reveals that bytes are missing
    assert get(serve(plain)) == DATA and plain.requests == [None, "bytes=700000-"]


def test_a_server_that_says_nothing(serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A stalled server would stop a queue forever."""
    monkeypatch.setattr(download, "TIMEOUT", 1.0)
    site = Site()
    site.cuts, site.stall = [900_000], True
    assert get(serve(site)) == DATA and site.requests == [None, "bytes=900000-"]
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        (download.cache() / "some/a.zip").unlink()
        assert "timed out" in refusal(f"http://127.0.0.1:{silent.getsockname()[1]}/a.zip")


def test_a_small_file_has_no_bar(serve: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    """The progress of MNIST's labels would be output as 0 of 0 MB."""
    assert get(serve(Site(b"tiny")), data=b"tiny") == b"tiny"
    assert "downloading a.zip (4 bytes) to" in (output := capsys.readouterr().err) and "MB" not in output


def test_a_proxy_is_used(serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters that reach the web only through a proxy could not download."""
    site = Site()
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", serve(site).removesuffix("/a.zip"))
    assert get("http://pictures.invalid/a.zip") == DATA
    assert site.paths == ["http://pictures.invalid/a.zip"]


def test_a_full_disk_is_no_fault_of_the_server(
    serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The download would be retried, and the error blamed on the address."""
    site = Site()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        get(serve(site))
    assert len(site.requests) == 1


def test_side_by_side_one_downloads(serve: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    """Parallel experiments would write into the same file."""
    site = Site()
    site.cuts, site.stall = [1_500_000], True
    address, downloads = serve(site), []
    threads = [threading.Thread(target=lambda: downloads.append(get(address))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(3000):
        if waits := "waiting for another process" in capsys.readouterr().err:
            break
        threads[0].join(0.01)
    assert waits, "both downloaded"
    site.patience.set()
    for thread in threads:
        thread.join()
    assert downloads == [DATA, DATA] and site.sent == len(DATA)


def test_offline_uses_files_in_the_cache(serve: Callable[..., str], tmp_path: Path) -> None:
    """A machine without network would wait for timeouts; one that must not use the network would use it."""
    site = Site()
    remote = Remote("a.zip", len(DATA), hashlib.sha256(DATA).hexdigest(), (serve(site),))
    with pytest.raises(
        UserError, match=f"OFFLINE is set, and {tmp_path}/cache/some lacks a.zip; unset it, or x"
    ):
        cached("some", [remote], "x", offline=True)
    path = tmp_path / "cache/some/a.zip"
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA)
    assert cached("some", [remote], "x", offline=True) == [path]
    path.write_bytes(DATA[1:])
    with pytest.raises(UserError, match="lacks a.zip"):
        cached("some", [remote], "x", offline=True)
    assert not site.requests


def stage(root: Path, source: str, **more: str) -> Path:
    """Run fetch with a source that is downloaded; return the stage's folder."""
    params = {"source": source, "path": PLACEHOLDER, "url": None, "sha256": None} | more
    fetch(Fetch.model_validate(params), root)
    return root / "stages/fetch"


def test_a_wrong_checksum_never_reaches_the_stage(serve: Callable[..., str], tmp_path: Path) -> None:
    """A manipulated mirror would decide what people train on."""
    good = make_zip(tmp_path / "good.zip", [("1.png", b"one")]).read_bytes()
    digest = hashlib.sha256(good).hexdigest()
    address = serve(Site(good))
    out = stage(tmp_path, "url", url=address, sha256=digest)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    facts = json.loads(before["source.json"])
    assert facts["address"] == address and facts["read"][0]["sha256"] == digest and facts["files"] == 1
    poisoned = make_zip(tmp_path / "bad.zip", [("1.png", b"two")]).read_bytes()
    with pytest.raises(UserError, match="its bytes are not those with the sha256 " + digest):
        stage(tmp_path, "url", url=serve(Site(poisoned)), sha256=digest)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    with pytest.raises(UserError, match="its bytes are not those with the sha256 0000"):
        stage(tmp_path, "url", url=address, sha256="0" * 64)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_sets_of_one_file_and_of_two(
    serve: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of CAT's pictures would be missing, because it has two archives."""
    archives = {
        "CAT_DATASET_01.zip": [
            ("CAT_00/00000001_000.jpg", b"1"),
            ("CAT_00/00000001_000.jpg.cat", b"2 1 2 3 4"),
        ],
        "CAT_DATASET_02.zip": [("CAT_03/00000002_000.jpg", b"2")],
        "img_align_celeba.zip": [("img_align_celeba/000001.jpg", b"face")],
    }
    sites = {
        name: Site(make_zip(tmp_path / name, members).read_bytes()) for name, members in archives.items()
    }
    for source, names in {"cat": [*archives][:2], "celeba": [*archives][2:]}.items():
        remotes = tuple(
            Remote(
                name,
                len(sites[name].data),
                hashlib.sha256(sites[name].data).hexdigest(),
                (serve(sites[name]),),
            )
            for name in names
        )
        monkeypatch.setitem(SOURCES, source, dataclasses.replace(SOURCES[source], remotes=remotes))
    out = stage(tmp_path, "cat")
    assert json.loads((out / "source.json").read_text())["files"] == 2
    assert [r["name"] for r in json.loads((out / "source.json").read_text())["read"]] == [*archives][:2]
    assert "00000001_000.jpg,1.0,2.0,3.0,4.0" in (out / "landmarks.csv").read_text()
    stage(tmp_path, "celeba")
    assert "000001.jpg" in (out / "manifest.csv").read_text()
    stage(tmp_path, "celeba")
    assert [len(site.requests) for site in sites.values()] == [1, 1, 1], "downloaded more than once"


@pytest.mark.parametrize("source", [name for name, source in SOURCES.items() if source.remotes])
def test_a_machine_without_network_is_told_what_to_do(
    serve: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """A user of an offline cluster would see a traceback that does not mention fetch.path."""
    declared = SOURCES[source]
    remotes = tuple(dataclasses.replace(remote, addresses=(closed_port(),)) for remote in declared.remotes)
    monkeypatch.setitem(SOURCES, source, dataclasses.replace(declared, remotes=remotes))
    with pytest.raises(UserError) as caught:
        stage(tmp_path, source)
    line = str(caught.value)
    assert "\n" not in line and remotes[0].addresses[0] in line and "refused" in line
    assert f"by hand from {declared.page}" in line and "set fetch.path to its path" in line
    assert all(remote.name in line for remote in remotes)


def test_addresses_are_torchvisions() -> None:
    """A mistyped address or name would make a set unreachable; no other test would notice."""
    from torchvision import datasets

    for source, kind in (("mnist", datasets.MNIST), ("fashion_mnist", datasets.FashionMNIST)):
        remotes = SOURCES[source].remotes
        assert {remote.name for remote in remotes} <= {name for name, _ in kind.resources} and len(
            remotes
        ) == 2
        assert all(remote.addresses[0] == kind.mirrors[0] + remote.name for remote in remotes)
    flowers = SOURCES["flowers102"].remotes
    assert [remote.name for remote in flowers] == [
        datasets.Flowers102._file_dict[kind][0] for kind in ("image", "label")
    ]
    assert all(r.addresses == (datasets.Flowers102._download_url_prefix + r.name,) for r in flowers)
    (faces,) = SOURCES["celeba"].remotes
    assert faces.name in {name for _, _, name in datasets.CelebA.file_list}


def test_the_cache_is_where_people_expect_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each queued experiment would download into its own copy of the checkout."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("GANPIPE_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert download.cache() == tmp_path / ".cache/ganpipe"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert download.cache() == Path("/x/ganpipe")
    monkeypatch.setenv("GANPIPE_DATA", "~/sets")
    assert download.cache() == tmp_path / "sets"
    monkeypatch.setenv("GANPIPE_DATA", "sets")
    with pytest.raises(UserError, match="absolute"):
        download.cache()
