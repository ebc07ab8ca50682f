"""The speed of the training core, beside eager loops and the machine's limit.

Three programs train the same model at the same precision, in turns: the core; an eager loop that
computes the product of x once and fuses the gates; and the plain eager loop of public DRAW code
(both in `eager_loop`). The limit is the operations and bytes that a step cannot do without, over
the rates that this machine reaches in products and in copying.

A step trains every seed on one batch. On a CPU every seed is a process with one thread, all side by
side, as in training. On a GPU the core is one program and the loops train one seed; there the first
loop also runs captured as a CUDA graph, and a large product says what the card can do. Times are
medians of rounds; a round gives each program its turn.
"""

from __future__ import annotations

import contextlib
import functools
import math
import queue
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from glas_bench import config, environment, processes, registry
from glas_bench.commands.eager_loop import BATCHES, PIXELS, Loop, made_up
from glas_bench.config import RunConfig
from glas_bench.core import rollout, streams
from glas_bench.core.stacked import StackedTraining
from glas_bench.core.train import Diverged, Training
from glas_bench.errors import RunError, UsageError
from glas_bench.ops import linear, programs
from glas_bench.processes import ChildProcess, Order
from glas_bench.registry import Variant
from glas_bench.text import aligned, byte_size

EPOCH = 390
"""Batches of 128 in 50,000 images: a stack on a GPU waits for its device at the end of an epoch."""

LOOPS = ("reference", "plain", "captured")
"""What the core is compared with; `captured` is `reference` as a CUDA graph, on a GPU."""

LARGE = 8192
"""Rows and columns of a product that keeps all of a GPU busy."""

REPLAYS = 20
"""Of a few captured products, for their time to show."""

ROUNDS = 9
SECONDS = 12.0
"""A case is measured for about so long, but for three rounds at least."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured."""

    variant: str
    steps: int
    hidden: int
    batch: int
    seeds: int
    precision: str
    device: str
    reference: bool = True

    def config(self, variant: Variant) -> RunConfig:
        """Return the cell that is trained.

        Raises:
            UsageError: the variant has no such setting.
        """
        own = variant.cls.Settings.model_fields
        sizes = {key: getattr(self, key) for key in ("steps", "hidden") if key in own}
        return config.resolve(
            variant,
            preset="paper",
            dataset="mnist-5k",
            overrides=sizes | {"batch": self.batch, "precision": self.precision, "epochs": 10_000},
        )


def cases(
    *, steps: str, seeds: str, precision: str | None, device: str, no_reference: bool, **given: Any
) -> list[Case]:
    """Return the cases of a command line, in which some options are lists.

    Raises:
        UsageError: an option cannot be parsed, or a precision or device that is not here.
    """
    chosen = environment.choose_device(device)
    precisions = (precision or environment.default_precision(chosen)).split(",")
    for each in precisions:
        environment.check_precision(each, chosen)
    return [
        Case(steps=t, seeds=s, precision=each, device=chosen, reference=not no_reference, **given)
        for each in precisions
        for t in _numbers("--steps", steps)
        for s in _numbers("--seeds", seeds)
    ]


