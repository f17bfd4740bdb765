from __future__ import annotations

import http.server
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.shards import remote, store, urls
from pipeline.shards.build import build_index
from pipeline.shards.index import HEADERS, load_offsets
from pipeline.shards.index_file import load_index
from pipeline.shards.scan import scan_shard
from pipeline.shards.tar import read_sample
from pipeline.shards.verify import verify_shards

CONTENT = bytes(range(256)) * 2000  # 512,000 bytes


class Faulty(http.server.BaseHTTPRequestHandler):
    """A file server with range requests that misbehaves according to `plan`, one word per GET, and then works.

    A number is a status; "cut" breaks the connection after 64 KiB, "stall" says nothing for longer than anyone waits,
    "short" announces more than it sends, "whole" ignores the range.
    """

    folder: ClassVar[Path]
    plan: ClassVar[list[str]] = []
    sent: ClassVar[int] = 0
    go_on: ClassVar[threading.Event] = threading.Event()
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.folder / self.path.lstrip("/")
        fault = self.plan.pop(0) if self.plan and self.command == "GET" else ""
        if fault.isdigit():
            self.send_error(int(fault))
            return
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        ranged = span is not None and fault != "whole"
        first, last = (int(span[1]), int(span[2] or len(data) - 1)) if ranged and span else (0, len(data) - 1)
        if first >= len(data) and ranged:
            self.send_error(416)
            return
        part = data[first : last + 1]
        if fault == "stall":
            self.go_on.wait()
        self.send_response(206 if ranged else 200)
        self.send_header("Content-Length", str(len(part) + (7 if fault == "short" else 0)))
        self.send_header("Accept-Ranges", "bytes")
        if ranged:
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "GET":
            body = part[: 64 << 10] if fault == "cut" else part
            Faulty.sent += len(body)
            self.wfile.write(body)
        if fault in ("cut", "short"):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    Faulty.folder, Faulty.plan, Faulty.sent, Faulty.go_on = tmp_path, [], 0, threading.Event()
    monkeypatch.setattr(remote, "BACKOFF_S", 0.001)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Faulty) as running:
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        Faulty.go_on.set()
        running.shutdown()


@given(st.integers(0, 600), st.integers(0, 600))
def test_local_ranges(tmp_path_factory: pytest.TempPathFactory, start: int, more: int) -> None:
    path = tmp_path_factory.getbasetemp() / "content"
    path.write_bytes(CONTENT[:512])
    assert store.read_range(str(path), start, start + more) == CONTENT[:512][start : start + more]
    assert store.read_range(f"file://{path}", start, start + more) == CONTENT[:512][start : start + more]


@pytest.mark.parametrize(
    "plan", [[], ["503", "503"], ["cut"] * 3, ["cut", "503", "429", "cut"], ["short", "short"], ["stall", "cut"]]
)
def test_http_reads_are_taken_up_again(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: list[str]
) -> None:
    (tmp_path / "content").write_bytes(CONTENT)
    monkeypatch.setattr(urls, "STALL_TIMEOUT_S", 0.5)
    Faulty.plan = list(plan)
    assert store.read_range(f"{server}/content", 1000, 500_000) == CONTENT[1000:500_000]
    assert Faulty.plan == []
    assert store.read_bytes(f"{server}/content") == CONTENT


def test_a_connection_cut_at_every_64_kib_still_delivers(server: str, tmp_path: Path) -> None:
    (tmp_path / "content").write_bytes(CONTENT)
    Faulty.plan = ["cut"] * 10_000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "PIECE", 128 << 10)
        assert store.read_range(f"{server}/content", 0, len(CONTENT)) == CONTENT


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (["404"], "no such file"),
        (["403"], "cannot be read"),
        (["503"] * 6, "cannot be read"),
        (["whole"], "byte ranges"),
    ],
)
def test_what_cannot_be_read_ends_in_one_sentence(server: str, tmp_path: Path, plan: list[str], words: str) -> None:
    (tmp_path / "content").write_bytes(CONTENT)
    Faulty.plan = list(plan)
    with pytest.raises(DataError, match=rf"{server}/content: .*{words}"):
        store.read_range(f"{server}/content", 0, 1000)
    assert Faulty.plan == []  # what cannot pass is not tried again


def test_a_reader_that_hangs_for_good_ends_in_one_sentence(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "content").write_bytes(CONTENT)
    monkeypatch.setattr(urls, "STALL_TIMEOUT_S", 0.1)
    monkeypatch.setattr(remote, "ATTEMPTS", 3)
    Faulty.plan = ["stall"] * 100
    with pytest.raises(DataError, match="/content: cannot be read"):
        store.read_range(f"{server}/content", 0, 1000)


def test_a_store_without_patience_of_its_own_is_watched_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    hangs = threading.Event()
    monkeypatch.setattr(urls, "STALL_TIMEOUT_S", 0.1)
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    monkeypatch.setattr(MemoryFileSystem, "cat_file", lambda *_, **__: hangs.wait())
    with pytest.raises(DataError, match=r"memory://x/a.tar: cannot be read \(no answer within"):
        store.read_range("memory://x/a.tar", 0, 10)
    hangs.set()


