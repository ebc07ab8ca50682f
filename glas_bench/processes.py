"""Child processes that run a module of this package, and die with their parent; loops in threads.

A child reads an order, one line of JSON on stdin, and reports events as JSON lines on stdout. It
ends when its stdin closes: when it is no longer wanted, or its parent has died, however that is.
`ChildProcess` and `Pool` are the parent's side, `serve` is the child's.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Generic, NoReturn, TypeVar

from glas_bench import signals

Event = dict[str, Any]
OnEvent = Callable[[Event], None]
"""Called with an event."""

Key = TypeVar("Key", bound=Hashable)


# --------------------------------------------------------------------------- the parent's side


@dataclass(frozen=True)
class Order:
    """What a child process is started with."""

    module: str
    """The module that it runs, which calls `serve`."""
    content: Mapping[str, Any]
    """What `serve` hands to its work, as JSON."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables besides this process's own."""
    pass_fds: Sequence[int] = ()
    """File descriptors that it inherits."""


class ChildProcess:
    """A running child.

    Args:
        order: what it runs.
        on_event: called with its events, from a thread of its own; with None once it has ended.
        log: file for its stderr, which is otherwise kept for `how_it_ended`.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(
        self, order: Order, on_event: Callable[[Event | None], None], log: IO[bytes] | None = None
    ) -> None:
        self.errors = log or tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        paths = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
        own = {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", order.module],  # -P: nothing of the current folder
                env={**os.environ, **own, **order.environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                pass_fds=order.pass_fds,
                start_new_session=True,  # Ctrl-C reaches the parent alone, which passes it on
            )
        except OSError:
            self.errors.close()
            raise
        self.send(order.content)
        self.listener = threading.Thread(target=self._listen, args=(on_event,), daemon=True)
        self.listener.start()

    def send(self, message: Any) -> None:
        """Send a line of JSON; to a child that has ended it is lost."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()

    def _listen(self, on_event: Callable[[Event | None], None]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):
                on_event(json.loads(line))
        self.process.wait()
        on_event(None)

    def how_it_ended(self) -> str:
        """Return the exit code or signal of a child that has ended, and its last line of stderr."""
        code = self.process.returncode
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        with contextlib.suppress(OSError):  # a log that is only written
            self.errors.seek(0)
            last = self.errors.read().decode(errors="replace").strip().splitlines()[-1:]
            return ": ".join([how, *last])
        return how

    def close(self) -> None:
        """Release it; kill it if it has not ended."""
        if self.process.poll() is None:
            self.process.kill()
        self.listener.join(timeout=5)
        for pipe in (self.process.stdin, self.process.stdout, self.errors):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()


class Pool(Generic[Key]):
    """Runs child processes side by side, and stops them when this process is asked to stop.

    Args:
        on_event: called with the key and event of a child, in the thread that calls `run`.
        on_end: called with the key of a child that has ended and with how, as words that follow its
            name; with None where a signal to stop ended it before it could answer.
    """

    def __init__(
        self, on_event: Callable[[Key, Event], None], on_end: Callable[[Key, str | None], None]
    ) -> None:
        self.on_event = on_event
        self.on_end = on_end
        self.running: dict[Key, ChildProcess] = {}
        self.events: queue.Queue[tuple[Key, Event | None]] = queue.Queue()

    def run(self, orders: Mapping[Key, Order], places: int) -> list[Key]:
        """Run orders, `places` at a time; return those not begun when the process was stopped.

        Raises:
            OSError: a child cannot be started; the others are killed.
        """
        waiting, stopped = dict(orders), False
        try:
            while self.running or (waiting and not stopped):
                if signals.requested() and not stopped:
                    stopped = True
                    for child in self.running.values():
                        child.process.terminate()  # it checkpoints first
                while waiting and not stopped and len(self.running) < places:
                    self._start(key := next(iter(waiting)), waiting.pop(key))
                with contextlib.suppress(queue.Empty):
                    self._take(*self.events.get(timeout=0.2))
        finally:
            for child in self.running.values():
                child.close()
        return list(waiting)

    def _start(self, key: Key, order: Order) -> None:
        self.running[key] = ChildProcess(order, lambda event: self.events.put((key, event)))

    def _take(self, key: Key, event: Event | None) -> None:
        if event is not None:
            self.on_event(key, event)
            return
        child = self.running.pop(key)
        too_young = signals.requested() and -child.process.returncode in signals.EXIT_CODES
        self.on_end(key, None if too_young else child.how_it_ended())
        child.close()


# --------------------------------------------------------------------------- the child's side


def serve(work: Callable[[dict[str, Any], OnEvent, queue.Queue[Any]], int]) -> NoReturn:
    """Do an order as a child process, and end with the exit code that `work` returns.

    Args:
        work: called with the order, a function to call with events, from any thread, and the queue
            of what the parent sends later. SIGTERM and Ctrl-C are noted in `signals`.
    """
    signals.install(second_ends=False)
    with signals.graceful():
        order = json.loads(sys.stdin.buffer.readline())
        inbox: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=_receive, args=(inbox,), daemon=True).start()
        out = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
        os.dup2(2, 1)  # whatever else prints goes to stderr
        lock = threading.Lock()

        def report(event: Event) -> None:
            try:
                with lock:
                    out.write(json.dumps(event) + "\n")
            except OSError:  # the parent is gone, which is no failure of the work
                os._exit(1)

        code = work(order, report, inbox)
        out.flush()
        os._exit(code)


def _receive(inbox: queue.Queue[Any]) -> None:
    """Read what the parent sends; end this process when the other end of stdin is closed."""
    for line in sys.stdin.buffer:
        inbox.put(json.loads(line))
    os._exit(1)


# --------------------------------------------------------------------------- a loop in a thread


@contextlib.contextmanager
def repeating(action: Callable[[], object], seconds: float) -> Iterator[None]:
    """Call an action at this interval, in a thread; after an error within a second."""
    over = threading.Event()

    def loop() -> None:
        pause = 0.0
        while not over.wait(pause):
            pause = seconds
            try:
                action()
            except Exception:  # what it needs is away, and may be back the next time
                pause = min(1.0, seconds)

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=5)
