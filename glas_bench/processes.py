"""Processes beside this one: given a line on stdin, they tell events as JSON lines on stdout.

Their stdin stays open as long as they are wanted: it closes when this process dies, however that
is, and they end then. `Beside` is this side of such a process, `serve` the other.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from glas_bench import environment, signals


class Beside:
    """A process that runs a module of this package.

    Args:
        module: its name.
        order: what it is given, as a line of JSON.
        tell: called with its events, from a thread of its own; with None once it has ended.
        surroundings: environment variables beside this process's own.
        pass_fds: file descriptors that it inherits.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(
        self,
        module: str,
        order: Mapping[str, Any],
        tell: Callable[[dict[str, Any] | None], None],
        *,
        surroundings: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        command, own = environment.child(module)
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        try:
            self.process = subprocess.Popen(
                command,
                env={**own, **(surroundings or {})},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                pass_fds=pass_fds,
                start_new_session=True,  # Ctrl-C reaches the parent alone, which passes it on
            )
        except OSError:
            self.errors.close()
            raise
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # one that dies at once is told of by its exit
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            self.process.stdin.flush()
        self.listener = threading.Thread(target=self._listen, args=(tell,), daemon=True)
        self.listener.start()

    def _listen(self, tell: Callable[[dict[str, Any] | None], None]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):
                tell(json.loads(line))
        self.process.wait()
        tell(None)

    def stop(self) -> None:
        """Ask it to checkpoint and end."""
        self.process.terminate()

    @property
    def ended_by(self) -> tuple[int, str]:
        """Its exit code, once it has ended (below 0: the signal's), and its last word on stderr."""
        self.errors.seek(0)
        last = self.errors.read().decode(errors="replace").strip().splitlines()[-1:]
        return self.process.returncode, "".join(last)

    def close(self) -> None:
        """Let go of it; kill it if it has not ended."""
        if self.process.poll() is None:
            self.process.kill()
        self.listener.join()
        for pipe in (self.process.stdin, self.process.stdout, self.errors):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()


# --------------------------------------------------------------------------- the other side

Tell = Callable[[dict[str, Any]], None]
"""Called with an event."""


def serve(work: Callable[[dict[str, Any], Tell], int]) -> NoReturn:
    """Be such a process, and end with the exit code that `work` returns.

    Args:
        work: given the order and what to call with events, from any thread. SIGTERM and Ctrl-C are
            noted in `signals` for it to look at.
    """
    signals.install()
    with signals.graceful():
        order = json.loads(sys.stdin.buffer.readline())
        threading.Thread(target=_die_with_parent, daemon=True).start()
        out = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
        os.dup2(2, 1)  # whatever else prints goes to stderr
        lock = threading.Lock()

        def tell(event: dict[str, Any]) -> None:
            try:
                with lock:
                    out.write(json.dumps(event) + "\n")
            except OSError:  # the parent is gone, which is no failure of the work
                os._exit(1)

        code = work(order, tell)
        out.flush()
        os._exit(code)


def _die_with_parent() -> None:
    """End this process when the other end of stdin is closed."""
    while sys.stdin.buffer.read(1):
        pass
    os._exit(1)