def test_headers_alone_are_a_small_part_of_a_remote_shard(server: str, tmp_path: Path, write_tar: Callable) -> None:
    write_tar(tmp_path / "a.tar", [(f"s{i}", {"png": bytes(200_000), "cls": str(i % 3).encode()}) for i in range(20)])
    whole = (tmp_path / "a.tar").stat().st_size
    scan = scan_shard(f"{server}/a.tar", headers_only=True)
    assert Faulty.sent < whole / 4
    local = scan_shard(str(tmp_path / "a.tar"))
    assert scan.sidecar.offsets.tolist() == local.sidecar.offsets.tolist()
    assert (scan.sidecar.tar_bytes, scan.samples) == (whole, local.samples)
    assert scan.sidecar.sha256 != local.sidecar.sha256
    assert scan_shard(str(tmp_path / "a.tar"), headers_only=True).sidecar.sha256 == scan.sidecar.sha256


def test_an_index_of_headers_is_verified_by_headers(folder: Path) -> None:
    index = build_index(str(folder), headers_only=True, workers=1)
    assert index.hash_of == HEADERS
    assert load_index(str(folder)).hash_of == HEADERS
    assert list(verify_shards(str(folder), decode_images=False, workers=1)) == []
    path = folder / "train-000002.tar"
    path.write_bytes(path.read_bytes()[:-512])
    assert [fault.shard for fault in verify_shards(str(folder), decode_images=False, workers=1)] == [str(path)]
    assert build_index(str(folder / "train-000000.tar"), workers=1).hash_of == "content"
    assert load_index(str(folder / "train-000000.tar"), check=False).hash_of == "content"


def test_shards_over_http(server: str, folder: Path, samples: Callable) -> None:
    build_index(str(folder), workers=1)
    index = load_index(f"{server}/train-{{000000..000002}}.tar")
    offsets = load_offsets(index.shards[2]).tolist()
    assert read_sample(store.read_range(index.shards[2].url, offsets[1], offsets[2])) == samples(1, first=6)[0]
    assert list(verify_shards(f"{server}/train-{{000000..000002}}.tar", decode_images=False, workers=1)) == []
    with pytest.raises(DataError, match=r"train-000003.tar"):
        load_index(f"{server}/train-{{000000..000003}}.tar")
    (folder / "index.json").unlink()
    with pytest.raises(DataError, match="cannot be written"):
        build_index(f"{server}/train-000000.tar")


def test_a_store_in_memory(folder: Path, samples: Callable) -> None:
    for path in folder.glob("*.tar"):
        store.write_bytes(f"memory://data/{path.name}", path.read_bytes())
    built = build_index("memory://data/train-*.tar", workers=1)
    assert built.digest == build_index(str(folder), workers=1).digest == load_index("memory://data").digest


def test_shards_on_s3(s3: Path, folder: Path, samples: Callable) -> None:
    (s3 / "bucket").mkdir()
    for path in folder.glob("*.tar"):
        (s3 / "bucket" / path.name).write_bytes(path.read_bytes())
    build_index("s3://bucket/train-*.tar", workers=2)
    index = load_index("s3://bucket")
    assert index.counts.tolist() == [5, 0, 3]
    offsets = load_offsets(index.shards[0]).tolist()
    assert read_sample(store.read_range(index.shards[0].url, offsets[4], offsets[5])) == samples(5)[4]
    assert list(verify_shards("s3://bucket", decode_images=False, workers=1)) == []
    (s3 / "bucket" / "train-000000.tar").write_bytes(b"short")
    with pytest.raises(DataError, match=r"s3://bucket/train-000000.tar: found 5 bytes, but"):
        load_index("s3://bucket")
    with pytest.raises(DataError, match="s3://nobucket"):
        load_index("s3://nobucket/train-*.tar")
    with pytest.raises(DataError, match=r"s3://nobucket/a.tar: no such file; .* name and credentials"):
        store.read_range("s3://nobucket/a.tar", 0, 10)


def test_a_store_that_does_not_know_who_asks_is_one_sentence(s3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec
    from s3fs import S3FileSystem

    endpoint = fsspec.config.conf["s3"]["endpoint_url"]
    for name in ("FSSPEC_S3_KEY", "FSSPEC_S3_SECRET"):
        monkeypatch.delenv(name)
    for settings in ({}, {"key": "wrong", "secret": "wrong"}):
        S3FileSystem.clear_instance_cache()
        monkeypatch.setattr("fsspec.config.conf", {"s3": {"endpoint_url": endpoint, **settings}})
        began = time.monotonic()
        with pytest.raises(DataError, match=r"s3://bucket/a.tar: cannot be read .*credentials"):
            store.read_range("s3://bucket/a.tar", 0, 10)
        assert time.monotonic() - began < 60
    S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("read", [store.read_bytes, store.list_sizes, lambda url: store.read_range(url, 0, 1)])
def test_programs_and_unknown_protocols_are_refused(read: Callable[[str], object]) -> None:
    with pytest.raises(DataError, match="refused"):
        read("pipe:cat /etc/passwd")
    with pytest.raises(DataError, match="'nosuch:'"):
        read("nosuch://host/file")


def test_a_write_replaces_whole_files_only(tmp_path: Path) -> None:
    store.write_bytes(str(tmp_path / "a"), b"one")
    store.write_bytes(f"file://{tmp_path}/a", b"two")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"two")]
    with pytest.raises(DataError, match="cannot be written"):
        store.write_bytes(str(tmp_path / "none" / "a"), b"")
