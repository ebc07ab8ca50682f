"""The first quarter of an hour on a GPU: does it run as written, are the numbers right, how fast.

`first_gpu_run.sh` calls this; its head and docs/bare-node.md say how. This process imports no
torch: every step is a process of its own with a time limit, prints one line, and leaves what it
finds in `first_gpu_run.json` and on the page `first_gpu_run.md`. A process that fails or hangs so
costs its own step alone.

What a step's process says to this one are the lines of its stdout that begin with `MARK`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import queue
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NAME = "first_gpu_run"
MARK = "@@ "

CLOSE = {"fp32": 1e-4, "tf32": 1e-3, "bf16": 1e-2}
"""The largest difference of gradients, relative to their norm."""

LARGEST = 16 * 2**20
"""Bytes of a file that is carried home; there are at most eight, of 64 MiB together."""

MOST_SEEDS = 5

SHARES = {"matmul": "what products of its shapes reach", "large": "what a large product reaches"}

LATER = ("-draw]", "-uniform-pit]", "-masked-progressive]")
"""Ends of the names of GPU tests that call 1 has no time for."""


@dataclass(frozen=True)
class Sizes:
    """What is run."""

    device: str = "cuda"
    way: str = "captured"
    precisions: tuple[str, ...] = ("tf32", "bf16", "fp32")
    seeds: tuple[int, ...] = (8, 4, 16, 1)  # what matters most comes first
    steps: tuple[int, ...] = (8, 64)
    hidden: int = 256
    batch: int = 128
    chain: int = 5000
    turns: int = 3
    replays: int = 20
    train: tuple[str, ...] = ("paper", "0-3", "tf32")  # preset, seeds, precision
    images: int = 500
    samples: int = 100


TINY = Sizes(
    device="cpu",
    way="compiled",
    precisions=("fp32",),
    seeds=(2,),
    steps=(2, 3),
    hidden=8,
    batch=4,
    chain=50,
    replays=2,
    train=("smoke", "0-1", "fp32"),
    images=8,
    samples=2,
)


# --------------------------------------------------------------------------- steps, each a process


def versions(sizes: Sizes) -> dict[str, Any]:
    """Return what this machine is."""
    import torch

    from glas_bench import environment

    if sizes.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} sees no CUDA device")
    return environment.describe(sizes.device)


def small(sizes: Sizes) -> dict[str, Any]:
    """Compile a small function, and capture five nodes."""
    import torch

    from glas_bench.ops import programs

    device = torch.device(sizes.device)
    x = torch.linspace(0, 1, 64, device=device)
    found: dict[str, Any] = {"falls": []}

    def five(x: Any) -> Any:
        for _ in range(5):
            x = x.sin()
        return x

    for name, way in (("compiled", sizes.way), ("five nodes", "captured uncompiled")):
        if sizes.device == "cpu" and name == "five nodes":
            way = "eager"  # nothing is captured on a CPU
        program = programs.Program(
            lambda wanted: programs.compiled(five, wanted),
            device,
            tell=found["falls"].append,
            ways=[way, "eager"],
        )
        began = time.perf_counter()
        torch.testing.assert_close(program(x), five(x))
        torch.testing.assert_close(program(x + 1), five(x + 1))
        found[name] = {"way": program.way, "seconds": round(time.perf_counter() - began, 2)}
    return found


def ceilings(sizes: Sizes) -> dict[str, Any]:
    """Measure copying, products in every precision, and a chain of tiny kernels."""
    import torch

    from glas_bench.commands import bench
    from glas_bench.environment import prepare_torch
    from glas_bench.ops import programs

    found: dict[str, Any] = {}
    on_gpu = sizes.device == "cuda"
    for precision in sizes.precisions:
        prepare_torch(1, precision)
        made = bench.Ceilings(_case(sizes, 1, precision, 8)[1], sizes.device, 8 if on_gpu else 1)
        rates = ("matmul", "copy", *(["large"] if on_gpu else []))
        for rate in rates:
            getattr(made, rate)()  # captures, and chooses kernels
        found[precision] = {
            rate: round(statistics.median(getattr(made, rate)() for _ in range(3)), 1)
            for rate in rates
        }
    x = torch.zeros(64, device=sizes.device)

    def chain() -> None:
        for _ in range(sizes.chain):
            x.add_(1)

    ways = ["captured uncompiled"] if on_gpu else ["eager"]
    program = programs.Program(lambda wanted: chain, x.device, ways=ways)
    program()
    took = min(bench.seconds(program, 1, sizes.device) for _ in range(3))
    found["microseconds_per_tiny_kernel"] = round(took / sizes.chain * 1e6, 3)
    return found


def _case(sizes: Sizes, seeds: int, precision: str, steps: int) -> tuple[Any, Any]:
    """Return the variant and the cell of a measurement."""
    from glas_bench import registry
    from glas_bench.commands.bench import Case

    case = Case(
        variant="cauchy",
        steps=steps,
        hidden=sizes.hidden,
        batch=sizes.batch,
        seeds=seeds,
        precision=precision,
        device=sizes.device,
    )
    variant = registry.find(case.variant)
    return variant, case.config(variant)


def prepare(sizes: Sizes, seeds: str, precision: str) -> Iterator[dict[str, Any]]:
    """Compile and capture a training for every T; compare a step; wait; then measure."""
    import torch

    from glas_bench.commands import bench
    from glas_bench.commands.eager_loop import made_up
    from glas_bench.core.stacked import StackedTraining
    from glas_bench.core.train import Training
    from glas_bench.environment import peak_bytes, prepare_torch

    prepare_torch(1, precision)
    splits = made_up(sizes.batch, bench.EPOCH).to(sizes.device)
    ready: dict[str, Any] = {"falls": [], "ways": {}, "seconds": {}, "gates": {}}
    stacks = {}
    for steps in sizes.steps:
        variant, resolved = _case(sizes, int(seeds), precision, steps)

        def stack(way: str, variant: Any = variant, resolved: Any = resolved) -> StackedTraining:
            trainings = [Training(variant, resolved, splits, seed) for seed in range(int(seeds))]
            return StackedTraining(trainings, tell=ready["falls"].append, ways=[way, "eager"])

        began = time.perf_counter()
        stacks[steps] = made = stack(sizes.way)
        made.step()
        made.collect()
        ready["seconds"][steps] = round(time.perf_counter() - began, 1)
        ready["ways"][steps] = made.program.way
        if not ready["gates"]:
            eager = stack("eager")
            eager.step()
            eager.collect()
            firsts = [each.trainings[0].optimiser.state for each in (made, eager)]
            exact = _exact(variant, resolved, sizes)
            ready["gates"] = {
                f"{sizes.way} against eager": _difference(*firsts),
                f"{sizes.way} against float64": _difference(firsts[0], exact),
                "eager against float64": _difference(firsts[1], exact),
            }
        work = bench.count_work(variant, resolved)["flops"] * int(seeds)
        ready.setdefault("gflop", {})[steps] = round(work / 1e9, 4)
    yield ready
    sys.stdin.readline()
    found: dict[str, Any] = {"milliseconds": {}, "images_per_second": {}, "nodes": {}}
    for steps, made in stacks.items():
        turns = []
        for _ in range(sizes.turns):
            if sizes.device == "cuda":
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                for _ in range(sizes.replays):
                    made.step()
                end.record()
                end.synchronize()
                turns.append(start.elapsed_time(end) / sizes.replays)
            else:
                took = bench.seconds(made.step, sizes.replays)
                turns.append(took / sizes.replays * 1e3)
        found["milliseconds"][steps] = round(statistics.median(turns), 3)
        rate = sizes.batch * int(seeds) / statistics.median(turns) * 1e3
        found["images_per_second"][steps] = round(rate, 1)
    found["peak_memory_gib"] = round(peak_bytes(sizes.device) / 2**30, 2)
    if sizes.device == "cuda":
        asked = "clocks.sm,power.draw,temperature.gpu"
        command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"]
        found["clock"] = subprocess.run(command, capture_output=True, text=True).stdout.strip()
        for steps, made in stacks.items():
            found["nodes"][steps], found["profile"] = _profile(made.step)
    yield found


def _exact(variant: Any, resolved: Any, sizes: Sizes) -> dict[str, Any]:
    """Return what Adam gathers in the first step of seed 0, in float64 on the CPU."""
    from glas_bench.commands import bench
    from glas_bench.commands.eager_loop import made_up
    from glas_bench.core import rollout, train
    from glas_bench.ops.adam import BETA_1

    one = train.Training(variant, resolved, made_up(sizes.batch, bench.EPOCH), 0)
    images, labels, noise = one._batch()
    model = one.model.double()
    terms = rollout.rollout(model, images.double(), images.double(), labels, noise.double())
    train.mean_objective(one.phase, model, terms).backward()
    train.clip_gradients(one.clip_groups, train.CLIP_NORM)
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: {"exp_avg": (1 - BETA_1) * grad} for name, grad in grads.items()}


def _difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Return the norm of the difference of all gradients, relative to that of the second."""
    import torch

    first, second = (
        torch.cat([each[name]["exp_avg"].double().flatten().cpu() for name in sorted(other)])
        for each in (one, other)
    )
    return float(f"{float((first - second).norm() / second.norm()):.3g}")


