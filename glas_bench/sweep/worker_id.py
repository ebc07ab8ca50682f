"""Which process runs a trial, so that another one on the same machine knows when it is gone."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def own_id() -> dict[str, Any]:
    """Return what identifies this process among all machines, reboots and containers."""
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "pid": pid,
        "began": _began(pid),
        "room": _room(),
        "token": secrets.token_hex(8),
    }


def is_gone(owner: Mapping[str, Any]) -> bool:
    """Return whether a process is known to have ended; one of another machine never is."""
    room = _room()
    if room is None or owner.get("room") != room:
        return False
    began = _began(int(owner["pid"]))
    return began is None or abs(began - float(owner["began"])) > 2  # a reused pid is much younger


def described(owner: Mapping[str, Any]) -> str:
    """Return `pid 12 on host`."""
    return f"pid {owner['pid']} on {owner['host']}"


def _room() -> str | None:
    """Return what all processes share that see the same process ids, or None if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')} {socket.gethostname()}"
    except OSError:
        return None


def _began(pid: int) -> float | None:
    """Return when a process began, in seconds since the boot; None if it has ended.

    The clock may be set meanwhile, which moves both of psutil's times alike.
    """
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return None
        return float(round(process.create_time() - psutil.boot_time(), 2))
    except psutil.NoSuchProcess:
        return None
