from __future__ import annotations

import functools
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.shards.make import _fashion_mnist_files as files
from pipeline.shards.make._fashion_mnist_files import (
    DEBIAN_FOLDER,
    Unavailable,
    download,
    located,
    unpack_debian_package,
)

real = pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")


@pytest.fixture
def serve() -> Iterator[functools.partial]:
    servers = []

    def start(folder: Path) -> str:
        class Quiet(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

        handler = functools.partial(Quiet, directory=str(folder))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield functools.partial(start)
    for server in servers:
        server.shutdown()
        server.server_close()


def fake_tools(folder: Path, monkeypatch: pytest.MonkeyPatch, apt_get: str) -> None:
    """Only this `apt-get`, a shell script, is on the path, beside the real dpkg."""
    folder.mkdir()
    (folder / "apt-get").write_text(f"#!/bin/sh\n{apt_get}\n")
    (folder / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@real
def test_what_was_downloaded_is_compared_with_known_hashes(serve: functools.partial, tmp_path: Path) -> None:
    assert download(tmp_path, serve(DEBIAN_FOLDER)) == tmp_path
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    for path in tmp_path.glob("*.gz"):
        (wrong / path.name).write_bytes((tmp_path / "t10k-labels-idx1-ubyte.gz").read_bytes())
    with pytest.raises(Unavailable, match="is not Fashion-MNIST"):
        download(tmp_path, serve(wrong))


def test_a_server_without_the_files(serve: functools.partial, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"train-images-idx3-ubyte.gz cannot be downloaded \(HTTP Error 404"):
        download(tmp_path, serve(tmp_path))


def test_apt_that_fails_or_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "echo 'E: Temporary failure resolving' >&2; echo 'W: Target configured twice' >&2; exit 100"
    fake_tools(tmp_path / "bin", monkeypatch, said)
    with pytest.raises(Unavailable, match=r"`apt-get -c apt.conf update` failed \(E: Temporary failure resolving"):
        unpack_debian_package(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))
    with pytest.raises(Unavailable, match="apt-get is not installed"):
        unpack_debian_package(empty)


# Without lists in a folder that the user may write, as in a container, apt finds no package.
WITHOUT_LISTS = """
[ "$1" = -c ] || { echo 'E: Unable to locate package' >&2; exit 100; }
[ -d "$(sed -n 's/^Dir::State::Lists "\\(.*\\)";/\\1/p' "$2")/partial" ] || exit 100
[ "$3" = update ] ||"""


@pytest.mark.skipif(not os.path.exists("/usr/bin/dpkg-deb"), reason="needs dpkg-deb")
@pytest.mark.parametrize("condition", ["", WITHOUT_LISTS], ids=["package lists", "no package lists"])
def test_a_package_is_unpacked_without_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, condition: str) -> None:
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    fields = "Package: dataset-fashion-mnist\nVersion: 1\nArchitecture: all\nMaintainer: x <x@y.z>\nDescription: x\n"
    (tree / "DEBIAN" / "control").write_text(fields)
    inside = tree / DEBIAN_FOLDER.relative_to("/")
    inside.mkdir(parents=True)
    for name in files.SHA256:
        (inside / f"{name}.gz").write_bytes(b"x")
    fake_tools(tmp_path / "bin", monkeypatch, f"{condition} dpkg-deb -b {tree} dataset-fashion-mnist_1_all.deb")
    work = tmp_path / "work"
    work.mkdir()
    assert sorted(path.name for path in unpack_debian_package(work).iterdir()) == sorted(
        f"{n}.gz" for n in files.SHA256
    )


def test_without_any_source_each_reason_and_the_remedy_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "DEBIAN_FOLDER", tmp_path / "absent")
    monkeypatch.setattr(download, "__defaults__", ("http://127.0.0.1:9",))
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(DataError, match=r"apt-get is not installed; http.* cannot be downloaded .*--src"),
        located(None),
    ):
        pass