def _profile(step: Callable[[], None]) -> tuple[int, list[tuple[str, int, float]]]:
    """Return the kernels of a step: how many, and the dearest (name, calls, microseconds)."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as taken:
        step()
        torch.cuda.synchronize()
    by_name: dict[str, list[float]] = {}
    for event in taken.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            by_name.setdefault(event.name, []).append(event.time_range.elapsed_us())
    rows = [(name[:60], len(times), round(sum(times), 1)) for name, times in by_name.items()]
    dearest = sorted(rows, key=lambda row: -row[2])[:12]
    return sum(count for _, count, _ in rows), dearest


def export(sizes: Sizes, run: str, out: str) -> dict[str, Any]:
    """Write the weights of a run's newest checkpoints, and say how far its seeds came."""
    from glas_bench import registry
    from glas_bench.commands import bench
    from glas_bench.record import RunFolder, load_run, write_checkpoint

    record = load_run(Path(run))
    variant = registry.find(record.config.variant)
    gflop = bench.count_work(variant, record.config)["flops"] / 1e9
    found: dict[str, Any] = {"gflop": round(gflop, 1), "batch": record.config.batch, "seeds": {}}
    for seed in sorted(record.seeds)[:MOST_SEEDS]:
        folder = RunFolder.at(Path(run)).seed(seed)
        state = folder.load_checkpoint()
        if state is None:
            found["seeds"][seed] = {"epochs": 0, "steps": 0, "seconds": 0.0, "file": None}
            continue
        at = state["position"]
        path = Path(out) / f"seed-{seed}.pt"
        content = {"model": state["model"], "config": record.config.model_dump(), "position": at}
        write_checkpoint(path, {**content, "seed": seed})
        size = path.stat().st_size
        if size > LARGEST:
            path.unlink()
            raise SystemExit(f"the weights of a seed take {size} bytes, more than {LARGEST}")
        rows = folder.metrics()
        found["seeds"][seed] = {
            "epochs": at["epoch"],
            "steps": at["step"],
            "seconds": round(at["seconds"], 2),
            "validation": round(rows[-1]["validation"], 2) if rows else "-",
            "learning_rate": rows[-1]["learning_rate"] if rows else "-",
            "file": path.name,
            "bytes": size,
            "metrics": rows,
        }
    return found


