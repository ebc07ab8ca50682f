"""The environment of a result: versions, commit, device and processor."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
import sys
import warnings
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from glas_bench import __version__, text
from glas_bench.config import CORE_VERSION
from glas_bench.errors import RunError, UsageError

PACKAGES = ("torch", "numpy", "pydantic", "mlflow", "optuna", "mlxtend")


def outdated() -> dict[str, str]:
    """Return `name>=version` for every installed package below what glas-bench needs, by name."""
    found = {}
    with contextlib.suppress(PackageNotFoundError):
        for line in requires("glas-bench") or ():
            parts = re.fullmatch(r"([\w-]+)(?:\[\w*])?>=([\d.]+)", line.replace(" ", ""))
            with contextlib.suppress(PackageNotFoundError):
                if parts and _release(version(parts[1])) < _release(parts[2]):
                    found[parts[1]] = f"{parts[1]}>={parts[2]}"
    return found


def _release(text: str) -> list[int]:
    return [int(each) for each in re.findall(r"\d+", re.match(r"[\d.]*", text)[0])]  # type: ignore[index]


def cores() -> int:
    """Return the number of processors that this process may use.

    GLAS_BENCH_CORES lowers it: the workers of a sweep share the processors of a machine.
    """
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    most = os.environ.get("GLAS_BENCH_CORES", "")
    return min(here or 1, max(1, int(most))) if most.isdecimal() else here or 1


def gpus() -> int:
    """Return the number of GPUs that torch sees, at least 1."""
    import torch

    return max(1, torch.cuda.device_count())


def memory_bytes(device: str = "cpu") -> int:
    """Return the memory of a GPU, or of this machine as far as its container may use it."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(torch.device(device))[1])
    here = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
        here = min(here, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    return here


def choose_device(name: str) -> str:
    """Return `cpu` or `cuda[:n]` for a value of `--device`; `auto` prefers a GPU.

    Raises:
        UsageError: this machine has no such device.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()):
        raise UsageError(f"--device {name!r}: allowed are auto, cpu, cuda and cuda:N")
    if kind == "cuda" and (
        not torch.cuda.is_available() or int(index or 0) >= torch.cuda.device_count()
    ):
        raise UsageError(
            f"--device {name}: torch {torch.__version__} sees "
            f"{text.count(torch.cuda.device_count(), 'CUDA device')} here; use --device cpu"
        )
    return name


def default_precision(device: str) -> str:
    """Return the default precision of matrix products on a device.

    On a GPU it should be the fastest whose NLL agrees with fp32 within 0.1 nats; tf32 was chosen
    for its 10 bits of mantissa and has not been measured yet.
    """
    return "tf32" if device.startswith("cuda") else "fp32"


def check_precision(precision: str, device: str) -> None:
    """Check that a device has a precision.

    Raises:
        UsageError: tf32 on a CPU.
    """
    if precision == "tf32" and not device.startswith("cuda"):
        raise UsageError("precision tf32: for GPUs only; on a CPU use fp32 or bf16")


def prepare_torch(threads: int, precision: str = "fp32") -> None:
    """Set the threads and arithmetic of this process, on which its numbers and speed depend."""
    import torch

    with warnings.catch_warnings():
        # deprecated, but torch's compiler reads it and fails where its replacement was used
        # (pytorch issue 166387)
        warnings.filterwarnings("ignore", message=".*new API settings to control TF32")
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    # inductor reads it when it is imported; its autotuning may otherwise choose other kernels
    os.environ.setdefault("TORCHINDUCTOR_DETERMINISTIC", "1")
    torch.set_num_threads(threads)
    import numpy  # noqa: F401 - its BLAS computes some products (`ops.linear`), limited below

    with contextlib.suppress(ImportError):  # a bare machine: the one thread that `__main__` sets
        from threadpoolctl import threadpool_limits

        threadpool_limits(threads, user_api="blas")
    torch.set_flush_denormal(True)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Let a step reuse the memory that the last one freed (glibc), a few per cent of its time."""
    import ctypes

    trim_threshold, mmap_threshold, most = -1, -3, 2**30
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(trim_threshold, most)
        libc.mallopt(mmap_threshold, most)


def describe(device: str) -> dict[str, Any]:
    """Return the content of `environment.json`."""
    return {
        "glas_bench": __version__,
        "core_version": CORE_VERSION,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cores": cores(),
        "device": device_name(device),
        **(_cuda() if device.startswith("cuda") else {}),
        "packages": {name: _version(name) for name in PACKAGES},
        "git": git_state(),
    }


def _cuda() -> dict[str, Any]:
    """Return the versions that a GPU's numbers depend on."""
    import torch

    driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "driver": (driver or "").partition("\n")[0] or None,
        "triton": _version("triton"),
    }


def device_name(device: str) -> str:
    """Return the name of the device, e.g. the GPU's model."""
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_name(device))
    return f"cpu: {processor()}"


def peak_bytes(device: str) -> int:
    """Return the peak memory of this process in bytes: on the GPU, or resident."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def check_answers(device: str) -> None:
    """Check that a GPU still computes.

    Raises:
        RunError: its context in this process is dead, so that all later work would fail too.
    """
    if not device.startswith("cuda"):
        return
    import torch

    try:
        float(torch.ones(1, device=device) + 1)
    except RuntimeError as error:
        first = str(error).partition("\n")[0]
        raise RunError(f"{device} no longer answers in this process: {first}") from error


def load() -> float | None:
    """Return the load average of the last minute, None where it is unknown."""
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def processor() -> str:
    """Return the processor's model name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def git_state() -> dict[str, Any]:
    """Return the commit of the checkout of this package and whether it is dirty.

    An installed wheel has the commit that it was built from. Otherwise both are None, with a
    reason.
    """
    here = Path(__file__).resolve()
    tracked = _git(here.parent, "ls-files", "--error-unmatch", here.name)
    if tracked is None and (built := here.with_name("COMMIT")).is_file():
        return {"commit": built.read_text().strip(), "dirty": None, "reason": "a build of it"}
    if tracked is None:
        return {"commit": None, "dirty": None, "reason": "not run from a git checkout, or no git"}
    commit = _git(here.parent, "rev-parse", "HEAD")
    changes = _git(here.parent, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit or None, "dirty": None if changes is None else bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    return _output("git", "-C", str(folder), *arguments)


def _output(*command: str) -> str | None:
    """Return what a command prints, or None where it fails."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
