"""The speed of the training core, beside what it should be compared with.

Three programs train the same model at the same precision, in one run, in turns: the core; an eager
loop that computes the product of x once and fuses the gates; and the plain eager loop as public
DRAW code has it, which concatenates its inputs and multiplies all of them at every step (both in
`eager_loop`). Beside them stands the limit: the floating-point operations and bytes that a step
cannot do without, over the rates that this machine reaches in products of the model's own shapes
and in copying.

A step trains every seed on one batch. On a CPU every seed is a process with one thread, all side by
side, as in training; on a GPU the core is one program and the loops train one seed. Medians of
rounds; a round gives each program its turn.
"""

from __future__ import annotations

import contextlib
import functools
import math
import queue
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
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
from glas_bench.core.train import Training
from glas_bench.errors import RunError, UsageError
from glas_bench.ops import linear, programs
from glas_bench.processes import ChildProcess, Order
from glas_bench.registry import Variant
from glas_bench.text import aligned, byte_size

EPOCH = 390
"""Batches of 128 in 50,000 images: a stack on a GPU waits for its device at the end of an epoch."""

PROGRAMS = ("core", "reference", "plain")
ROUNDS = 9
SECONDS = 12.0
"""A case is measured for about so long, but for three rounds at least."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured."""

    variant: str
    steps: int | None
    hidden: int | None
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
        given = {"steps": self.steps, "hidden": self.hidden}
        own = variant.cls.Settings.model_fields
        sizes = {key: value for key, value in given.items() if value is not None and key in own}
        return config.resolve(
            variant,
            preset="paper",
            dataset="mnist-5k",
            overrides={
                **sizes,
                "batch": self.batch,
                "precision": self.precision,
                "epochs": 10_000,
            },
        )