def score(sizes: Sizes, out: str) -> dict[str, Any]:
    """Score the exported weights on this machine's CPU."""
    from glas_bench import data, registry
    from glas_bench.config import RunConfig
    from glas_bench.core.train import Training
    from glas_bench.environment import prepare_torch
    from glas_bench.evaluate import Scorer
    from glas_bench.record import read_checkpoint

    prepare_torch(1)
    found: dict[str, Any] = {}
    for path in sorted(Path(out).glob("seed-*.pt")):
        state = read_checkpoint(path)
        if state is None:
            raise SystemExit(f"{path} is broken")
        config = RunConfig(**{**state["config"], "precision": "fp32"})
        splits = data.load(config.dataset, config.binarisation)
        training = Training(registry.find(config.variant), config, splits, state["seed"])
        training.model.load_state_dict(state["model"])
        about = {"samples": sizes.samples, "images": sizes.images, "estimators": ["iw"]}
        scores, _ = Scorer(training.model, config, splits, state["seed"], **about).score()
        kept = ("elbo", "iw", "objective", "images", "samples")
        found[path.stem] = {
            name: round(value, 3) if isinstance(value := scores[name], float) else value
            for name in kept
        }
    if not found:
        raise SystemExit(f"{out} has no seed-*.pt: call 2 writes them")
    return found


