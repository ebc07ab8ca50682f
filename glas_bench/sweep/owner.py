"""Who runs a cell: enough to tell, on the same machine, whether that process is still there."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def me() -> dict[str, Any]:
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
    """Tell whether a process is known to have ended: one of another machine never is."""
    room = _room()
    if room is None or owner.get("room") != room:
        return False
    return _began(int(owner["pid"])) != owner.get("began")


def told(owner: Mapping[str, Any] | None) -> str:
    """Return an owner in words."""
    return f"pid {owner['pid']} on {owner['host']}" if owner else "nobody"


def _room() -> str | None:
    """Return what two processes share that see the same process ids, or None if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')} {socket.gethostname()}"
    except OSError:
        return None


def _began(pid: int) -> str | None:
    """Return when a process began, in ticks since the boot; None if it is not there."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