def cases(
    *,
    steps: str,
    seeds: str,
    precision: str | None,
    device: str,
    no_reference: bool,
    **given: Any,
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
        Case(
            **given,
            steps=many_steps,
            seeds=many_seeds,
            precision=each,
            device=chosen,
            reference=not no_reference,
        )
        for each in precisions
        for many_steps in _numbers("--steps", steps)
        for many_seeds in _numbers("--seeds", seeds)
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
        UsageError: the variant or a setting is unknown.
        RunError: a process of the bench ended.
    """
    variant = registry.find(case.variant)
    resolved = case.config(variant)
    names = PROGRAMS if case.reference and variant.cls.is_control else PROGRAMS[:1]
    measured = _on_gpu if case.device.startswith("cuda") else _side_by_side
    rounds, about = measured(case, names, tell)
    medians = {name: statistics.median(times) for name, times in rounds.items()}
    work = count_work(variant, resolved)
    # at once on this machine: every seed on a CPU, the whole card on a GPU
    matmul, copy = statistics.median(about["matmul"]), statistics.median(about["copy"])
    core = medians["core"]
    flops = work["flops"] * case.seeds / core / 1e9
    limit = case.seeds * max(work["flops"] / matmul / 1e9, work["bytes"] / copy / 1e9)
    images = case.batch * case.seeds
    row: dict[str, Any] = {
        "variant": variant.name,
        "steps": resolved.settings.get("steps", 1),
        "hidden": resolved.settings.get("hidden"),
        "batch": case.batch,
        "seeds": case.seeds,
        "precision": case.precision,
        "device": environment.device_name(case.device),
        "way": about["way"],
        "seconds_per_step": core,
        "images_per_second": images / core,
        "rounds": len(rounds["core"]),
        "gflop_per_step": work["flops"] * case.seeds / 1e9,
        "gflop_per_second": flops,
        "matmul_ceiling": matmul,
        "share_of_matmul_ceiling": flops / matmul,
        "gbytes_per_step": work["bytes"] * case.seeds / 1e9,
        "copy_ceiling": copy,
        "share_of_copy_ceiling": work["bytes"] * case.seeds / core / 1e9 / copy,
        "limit_seconds": limit,
        "share_of_limit": limit / core,
        "peak_memory_bytes": max(about["peak"]),
        "load": environment.load(),
    }
    for name in PROGRAMS[1:]:
        # the loops on a GPU train one seed: seconds for as many seeds, one after another
        times = rounds.get(name)
        many = case.seeds if case.device.startswith("cuda") else 1
        row[f"{name}_seconds"] = None if times is None else many * medians[name]
        ratios = [many * b / a for a, b in zip(rounds["core"], times or [], strict=False)]
        row[f"ratio_to_{name}"] = statistics.median(ratios) if ratios else None
    return row


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a table, ratios first."""
    columns = (
        ("T", "steps", "d"),
        ("S", "seeds", "d"),
        ("precision", "precision", "s"),
        ("x reference", "ratio_to_reference", ".2f"),
        ("x plain", "ratio_to_plain", ".2f"),
        ("of limit", "share_of_limit", ".0%"),
        ("of matmul", "share_of_matmul_ceiling", ".0%"),
        ("of copy", "share_of_copy_ceiling", ".0%"),
        ("s/step", "seconds_per_step", ".4f"),
        ("images/s", "images_per_second", ".0f"),
        ("GFLOP/s", "gflop_per_second", ".0f"),
        ("matmul GFLOP/s", "matmul_ceiling", ".0f"),
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

    Operations are those of its matrix products, forward and backward, x's product once. Bytes are
    every parameter with its gradient and Adam's two moments read and written once, and what the
    steps keep for their gradients written and read once.
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


class Ceilings:
    """How fast this device multiplies and copies.

    Products have the shapes of the model's: of a step's inputs with a kernel, of its gradient with
    the kernel, and of the inputs of eight steps with their gradients. The fastest backend counts,
    on a CPU of the three that `ops.linear` knows, without the time to lay a kernel out.
    """

    def __init__(self, resolved: RunConfig, device: str) -> None:
        hidden, rows = resolved.settings.get("hidden", 256), resolved.batch
        dtype = torch.bfloat16 if resolved.precision == "bf16" else torch.float32
        inputs, gates = PIXELS + 2 * hidden, 4 * hidden

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, device=device).to(dtype)

        shapes = [(rows, inputs, gates), (rows, gates, inputs), (gates, 8 * rows, inputs)]
        largest = math.prod(shapes[2])
        self.products = []
        for shape in shapes:
            left, right = draw(*shape[:2]), draw(*shape[1:])
            repeats = max(1, largest // math.prod(shape))
            self.products.append((_ways(left, right, device), repeats, 2 * math.prod(shape)))
        many = 2**28 if device.startswith("cuda") else 2**24
        self.source = torch.zeros(many, device=device)
        self.target = torch.zeros(many, device=device)
        self.wait = waiter(device)

    def matmul(self) -> float:
        """Return GFLOP/s."""
        spent = flops = 0.0
        for ways, repeats, each in self.products:
            spent += min(self._time(way, repeats) for way in ways)
            flops += repeats * each
        return flops / spent / 1e9

    def _time(self, way: Callable[[], Tensor], repeats: int) -> float:
        self.wait()
        began = time.perf_counter()
        for _ in range(repeats):
            way()
        self.wait()
        return time.perf_counter() - began

    def copy(self) -> float:
        """Return GB/s, read and written."""
        self.wait()
        began = time.perf_counter()
        self.target.copy_(self.source)
        self.wait()
        return 2 * self.source.nbytes / (time.perf_counter() - began) / 1e9


def _ways(left: Tensor, right: Tensor, device: str) -> list[Callable[[], Tensor]]:
    """Return the ways in which left @ right can be made on a device."""
    ways: list[Callable[[], Tensor]] = [lambda: torch.mm(left, right)]
    if device == "cpu":
        ways.append(lambda: linear.matmul(left, right))
        if linear.Packed.pays(right, len(left), linear.MANY_CALLS):
            packed = linear.Packed(right, len(left))
            ways.append(lambda: packed.multiply(left))
    return ways


def waiter(device: str) -> Callable[[], None]:
    """Return a function that waits until the device is idle."""
    if device.startswith("cuda"):
        return lambda: torch.cuda.synchronize(device)
    return lambda: None


def _advance(training: Training) -> None:
    training.step()
    if training.epoch_done:
        training.end_epoch()


def _programs(case: Case, names: Sequence[str]) -> dict[str, Callable[[], None]]:
    """Return one seed's step by every program."""
    variant = registry.find(case.variant)
    resolved = case.config(variant)
    made: dict[str, Callable[[], None]] = {}
    for name in names:
        if name == "core":
            training = Training(variant, resolved, made_up(case.batch).to(case.device), 0)
            made[name] = functools.partial(_advance, training)
        else:
            made[name] = Loop(resolved, case.device, once=name == "reference").step
    return made


def _rounds(began: float, done: int) -> bool:
    """Tell whether another round is taken."""
    return done < 3 or (done < ROUNDS and time.monotonic() - began < SECONDS)


def _on_gpu(
    case: Case, names: Sequence[str], tell: Callable[[str], None]
) -> tuple[dict[str, list[float]], dict[str, Any]]:
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

    made = {"core": core, **_programs(case, [name for name in names if name != "core"])}
    wait = waiter(case.device)
    rounds: dict[str, list[float]] = {name: [] for name in names}
    ceilings = Ceilings(resolved, case.device)
    about: dict[str, Any] = {"matmul": [], "copy": [], "peak": []}
    try:
        for name in names:
            made[name]()
    except torch.OutOfMemoryError as error:
        raise UsageError(
            f"{case.seeds} seeds take more memory than {case.device} has; ask for fewer --seeds"
        ) from error
    peak = environment.peak_bytes(case.device)
    began = time.monotonic()
    while _rounds(began, len(rounds["core"])):
        for name in names:
            wait()
            start = time.perf_counter()
            for _ in range(BATCHES):
                made[name]()
            wait()
            rounds[name].append((time.perf_counter() - start) / BATCHES)
        about["matmul"].append(ceilings.matmul())
        about["copy"].append(ceilings.copy())
    return rounds, {**about, "way": stack.program.way, "peak": [peak]}


def _side_by_side(
    case: Case, names: Sequence[str], tell: Callable[[str], None]
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Measure a process a seed, all at once, on a CPU."""
    del tell
    rounds: dict[str, list[float]] = {name: [] for name in names}
    about: dict[str, Any] = {"matmul": [], "copy": [], "way": "eager, a process a seed"}
    with contextlib.ExitStack() as stack:
        seeds = [stack.enter_context(_process(case, names)) for _ in range(case.seeds)]
        for ask in seeds:
            ask(None)()  # wait until it is ready
        began = time.monotonic()
        while _rounds(began, len(rounds["core"])):
            for name in names:
                asked = time.perf_counter()
                _together(seeds, name)
                # measured here: a process cannot see that it waits for a processor
                rounds[name].append(time.perf_counter() - asked)
            about["matmul"].append(statistics.mean(_together(seeds, "matmul")) * case.seeds)
            about["copy"].append(statistics.mean(_together(seeds, "copy")) * case.seeds)
        about["peak"] = [sum(_together(seeds, "peak"))]
    return rounds, about


Ask = Callable[[str | None], Callable[[], float]]


def _together(seeds: Sequence[Ask], what: str) -> list[float]:
    """Ask every process at once; return their answers."""
    return [answer() for answer in [ask(what) for ask in seeds]]


@contextlib.contextmanager
def _process(case: Case, names: Sequence[str]) -> Iterator[Ask]:
    order = Order(
        "glas_bench.commands.bench",
        {**asdict(case), "names": list(names)},
        {"OMP_NUM_THREADS": "1"},
    )
    answers: queue.Queue[dict[str, Any] | None] = queue.Queue()
    child = ChildProcess(order, answers.put)

    def answer() -> float:
        event = answers.get()
        if event is None:
            raise RunError(f"a process of the bench {child.how_it_ended()}")
        return float(event["value"])

    def ask(what: str | None) -> Callable[[], float]:
        if what is not None:
            child.send(what)
        return answer

    try:
        yield ask
    finally:
        child.close()


def main() -> NoReturn:
    """Serve as one seed: an order on stdin, then a line for every turn; seconds or rates back."""
    processes.serve(_serve)


def _serve(order: dict[str, Any], tell: processes.Tell, inbox: queue.Queue[Any]) -> NoReturn:
    names = order.pop("names")
    case = Case(**order)
    environment.prepare_torch(1)
    made = _programs(case, names)
    ceilings = Ceilings(case.config(registry.find(case.variant)), case.device)
    for _ in range(2):
        for step in made.values():
            step()
    # once each, and no more: what comes first is slower
    answers: dict[str, Callable[[], float]] = {
        "matmul": ceilings.matmul,
        "copy": ceilings.copy,
        "peak": lambda: float(environment.peak_bytes(case.device)),
    }
    tell({"value": 0.0})
    while True:
        name = inbox.get()
        if name in made:
            began = time.perf_counter()
            made[name]()
            value = time.perf_counter() - began
        else:
            value = answers[name]()
        tell({"value": value})


if __name__ == "__main__":
    main()