STEPS: dict[str, Callable[..., Any]] = {
    each.__name__: each for each in (versions, small, ceilings, prepare, export, score)
}


def serve(name: str, sizes_json: str, *arguments: str) -> None:
    """Be a step's process: answer once, or once a line of stdin."""
    values = json.loads(sizes_json)
    sizes = Sizes(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    if sizes.device == "cpu":
        from glas_bench.ops import programs

        programs.BACKEND = "eager"  # a rehearsal traces and generates no kernels
    answers = STEPS[name](sizes, *arguments)
    for answer in [answers] if isinstance(answers, dict) else answers:
        print(MARK + json.dumps(answer), flush=True)


# --------------------------------------------------------------------------- this process


class Failed(Exception):  # noqa: N818 - a finding
    """A step has no result; the reason is one line."""


class Child:
    """A step's process."""

    def __init__(self, run: Run, name: str, *arguments: object) -> None:
        self.log = run.work / "-".join(["log", name, *(Path(str(a)).name for a in arguments)])
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, __file__, "--step", name, json.dumps(asdict(run.sizes))]
                + [str(each) for each in arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
                env=run.environment,
            )
        run.processes.append(self.process)
        self.lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            if line.startswith(MARK):
                self.lines.put(line.removeprefix(MARK))
        self.lines.put(None)

    def answer(self, limit: float) -> dict[str, Any]:
        """Return the next answer; the process is killed where it takes longer."""
        try:
            line = self.lines.get(timeout=max(0.1, limit))
        except queue.Empty:
            self.process.kill()
            raise Failed(f"not done in {limit:.0f} s; {self.last_line()}") from None
        if line is None:
            raise Failed(f"it ended with {self.process.wait()}: {self.last_line()}")
        return dict(json.loads(line))

    def ask(self, limit: float) -> dict[str, Any]:
        """Let a waiting process go on, and return its answer."""
        with contextlib.suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        return self.answer(limit)

    def last_line(self) -> str:
        """Return the end of what it wrote on stderr."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "it said nothing"


class Run:
    """A call: its steps, findings and clock."""

    def __init__(self, call: int, rehearse: bool, seconds: float, out: Path, work: Path) -> None:
        self.rehearse = rehearse
        self.sizes = TINY if rehearse else Sizes()
        self.out, self.work = out, work = out.resolve(), work.resolve()
        self.began = time.monotonic()
        self.deadline = self.began + seconds
        for folder in (out, work):
            folder.mkdir(parents=True, exist_ok=True)
        self.processes: list[subprocess.Popen[str]] = []
        self.environment = {
            **os.environ,
            "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"),  # shared by all processes and calls
            "TRITON_CACHE_DIR": str(work / "triton"),
            "TORCHINDUCTOR_COMPILE_THREADS": "2",
        }
        self.document: dict[str, Any] = {"rehearsal": rehearse, "calls": {}}
        for folder in (out, work):  # a call may find an empty `out`, but its machine's `work`
            with contextlib.suppress(OSError, ValueError):
                stored = json.loads((folder / f"{NAME}.json").read_text())
                if stored["rehearsal"] == rehearse:
                    self.document = stored
        date = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
        self.found: dict[str, Any] = {"date": date, "steps": [], "problems": []}
        self.document["calls"][str(call)] = self.found

    @property
    def left(self) -> float:
        """Seconds until the call must end."""
        return self.deadline - time.monotonic()

    def step(self, name: str, limit: float, act: Callable[[float], tuple[Any, str]]) -> Any:
        """Do a step within its limit and print its line; return its result, None if it failed."""
        began = time.monotonic()
        limit = min(limit, self.left - 5)
        result = None
        try:
            if limit <= 0:
                raise Failed("no time is left for it")
            result, line = act(limit)
        except Failed as error:
            line = f"FAILED: {error}"
            self.found["problems"].append(f"{name}: {error}")
        took = time.monotonic() - began
        self.found["steps"].append({"name": name, "seconds": round(took, 1), "line": line})
        print(f"[{time.monotonic() - self.began:5.0f} s] {name}: {line} ({took:.1f} s)", flush=True)
        self.write()
        return result

    def child(
        self, name: str, limit: float, line: Callable[[dict[str, Any]], str], *arguments: object
    ) -> Any:
        """Run a step in a process of its own; keep and return its answer."""

        def act(limit: float) -> tuple[dict[str, Any], str]:
            answer = Child(self, name, *arguments).answer(limit)
            self.found[name] = answer
            return answer, line(answer)

        return self.step(name, limit, act)

    def write(self) -> None:
        """Write the document and the page."""
        text = json.dumps(self.document, indent=1)
        for folder in (self.out, self.work):
            (folder / f"{NAME}.json").write_text(text + "\n")
        (self.out / f"{NAME}.md").write_text(page(self.document))

    def close(self) -> int:
        """End all processes, gather their logs, and return the exit code."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
        logs = sorted(self.work.glob("log-*"))
        tails = [f"==> {path.name}\n{path.read_text(errors='replace')[-20_000:]}" for path in logs]
        (self.out / f"{NAME}.log").write_text("\n".join(tails))
        self.write()
        for problem in self.found["problems"]:
            print(f"problem: {problem}")
        print(f"page: {self.out / NAME}.md")
        return 1 if self.found["problems"] else 0


