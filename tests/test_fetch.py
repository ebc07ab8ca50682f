"""Fetching, from a real HTTP server on this machine's loopback."""

import gzip
import hashlib
import os
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from test_data import mat, refused, started

from glas_bench import data
from glas_bench.data import sources
from glas_bench.errors import DataError

PARTS = ("train", "valid", "test")
CONTENT = {f"binarized_mnist_{part}.amat": part.encode() * 50_000 for part in PARTS}
CONTENT["chardata.mat"] = b"glyphs" * 50_000


class Handler(BaseHTTPRequestHandler):
    """Serve what lies in ``server.files``, in the way that the first part of the path says."""

    def do_GET(self):
        _, how, file = self.path.split("/")
        self.server.asked.append(self.path)
        if how in ("gone", "502"):
            self.send_error(404 if how == "gone" else 502)
            return
        if how == "silent":
            self.server.over.wait(10)
        elsewhere = {"moved": f"/right/{file}", "loop": self.path}.get(how)
        content = b"" if elsewhere else self.server.files[file]
        self.send_response(302 if elsewhere else 200)
        self.send_header("Location", elsewhere)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if how == "wrong":
            content = b"<html>" + content[6:]
        elif how in ("cut", "stalled"):
            content = content[: len(content) // 2]
        self.wfile.write(content)
        self.wfile.flush()
        if how == "stalled":
            self.server.over.wait(10)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = dict(CONTENT)
        self.asked: list[str] = []
        self.over = threading.Event()
        self.address = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_):  # a client that gave up is meant
        pass


@pytest.fixture
def server():
    with Server() as one:
        thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield one
        one.over.set()
        one.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def serve(server, monkeypatch):
    """Let all addresses point at the server, and know its small files by their digests."""

    def use(how="right"):
        for file, content in server.files.items():
            digest = sources.digest(content, sources.SOURCES[file].digest)
            source = sources.Source(f"{server.address}/{how}/{file}", digest)
            monkeypatch.setitem(sources.SOURCES, file, source)

    return use


def own_folder(folder, monkeypatch, **files):
    """Make a folder that holds some files, as GLAS_BENCH_DATA."""
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    monkeypatch.setenv("GLAS_BENCH_DATA", str(folder))
    return folder


def fetch_refused(name, *words):
    refused(DataError, *words, act=data.fetch, name=name, progress=False)


def left(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("how", ["right", "moved"])
@pytest.mark.parametrize("name", ["mnist-static", "omniglot"])
def test_missing_files_are_fetched_once(how, name, serve, server):
    serve(how)
    assert data.present(name) is None
    paths = data.fetch(name, progress=False)
    assert [path.name for path in paths] == list(sources.FILES[name])
    assert all(path.read_bytes() == CONTENT[path.name] for path in paths)
    assert left(sources.cache_folder()) == sorted(sources.FILES[name])
    assert data.present(name) == ", ".join(map(str, paths))
    asked = len(server.asked)
    assert data.fetch(name, progress=False) == paths
    assert len(server.asked) == asked


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("wrong", "gave another file than the published"),
        ("cut", "the connection was cut"),
        ("gone", "the server answered 404"),
        ("502", "the server answered 502 Bad Gateway"),
        ("loop", "too many redirects"),
        ("silent", "the server did not answer for 0.3 s"),
        ("stalled", "the server did not answer for 0.3 s"),
    ],
)
@pytest.mark.parametrize("name", ["mnist-static", "omniglot"])
def test_a_failed_fetch_is_one_message_and_leaves_nothing(how, words, name, serve, monkeypatch):
    serve(how)
    monkeypatch.setattr(sources, "TIMEOUT", 0.3 if how in ("silent", "stalled") else 60.0)
    file = sources.FILES[name][0]
    fetch_refused(name, sources.SOURCES[file].address, words, "GLAS_BENCH_DATA", file)
    assert left(sources.cache_folder()) == []


