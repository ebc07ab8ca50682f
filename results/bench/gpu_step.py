"""Kernels and bytes of one training step of a stack, counted without a GPU.

    python results/bench/gpu_step.py --steps 64 --seeds 8

What `ops.programs` would compile is traced and lowered by torch's inductor, and every kernel that
its scheduler makes is counted at each call, with the bytes that it reads and writes. All other
operations of the step are counted as one kernel each. Inductor lowers for the CPU here, so its
fusions may differ from those on a GPU. Nothing is timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch._functorch.aot_autograd import aot_function, make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glas_bench import data, registry
from glas_bench.config import resolve
from glas_bench.core.stacked import StackedTraining
from glas_bench.core.train import Training
from glas_bench.ops import programs


class Count(TorchDispatchMode):
    """Counts kernels and bytes: of lowered graphs as they say, of everything else one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = {"lowered": 0, "products": 0, "other": 0}
        self.bytes = dict.fromkeys(self.kernels, 0)
        self.inside = False

    def add(self, kind: str, kernels: int, size: int) -> None:
        self.kernels[kind] += kernels
        self.bytes[kind] += size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        is_view = func.is_view or func in _FREE
        if not self.inside and not is_view:
            seen = result if func in _READS_NOTHING else (args, kwargs, result)
            tensors = [leaf for leaf in tree_leaves(seen) if torch.is_tensor(leaf)]
            self.add("other", 1, sum(_size(tensor) for tensor in tensors))
        return result


_FREE = {
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.empty_like.default,
    torch.ops.aten.new_empty.default,
    torch.ops.aten.detach.default,
    torch.ops.aten._unsafe_view.default,
    torch.ops.aten.lift_fresh.default,
}
_READS_NOTHING = {torch.ops.aten.new_zeros.default, torch.ops.aten.zeros_like.default}


def _size(tensor: torch.Tensor) -> int:
    """Return the bytes of what a tensor shows, a number expanded counting once."""
    numbers = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        numbers *= size if stride else 1
    return numbers * tensor.element_size()


def lowered(count: Count) -> Callable[..., Any]:
    """Return a compiler that lowers a graph, and runs it as it is while it counts its kernels."""

    def compiler(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        products, rest = kernels_of(graph, inputs)

        def run(*arguments: Any) -> Any:
            count.inside = True
            try:
                result = graph(*arguments)
            finally:
                count.inside = False
            count.add("products", *products)
            count.add("lowered", *rest)
            return result

        return make_boxed_func(run)

    return compiler


def kernels_of(graph: torch.fx.GraphModule, inputs: list[Any]) -> list[tuple[int, int]]:
    """Return number and bytes of a graph's kernels: of products of matrices, and of all others."""
    fake = next((i.fake_mode for i in inputs if hasattr(i, "fake_mode")), None)
    fake = fake or FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    given = [fake.from_tensor(i, static_shapes=True) if torch.is_tensor(i) else i for i in inputs]
    with V.set_fake_mode(fake):
        made = GraphLowering(graph, example_inputs=given, shape_env=fake.shape_env)
        with V.set_graph_handler(made), V.set_debug_handler(DebugContext()):
            made.run(*given)
            made._update_scheduler()
            found = [
                (n.is_extern(), n.get_read_write_buffers_sizes()) for n in made.scheduler.nodes
            ]
    kinds = [[size for extern, size in found if extern is kind] for kind in (True, False)]
    return [(len(sizes), sum(sizes)) for sizes in kinds]


def counted(steps: int, seeds: int, precision: str, variant: str, hidden: int, batch: int) -> Count:
    """Return the counts of one training step."""
    count = Count()

    def compiled(function: Any, wanted: bool, **about: Any) -> Any:
        return aot_function(
            function,
            fw_compiler=lowered(count),
            bw_compiler=lowered(count),
            partition_fn=min_cut_rematerialization_partition,
            decompositions=select_decomp_table(),
        )

    programs.compiled = compiled
    found = registry.find(variant)
    overrides = {"steps": steps, "hidden": hidden, "batch": batch, "precision": precision}
    config = resolve(found, preset="paper", dataset="mnist-5k", overrides=overrides)
    splits = data.load(config.dataset, config.binarisation)
    trainings = [Training(found, config, splits, seed) for seed in range(seeds)]
    stack = StackedTraining(trainings, ways=["compiled"])
    stack.step()  # traces and lowers
    count.kernels = dict.fromkeys(count.kernels, 0)
    count.bytes = dict.fromkeys(count.bytes, 0)
    with count:
        stack.step()
    return count


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="cauchy")
    parser.add_argument("--steps", type=int, default=64, help="T")
    parser.add_argument("--seeds", type=int, default=8, help="S")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--precision", default="fp32,bf16", help="tf32 moves the bytes of fp32")
    given = parser.parse_args()
    print(
        "| precision | kernels | of these products | GB | of these products | other than lowered |"
    )
    print("|---|---|---|---|---|---|")
    for precision in given.precision.split(","):
        sizes = given.variant, given.hidden, given.batch
        found = counted(given.steps, given.seeds, precision, *sizes)
        row = [
            str(sum(found.kernels.values())),
            str(found.kernels["products"]),
            f"{sum(found.bytes.values()) / 1e9:.2f}",
            f"{found.bytes['products'] / 1e9:.2f}",
            f"{found.kernels['other']} kernels, {found.bytes['other'] / 1e9:.2f} GB",
        ]
        print(f"| {precision} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