def first(run: Run) -> None:
    """Compile, capture, compare and measure."""
    sizes, problems = run.sizes, run.found["problems"]

    def describe(v: dict[str, Any]) -> str:
        return f"{v['device']}, torch {v['packages']['torch']}, CUDA {v.get('cuda')}"

    def ran(answer: dict[str, Any]) -> str:
        problems.extend(f"small: {fall}" for fall in answer["falls"])
        parts = [f"{k}: {answer[k]['way']}" for k in ("compiled", "five nodes")]
        return ", ".join([*parts, *answer["falls"]])

    def rates(found: dict[str, Any]) -> str:
        parts = [
            f"{p} {found[p]['matmul'] / 1e3:.3g} TFLOP/s in products of its shapes"
            for p in sizes.precisions
        ]
        return f"{', '.join(parts)}, {found['microseconds_per_tiny_kernel']} us a tiny kernel"

    if run.child("versions", 60, describe) is None or run.child("small", 90, ran) is None:
        return
    if problems:
        return
    run.child("ceilings", 60, rates)

    tests = start_tests(run)
    waiting = {
        f"S={seeds} {precision}": Child(run, "prepare", seeds, precision)
        for seeds in sizes.seeds
        for precision in sizes.precisions
    }
    began = time.monotonic()
    prepared: dict[str, Any] = run.found.setdefault("prepared", {})
    for name, child in waiting.items():

        def ready(limit: float, name: str = name, child: Child = child) -> tuple[None, str]:
            prepared[name] = answer = child.answer(limit)
            problems.extend(f"{name}: {fall}" for fall in answer["falls"])
            off = [
                f"{gate} {value:.2g}, allowed {CLOSE[name.split()[1]]:.0e}"
                for gate, value in answer["gates"].items()
                if not value <= CLOSE[name.split()[1]]
            ]
            problems.extend(f"{name}: gradients differ, {each}" for each in off)
            worst = max(answer["gates"].values())
            ways = ", ".join(f"T={t} {way}" for t, way in answer["ways"].items())
            seconds = max(answer["seconds"].values())
            line = f"{ways}, {seconds:.0f} s to prepare, gradients within {worst:.1g}"
            return None, "; ".join([line, *answer["falls"], *off])

        run.step(f"prepare {name}", 200 - (time.monotonic() - began), ready)
    run.step("tests", 200 - (time.monotonic() - began), lambda limit: end_tests(run, tests, limit))
    measured: dict[str, Any] = run.found.setdefault("measured", {})
    for name in prepared:
        if prepared[name]["falls"]:
            continue  # its speed is not that of the way

        def measure(limit: float, name: str = name) -> tuple[None, str]:
            measured[name] = answer = waiting[name].ask(limit)
            rows = [f"T={t} {ms} ms" for t, ms in answer["milliseconds"].items()]
            return None, f"{', '.join(rows)}, {answer['peak_memory_gib']} GiB"

        run.step(f"measure {name}", 25, measure)