def _numbers(option: str, text: str) -> list[int]:
    """Parse a list of whole numbers from 1, e.g. `8,64`."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"{option} {text!r}: write numbers from 1 with commas between, e.g. 8,64")
    return [int(part) for part in parts]


def measure(case: Case, tell: Callable[[str], None] = lambda message: None) -> dict[str, Any]:
    """Measure a case; return a JSON-ready row, rates in GFLOP/s and GB/s.

    Raises:
        UsageError: the variant or a setting is unknown, or the variant diverges on a CPU.
        RunError: a process of the bench ended.
    """
    variant = registry.find(case.variant)
    resolved = case.config(variant)
    on_gpu = case.device.startswith("cuda")
    names: tuple[str, ...] = ("core",)
    if case.reference and variant.cls.is_control:
        names += LOOPS if on_gpu else LOOPS[:2]
    measured, peak, way = _on_gpu(case, names, tell) if on_gpu else _side_by_side(case, names)
    work = count_work(variant, resolved)
    gflop, gbytes = (work[what] * case.seeds / 1e9 for what in ("flops", "bytes"))
    # at once on this machine: every seed on a CPU, the whole card on a GPU
    core, matmul, copy = (statistics.median(measured[name]) for name in ("core", "matmul", "copy"))
    large = statistics.median(measured["large"]) if on_gpu else None
    limit = max(gflop / (large or matmul), gbytes / copy)
    row: dict[str, Any] = {
        "variant": variant.name,
        "steps": resolved.settings.get("steps", 1),
        "hidden": resolved.settings.get("hidden"),
        "batch": case.batch,
        "seeds": case.seeds,
        "precision": case.precision,
        "device": environment.device_name(case.device),
        "way": way,
        "seconds_per_step": core,
        "images_per_second": case.batch * case.seeds / core,
        "rounds": len(measured["core"]),
        "gflop_per_step": gflop,
        "gflop_per_second": gflop / core,
        "matmul_ceiling": matmul,
        "share_of_matmul_ceiling": gflop / core / matmul,
        "large_matmul_ceiling": large,
        "gbytes_per_step": gbytes,
        "copy_ceiling": copy,
        "share_of_copy_ceiling": gbytes / core / copy,
        "limit_seconds": limit,
        "share_of_limit": limit / core,
        "peak_memory_bytes": peak,
        "load": environment.load(),
    }
    # the loops on a GPU train one seed: seconds for as many seeds, one after another
    many = case.seeds if on_gpu else 1
    for name in LOOPS:
        pairs = zip(measured["core"], measured.get(name, []), strict=False)
        ratios = [many * loop / own for own, loop in pairs]
        row[f"{name}_seconds"] = many * statistics.median(measured[name]) if ratios else None
        row[f"ratio_to_{name}"] = statistics.median(ratios) if ratios else None
    return row


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a table, ratios first."""
    columns = (
        ("T", "steps", "d"),
        ("S", "seeds", "d"),
        ("precision", "precision", "s"),
        ("x reference", "ratio_to_reference", ".2f"),
        ("x captured", "ratio_to_captured", ".2f"),
        ("x plain", "ratio_to_plain", ".2f"),
        ("of limit", "share_of_limit", ".0%"),
        ("of matmul", "share_of_matmul_ceiling", ".0%"),
        ("of copy", "share_of_copy_ceiling", ".0%"),
        ("s/step", "seconds_per_step", ".4f"),
        ("images/s", "images_per_second", ".0f"),
        ("GFLOP/s", "gflop_per_second", ".0f"),
        ("matmul GFLOP/s", "matmul_ceiling", ".0f"),
        ("large GFLOP/s", "large_matmul_ceiling", ".0f"),
        ("copy GB/s", "copy_ceiling", ".1f"),
    )
    lines = [[head for head, _, _ in columns] + ["peak memory"]]
    for row in rows:
        cells = ["-" if row[key] is None else format(row[key], how) for _, key, how in columns]
        lines.append([*cells, byte_size(row["peak_memory_bytes"])])
    return "\n".join(aligned(lines))


# --------------------------------------------------------------------------- what must be done


def count_work(variant: Variant, resolved: RunConfig) -> dict[str, int]:
    """Return the operations and bytes of one seed's step that no way of doing it avoids.

    Operations: its matrix products, forward and backward, x's product once. Bytes: every parameter
    with its gradient and Adam's two moments, and what the steps keep for their gradients, read and
    written once.
    """
    splits = made_up(resolved.batch)
    model = Training(variant, resolved, splits, 0).model
    x = splits.train.images[: resolved.batch].float()
    labels = None if splits.train.labels is None else splits.train.labels[: resolved.batch]
    flops, kept = {}, {}
    for steps in (1, 2, 3):
        shape = (steps, model.draws, resolved.batch, model.noise_size)
        noise = streams.normal(shape, 0, "bench")
        with FlopCounterMode(display=False) as counter:
            terms, kept[steps] = programs.bytes_kept(
                functools.partial(rollout.rollout, model, x, x, labels, noise)
            )
            model.objective(terms).mean().backward()  # type: ignore[no-untyped-call]
        flops[steps] = counter.get_total_flops()
    parameters = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    narrow = 2 if resolved.precision == "bf16" else 1
    # the first step has no gradient to hand back
    return {
        "flops": flops[1] + max(0, model.steps - 1) * (flops[3] - flops[2]),
        "bytes": 7 * parameters + 2 * model.steps * (kept[2] - kept[1]) // narrow,
    }


# --------------------------------------------------------------------------- taking turns


def seconds(act: Callable[[], object], repeats: int = 1, device: str = "cpu") -> float:
    """Return the seconds that `repeats` calls take until the device is idle again."""

    def wait() -> None:
        if device != "cpu":
            torch.cuda.synchronize(device)

    wait()
    began = time.perf_counter()
    for _ in range(repeats):
        act()
    wait()
    return time.perf_counter() - began