def test_no_network_names_the_address_and_the_way_out(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/chardata.mat"
    source = sources.SOURCES["chardata.mat"]._replace(address=address)
    monkeypatch.setitem(sources.SOURCES, "chardata.mat", source)
    fetch_refused("omniglot", address, "no connection", "GLAS_BENCH_DATA")
    refused(DataError, "no connection", name="omniglot")


def test_files_go_into_the_users_folder(serve, tmp_path, monkeypatch):
    serve()
    mine = tmp_path / "mine"
    monkeypatch.setenv("GLAS_BENCH_DATA", str(mine))
    assert data.fetch("omniglot", progress=False) == [mine / "chardata.mat"]
    umask = os.umask(0)
    os.umask(umask)
    assert (mine / "chardata.mat").stat().st_mode & 0o777 == 0o666 & ~umask  # colleagues can read
    assert not sources.cache_folder().exists()


def test_a_users_folder_that_cannot_be_written_is_passed_over(serve, tmp_path, monkeypatch):
    serve()
    (tmp_path / "file").touch()
    monkeypatch.setenv("GLAS_BENCH_DATA", str(tmp_path / "file" / "data"))
    assert data.fetch("omniglot", progress=False) == [sources.cache_folder() / "chardata.mat"]
    sources.cache_folder().joinpath("chardata.mat").unlink()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    fetch_refused("omniglot", "cannot be written", "GLAS_BENCH_DATA")


def test_only_what_is_missing_is_fetched(serve, server, tmp_path, monkeypatch):
    serve()
    train, valid, test = sources.FILES["mnist-static"]
    kept = {f"{train}.gz": gzip.compress(CONTENT[train])}
    mine = own_folder(tmp_path / "mine", monkeypatch, **kept)
    paths = data.fetch("mnist-static", progress=False)
    assert paths == [mine / f"{train}.gz", mine / valid, mine / test]
    assert server.asked == [f"/right/{valid}", f"/right/{test}"]


def test_a_broken_file_is_fetched_again_in_the_cache_alone(serve, tmp_path, monkeypatch):
    serve()
    (path,) = data.fetch("omniglot", progress=False)
    path.write_bytes(b"broken")
    assert data.fetch("omniglot", progress=False) == [path]
    assert path.read_bytes() == CONTENT["chardata.mat"]
    mine = own_folder(tmp_path / "mine", monkeypatch, **{"chardata.mat": b"broken"})
    fetch_refused("omniglot", str(mine / "chardata.mat"), "not the published", "Remove it")
    assert (mine / "chardata.mat").read_bytes() == b"broken"


def test_progress_is_drawn_on_stderr_alone(serve, monkeypatch, capfd):
    serve()
    line = f"fetching {sources.SOURCES['chardata.mat'].address}"
    data.fetch("omniglot")
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.startswith(line)
    assert "100%" in said.err
    (sources.cache_folder() / "chardata.mat").unlink()
    monkeypatch.setitem(sys.modules, "tqdm", None)
    data.fetch("omniglot")
    assert capfd.readouterr() == ("", f"{line}\n")
    (sources.cache_folder() / "chardata.mat").unlink()
    data.fetch("omniglot", progress=False)
    assert capfd.readouterr() == ("", "")


FETCH = """
import resource, sys
from glas_bench import errors
from glas_bench.data import sources
address, sha, limit = sys.argv[1:]
if int(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
sources.SOURCES["chardata.mat"] = sources.Source(address, sha)
try:
    print(*sources.fetch_files("omniglot", progress=False))
except errors.DataError as error:
    print(error)
"""


def fetch_in_a_process(server, limit=0):
    sha = "sha256:" + hashlib.sha256(server.files["chardata.mat"]).hexdigest()
    return started(FETCH, f"{server.address}/right/chardata.mat", sha, limit)


@pytest.mark.skipif(sys.platform == "win32", reason="the script uses the module resource")
def test_two_processes_fetch_at_once(server):
    server.files["chardata.mat"] = b"glyphs" * 5_000_000
    both = [fetch_in_a_process(server) for _ in range(2)]
    said = [process.communicate(timeout=60) for process in both]
    path = sources.cache_folder() / "chardata.mat"
    assert said == [(f"{path}\n", "")] * 2
    assert path.read_bytes() == server.files["chardata.mat"]
    assert left(sources.cache_folder()) == ["chardata.mat"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_a_full_disk_leaves_no_part_of_a_file(server):
    said, trouble = fetch_in_a_process(server, limit=100_000).communicate(timeout=60)
    assert "cannot store chardata.mat" in said
    assert trouble == ""
    assert left(sources.cache_folder()) == []


def test_what_is_fetched_is_loaded_and_not_fetched_again(serve, server, tmp_path):
    path = mat(tmp_path)
    server.files["chardata.mat"] = path.read_bytes()
    serve()
    expected = data.load("omniglot", data_file=path).hash
    assert [data.load("omniglot").hash for _ in range(2)] == [expected] * 2
    assert server.asked == ["/right/chardata.mat"]