def start_tests(run: Run) -> subprocess.Popen[str]:
    """Start the tests that need a GPU, those of the main path for `cauchy` alone."""
    tests = sorted((ROOT / "tests").glob("test_gpu.py" if run.rehearse else "test_*.py"))
    files = [str(path) for path in tests if "mark.gpu" in path.read_text(encoding="utf-8")]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    command += ["--continue-on-collection-errors"]
    command += ["-n", "6"] if find_spec("xdist") and not run.rehearse else []
    chosen = ["-k", " and ".join(f"not {name}" for name in LATER)]
    with (run.work / "log-tests").open("w") as log:
        started = subprocess.Popen(
            [*command, *chosen, *files],
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=run.environment,
        )
    run.processes.append(started)
    return started


def end_tests(run: Run, tests: subprocess.Popen[str], limit: float) -> tuple[None, str]:
    """Wait for the tests; return how they ended."""
    if not find_spec("pytest"):
        return None, "not run: pytest is not installed"
    with contextlib.suppress(subprocess.TimeoutExpired):
        tests.wait(max(0.1, limit))
    if tests.poll() is None:
        tests.kill()
        raise Failed(f"not done in {limit:.0f} s")
    lines = (run.work / "log-tests").read_text(errors="replace").strip().splitlines()
    line = lines[-1].strip("= ") if lines else "they said nothing"
    run.found["tests"] = line
    if tests.returncode:
        failed = [each for each in lines if each.startswith(("FAILED", "ERROR"))]
        raise Failed("; ".join([line, *failed[:8]]))
    return None, line