class Ceilings:
    """How fast this device multiplies and copies.

    Products have the shapes of the model's: of a step's inputs with a kernel, of its gradient with
    the kernel, and of the inputs of eight steps with their gradients. On a CPU the fastest of the
    three backends counts that `ops.linear` knows, without the time to lay a kernel out. On a GPU a
    product is one of all seeds, and many are captured as one graph.
    """

    def __init__(self, resolved: RunConfig, device: str, seeds: int) -> None:
        hidden, rows = resolved.settings.get("hidden", 256), resolved.batch
        dtype = torch.bfloat16 if resolved.precision == "bf16" else torch.float32
        inputs, gates = PIXELS + 2 * hidden, 4 * hidden
        shapes = [(rows, inputs, gates), (rows, gates, inputs), (gates, 8 * rows, inputs)]
        largest = math.prod(shapes[2])
        self.device = device
        on_gpu = device != "cpu"
        self.products = []
        for shape in shapes:
            many = (seeds,) if on_gpu else ()
            left, right = (
                torch.randn(*many, *s, device=device).to(dtype) for s in (shape[:2], shape[1:])
            )
            repeats = max(1, largest // math.prod(shape))
            ways = [captured_products(left, right, repeats)] if on_gpu else _ways(left, right)
            times = (REPLAYS, repeats * seeds * REPLAYS) if on_gpu else (repeats, repeats)
            self.products.append((ways, times[0], times[1] * 2 * math.prod(shape)))
        size = 2**28 if on_gpu else 2**24
        self.source, self.target = (torch.zeros(size, device=device) for _ in range(2))
        if on_gpu:
            self.square = torch.randn(LARGE, LARGE, device=device).to(dtype)

    def matmul(self) -> float:
        """Return GFLOP/s."""
        spent = flops = 0.0
        for ways, repeats, each in self.products:
            spent += min(seconds(way, repeats, self.device) for way in ways)
            flops += each
        return flops / spent / 1e9

    def large(self) -> float:
        """Return GFLOP/s of a product that keeps all of a GPU busy."""
        spent = seconds(lambda: torch.mm(self.square, self.square), 3, self.device)
        return 3 * 2 * LARGE**3 / spent / 1e9

    def copy(self) -> float:
        """Return GB/s, read and written."""
        spent = seconds(lambda: self.target.copy_(self.source), device=self.device)
        return 2 * self.source.nbytes / spent / 1e9


def _ways(left: Tensor, right: Tensor) -> list[Callable[[], Tensor]]:
    """Return the ways in which left @ right can be made on a CPU."""
    ways = [lambda: torch.mm(left, right), lambda: linear.matmul(left, right)]
    if linear.Packed.pays(right, len(left), linear.MANY_CALLS):
        packed = linear.Packed(right, len(left))
        ways.append(lambda: packed.multiply(left))
    return ways


def captured_products(left: Tensor, right: Tensor, repeats: int) -> programs.Program:
    """Return `repeats` products left @ right [S, ...] as one graph."""
    result = torch.bmm(left, right)

    def multiply() -> None:
        for _ in range(repeats):
            torch.bmm(left, right, out=result)

    ways = ["captured uncompiled", "eager"]
    return programs.Program(lambda compiled: multiply, left.device, ways=ways)


def _loops(
    case: Case,
    resolved: RunConfig,
    names: Sequence[str],
    tell: Callable[[str], None] = lambda message: None,
) -> dict[str, Callable[[], None]]:
    """Return one seed's step by every program but the core."""
    steps = {}
    for name in names[1:]:
        loop = Loop(resolved, case.device, once=name != "plain")
        if name == "captured":
            loop.capture(tell)
        steps[name] = loop.step
    return steps


Measured = tuple[dict[str, list[float]], int, str]
"""Seconds per step by program, and the rates `matmul`, `copy` and on a GPU `large`, a value per
round; the peak memory in bytes; and how the core ran."""


def _rounds(
    names: Sequence[str],
    turn: Callable[[str], float],
    rate: Callable[[str], float],
    rates: Sequence[str] = ("matmul", "copy"),
) -> dict[str, list[float]]:
    """Give every program and rate its turn, round after round."""
    measured: dict[str, list[float]] = {name: [] for name in (*names, *rates)}
    began = time.monotonic()
    done = 0
    while done < 3 or (done < ROUNDS and time.monotonic() - began < SECONDS):
        for name, values in measured.items():
            values.append(turn(name) if name in names else rate(name))
        done += 1
    return measured


def _on_gpu(case: Case, names: Sequence[str], tell: Callable[[str], None]) -> Measured:
    """Measure one stack of all seeds, and the loops with one, on a GPU."""
    variant = registry.find(case.variant)
    resolved = case.config(variant)
    splits = made_up(case.batch, EPOCH).to(case.device)
    trainings = [Training(variant, resolved, splits, seed) for seed in range(case.seeds)]
    environment.prepare_torch(1, case.precision)
    torch.cuda.reset_peak_memory_stats(case.device)
    stack = StackedTraining(trainings, tell=tell)

    def core() -> None:
        stack.step()
        if stack.epoch_done:
            stack.collect()
            stack.end_epoch()

    made = {"core": core, **_loops(case, resolved, names, tell)}
    ceilings = Ceilings(resolved, case.device, case.seeds)
    try:
        for name in names:
            made[name]()
    except torch.OutOfMemoryError as error:
        raise UsageError(
            f"{case.seeds} seeds take more memory than {case.device} has; ask for fewer --seeds"
        ) from error
    peak = environment.peak_bytes(case.device)
    measured = _rounds(
        names,
        lambda name: seconds(made[name], BATCHES, case.device) / BATCHES,
        lambda name: float(getattr(ceilings, name)()),
        ("matmul", "large", "copy"),
    )
    return measured, peak, stack.program.way


def _side_by_side(case: Case, names: Sequence[str]) -> Measured:
    """Measure a process a seed, all at once, on a CPU."""
    content = {**asdict(case), "names": list(names)}
    order = Order("glas_bench.commands.bench", content, {"OMP_NUM_THREADS": "1"})
    children: list[tuple[ChildProcess, queue.Queue[dict[str, Any] | None]]] = []

    def answers() -> list[float]:
        events = [(child, inbox.get()) for child, inbox in children]
        for child, event in events:
            if event is None:
                raise RunError(f"a process of the bench {child.how_it_ended()}")
            if "diverged" in event:
                raise UsageError(f"{case.variant} cannot be timed: {event['diverged']}")
        return [float(event["value"]) for _, event in events if event is not None]

    def ask(what: str) -> list[float]:
        for child, _ in children:
            child.send(what)
        return answers()

    with contextlib.ExitStack() as stack:
        for _ in range(case.seeds):
            inbox: queue.Queue[dict[str, Any] | None] = queue.Queue()
            child = stack.enter_context(contextlib.closing(ChildProcess(order, inbox.put)))
            children.append((child, inbox))
        answers()  # all are ready
        measured = _rounds(
            names,
            lambda name: seconds(lambda: ask(name)),  # a process cannot see that it waits for a CPU
            lambda name: statistics.mean(ask(name)) * case.seeds,
        )
        return measured, int(sum(ask("peak"))), "eager, a process a seed"


def main() -> NoReturn:
    """Serve as one seed: an order on stdin, then a line for every turn; seconds or rates back."""
    processes.serve(_serve)


def _serve(order: dict[str, Any], tell: processes.OnEvent, inbox: queue.Queue[Any]) -> int:
    try:
        _take_turns(order, tell, inbox)
    except Diverged as diverged:
        tell({"diverged": f"it diverged at step {diverged.step}, {diverged.reason}"})
        return 0


def _take_turns(
    order: dict[str, Any], tell: processes.OnEvent, inbox: queue.Queue[Any]
) -> NoReturn:
    names = order.pop("names")
    case = Case(**order)
    environment.prepare_torch(1)
    variant = registry.find(case.variant)
    resolved = case.config(variant)
    training = Training(variant, resolved, made_up(case.batch), 0)

    def core() -> None:
        training.step()
        if training.epoch_done:
            training.end_epoch()

    made = {"core": core, **_loops(case, resolved, names)}
    ceilings = Ceilings(resolved, case.device, 1)
    for _ in range(2):
        for step in made.values():
            step()
    answers: dict[str, Callable[[], float]] = {
        "matmul": ceilings.matmul,
        "copy": ceilings.copy,
        "peak": lambda: float(environment.peak_bytes(case.device)),
        **{name: functools.partial(seconds, step) for name, step in made.items()},
    }
    tell({"value": 0.0})
    while True:
        tell({"value": answers[inbox.get()]()})


if __name__ == "__main__":
    main()