def second(run: Run) -> None:
    """Train under a SIGTERM, and write what is carried home."""
    preset, seeds, precision = run.sizes.train
    results = run.work / "results"
    command = [sys.executable, "-m", "glas_bench", "run", "--variant", "cauchy", "--no-mirror"]
    command += ["--preset", preset, "--seeds", seeds, "--precision", precision]
    command += ["--device", run.sizes.device]
    if run.rehearse:
        tiny = {"epochs": 1000, "steps": 2, "hidden": 8, "batch": 50}
        command += [part for k, v in tiny.items() for part in ("--set", f"{k}={v}")]

    def train(limit: float) -> tuple[None, str]:
        with (run.work / "log-run").open("w") as log:
            process = subprocess.Popen(
                [*command, "--results", str(results)],
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=run.environment,
                text=True,
            )
        run.processes.append(process)
        ends = time.monotonic() + run.left - (25 if run.rehearse else 60)
        while process.poll() is None and time.monotonic() < ends:
            rows = results.glob("runs/*/seed-*/metrics.jsonl")
            if run.rehearse and any(path.stat().st_size for path in rows):
                break  # an epoch is done
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15 if run.rehearse else 40)
        if process.poll() is None:
            process.kill()
        code = process.wait()
        lines = (run.work / "log-run").read_text(errors="replace").strip().splitlines()
        run.found["run"] = {"command": " ".join(["glas-bench", *command[3:]]), "exit_code": code}
        notes = [line for line in lines if re.search("instead|out of memory", line)]
        run.found["problems"] += notes
        if code not in (0, 75, -signal.SIGKILL):
            raise Failed(f"it ended with {code}: {lines[-1][:300] if lines else 'it said nothing'}")
        if code == -signal.SIGKILL:
            run.found["problems"].append("train: it did not stop in time; its last checkpoint is")
        return None, "; ".join([f"ended with {code}", *notes])

    def came(found: dict[str, Any]) -> str:
        rows = found["seeds"]
        parts = [f"seed {s}: epoch {v['epochs']}, step {v['steps']}" for s, v in rows.items()]
        return ", ".join(parts)

    run.step("train", run.left, train)
    folders = sorted(results.glob("runs/cauchy-*"), key=lambda path: path.stat().st_mtime)
    if not folders:
        run.found["problems"].append("train: it left no run folder")
        return
    found = run.child("export", 60, came, folders[-1], run.out)
    if found is None:
        return
    steps = max(seed["steps"] for seed in found["seeds"].values())
    seconds = sum(seed["seconds"] for seed in found["seeds"].values())  # a stack's, shared out
    if run.rehearse:  # its seeds train side by side
        seconds /= len(found["seeds"])
    if steps and seconds:
        rate = found["gflop"] * len(found["seeds"]) * steps / seconds
        found["milliseconds_per_step"] = round(seconds / steps * 1e3, 2)
        images = steps * found["batch"] * len(found["seeds"]) / seconds
        found["images_per_second"] = round(images, 1)
        limits = run.document["calls"].get("1", {}).get("ceilings", {}).get(precision, {})
        found["shares"] = {
            name: round(rate / limits[name], 4) for name in ("matmul", "large") if name in limits
        }


def third(run: Run) -> None:
    """Score the weights that were carried home, on a CPU."""
    run.sizes = replace(run.sizes, device="cpu")

    def line(found: dict[str, Any]) -> str:
        return ", ".join(f"{name}: iw {one['iw']:.2f}" for name, one in found.items())

    run.child("score", 1800, line, run.out)


# --------------------------------------------------------------------------- the page


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Return a markdown table."""
    lines = [[*head], ["---"] * len(head), *([*map(str, row)] for row in rows)]
    return [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines] + [""]


def page(document: dict[str, Any]) -> str:
    """Return the findings as a markdown page."""
    lines = ["# First run on a GPU", ""]
    if document["rehearsal"]:
        lines += [
            "**A rehearsal on a CPU at tiny sizes, its programs traced and not compiled. It shows "
            "that the script runs to its end; none of its numbers says anything about a GPU.**",
            "",
        ]
    for call, found in sorted(document["calls"].items()):
        lines += [f"## Call {call}, {found['date']} UTC", ""]
        if found["problems"]:
            lines += ["Problems:", "", *(f"- {each}" for each in found["problems"]), ""]
        else:
            lines += ["No problem was found.", ""]
        if about := found.get("versions"):
            shown = ("device", "driver", "cuda", "triton", "python")
            parts = [f"{name} {about[name]}" for name in shown if about.get(name)]
            lines += [f"torch {about['packages']['torch']}, {', '.join(parts)}.", ""]
        rows = [(s["name"], s["seconds"], s["line"]) for s in found["steps"]]
        lines += table(("step", "seconds", "what it said"), rows)
        lines += _first_tables(found) + _training(found)
        if "score" in found:
            lines += ["Scored on a CPU in fp32, nats per image:", ""]
            rows = [(name, *one.values()) for name, one in found["score"].items()]
            lines += table(("weights", "elbo", "iw", "objective", "images", "K"), rows)
    return "\n".join(lines)


def _first_tables(found: dict[str, Any]) -> list[str]:
    lines = []
    if "ceilings" in found:
        lines += ["Ceilings, TFLOP/s and TB/s:", ""]
        kinds = ("matmul", "large", "copy")
        rows = [
            (precision, *(f"{rates[k] / 1e3:.3f}" if k in rates else "-" for k in kinds))
            for precision, rates in found["ceilings"].items()
            if isinstance(rates, dict)
        ]
        lines += table(("precision", "products of its shapes", "8192^3", "copy"), rows)
    if found.get("prepared"):
        lines += ["Gradients of the first step, norm of the difference over the norm:", ""]
        gates = list(next(iter(found["prepared"].values()))["gates"])
        rows = [
            (name, *(one["gates"][g] for g in gates), f"{CLOSE[name.split()[1]]:.0e}")
            for name, one in found["prepared"].items()
        ]
        lines += table(("stack", *gates, "allowed"), rows)
    if found.get("measured"):
        lines += ["Speed of a training step:", ""]
        rows = []
        for name, one in found["measured"].items():
            limits = found.get("ceilings", {}).get(name.split()[1], {})
            for steps, ms in one["milliseconds"].items():
                share = (
                    found["prepared"][name]["gflop"][steps] / ms * 1e3 / limits["matmul"]
                    if limits
                    else None
                )
                rows.append(
                    (
                        name,
                        steps,
                        found["prepared"][name]["ways"][steps],
                        ms,
                        one["images_per_second"][steps],
                        "-" if share is None else f"{share:.0%}",
                        one["nodes"].get(steps, "-"),
                        one["peak_memory_gib"],
                        one.get("clock", "-"),
                    )
                )
        head = ("stack", "T", "way", "ms", "images/s", "of products", "kernels", "GiB", "clock")
        lines += table(head, rows)
        profiled = {n: one["profile"] for n, one in found["measured"].items() if "profile" in one}
        for name in [n for n in profiled if n.startswith("S=8 ")]:
            lines += [f"The dearest kernels of a step, {name}, the largest T:", ""]
            lines += table(("kernel", "calls", "microseconds"), profiled[name])
    return lines


def _training(found: dict[str, Any]) -> list[str]:
    if "export" not in found:
        return []
    made = found["export"]
    lines = [f"`{found['run']['command']}`, stopped before its end:", ""]
    head = ("epochs", "steps", "seconds", "validation", "learning_rate", "file", "bytes")
    rows = [(seed, *(one.get(k, "-") for k in head)) for seed, one in made["seeds"].items()]
    lines += table(("seed", *head), rows)
    if "milliseconds_per_step" in made:
        shares = made["shares"]
        lines += [
            f"{made['milliseconds_per_step']} ms a step of all seeds without compiling, "
            f"{made['images_per_second']} images/s"
            + "".join(f", {share:.1%} of {SHARES[name]}" for name, share in shares.items())
            + ". The learning rate never fell: not comparable with published numbers.",
            "",
        ]
    return lines


def positive(text: str) -> float:
    """Return a positive number of seconds."""
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError
    return value


def main() -> int:
    """Be a call."""
    parser = argparse.ArgumentParser(prog=f"{NAME}.sh", description=__doc__.splitlines()[0])
    parser.add_argument("call", type=int, choices=tuple(CALLS))
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, on a CPU")
    parser.add_argument("--seconds", type=positive, help="for the whole call")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "gpu")
    parser.add_argument("--work", type=Path, help="kept between calls 1 and 2")
    given = parser.parse_args()
    work = given.work or Path(tempfile.gettempdir()) / f"{NAME}{'-rehearsal' * given.rehearse}"
    call, seconds = CALLS[given.call]
    try:
        run = Run(given.call, given.rehearse, given.seconds or seconds, given.out, work)
    except OSError as error:
        parser.error(f"{error.filename} cannot be written: {error.strerror}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))  # `close` ends what runs
    try:
        call(run)
    except KeyboardInterrupt:
        run.found["problems"].append("interrupted")
    finally:
        code = run.close()
    return code


CALLS = {1: (first, 360), 2: (second, 480), 3: (third, 1800)}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--step"]:
        serve(*sys.argv[2:])
    else:
        sys.exit(main())
