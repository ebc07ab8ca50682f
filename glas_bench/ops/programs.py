"""Functions of tensors that stay where they are, run in the fastest way that works.

On a GPU a model of this size is bound by the launches of its small kernels. So the work of a whole
step is captured once as a CUDA graph and replayed, with the model's step inside it compiled. Where
that fails (there may be no C compiler) the step is captured uncompiled; where it cannot be captured
it runs compiled, or else eagerly. Every fallback is reported. On a CPU functions run eagerly by
default: compiling takes half a minute there.

The captured ways are written for a GPU and have not run on one yet.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Function = Callable[..., Any]
WAYS = ("captured", "captured uncompiled", "compiled", "eager")
"""From the fastest to the slowest."""

MOST_COMPILED = 256
"""Versions of one function, by shapes and dtypes, that are compiled in a process."""

WARM_UP = 3
"""Calls before a capture, in which kernels are chosen and memory is allocated."""

BACKEND = "inductor"
"""Of `torch.compile`; `aot_eager` traces and differentiates alike and keeps torch's own kernels."""

FEW_STEPS = 10_000
"""Steps below which compiling, about a minute, takes longer than it saves."""

_captures_failed = False
"""Whether a capture has failed in this process. torch's allocator may then take it to be under way
still (pytorch issues 180395, 190308), so nothing is captured any more."""


def ways_on(device: torch.device, steps: int = FEW_STEPS) -> tuple[str, ...]:
    """Return what is tried on a device, in order, for a function that is called `steps` times."""
    if device.type != "cuda":
        return ("eager",)
    return WAYS if steps >= FEW_STEPS else ("captured uncompiled", "eager")


class Program:
    """A function of tensors, of the same shapes at every call.

    Args:
        build: returns the function; its argument says whether to compile the inner parts.
        device: where the function runs.
        kept: returns the tensors that the function changes in place, to restore them after warm-up.
        tell: called with a message at every fallback.
        ways: what is tried, in order; by default `ways_on` the device.
    """

    def __init__(
        self,
        build: Callable[[bool], Function],
        device: torch.device,
        *,
        kept: Callable[[], Sequence[Tensor]] = lambda: (),
        tell: Callable[[str], None] = lambda message: None,
        ways: Sequence[str] | None = None,
    ) -> None:
        self.build = build
        self.device = device
        self.kept = kept
        self.tell = tell
        self.ways = list(ways_on(device) if ways is None else ways)
        self.function: Function | None = None
        self.graph: Any = None
        self.inputs: list[Tensor] = []
        self.result: Any = None

    @property
    def way(self) -> str:
        """How the function runs, or will be tried next."""
        return self.ways[0]

    def __call__(self, *inputs: Tensor) -> Any:
        """Run the function; a captured one overwrites the tensors of its last result."""
        while self.function is None:
            before = [tensor.detach().clone() for tensor in self.kept()]
            if _captures_failed and len(self.ways) > 1 and self.way.startswith("captured"):
                self.ways.pop(0)
                continue
            try:
                return self._begin(inputs, before)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                if "out of memory" in str(error):  # of a graph, which torch does not tell apart
                    raise torch.OutOfMemoryError(str(error)) from error
                if len(self.ways) == 1:
                    raise
                self.function = self.graph = None
                self._restore(before)
                failed = self.ways.pop(0)
                self.tell(f"{_FAILED[failed]}: {_first_line(error)}; {_NEXT[self.way]} instead")
        if self.graph is None:
            return self.function(*inputs)
        for place, given in zip(self.inputs, inputs, strict=True):
            place.copy_(given)
        self.graph.replay()
        return self.result

    def _begin(self, inputs: tuple[Tensor, ...], before: list[Tensor]) -> Any:
        function = self.build(self.way in ("captured", "compiled"))
        if self.way.startswith("captured"):
            self._capture(function, inputs, before)
            self.function = function
            return self(*inputs)
        result = function(*inputs)
        self.function = function
        return result

    def _capture(
        self, function: Function, inputs: tuple[Tensor, ...], before: list[Tensor]
    ) -> None:
        self.inputs = [given.clone() for given in inputs]
        with torch.cuda.device(self.device):  # a capture records the current device
            here = torch.cuda.current_stream()
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(here)
            try:
                with torch.cuda.stream(side):
                    for call in range(WARM_UP):
                        with _no_waiting(call == WARM_UP - 1):
                            function(*self.inputs)
                        self._restore(before)
            finally:
                here.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with _capturing(here), torch.cuda.graph(graph, stream=side):
                self.result = function(*self.inputs)
        self.graph = graph

    def _restore(self, before: list[Tensor]) -> None:
        with torch.no_grad():
            for tensor, value in zip(self.kept(), before, strict=True):
                tensor.copy_(value)


@contextlib.contextmanager
def _no_waiting(wanted: bool) -> Iterator[None]:
    """Let an operation that waits for the device raise, before a capture that it would break."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error" if wanted else before)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@contextlib.contextmanager
def _capturing(stream: torch.cuda.Stream) -> Iterator[None]:
    """Hold off the garbage collector, which may free what a capture must not; note a failure."""
    global _captures_failed
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    except BaseException:
        _captures_failed = True
        torch.cuda.set_stream(stream)
        raise
    finally:
        if was_enabled:
            gc.enable()


_FAILED = {
    "captured": "no CUDA graph of the compiled step",
    "captured uncompiled": "no CUDA graph",
    "compiled": "not compiled",
}
_NEXT = {
    "captured uncompiled": "capturing it uncompiled",
    "compiled": "running the compiled step",
    "eager": "running it uncompiled",
}


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__


def compiled(function: Function, wanted: bool, *, any_size: bool = False) -> Function:
    """Return the function; if wanted, it is compiled at its first call.

    Args:
        function: of tensors.
        wanted: whether to compile it.
        any_size: once for all sizes, instead of once for each.
    """
    if not wanted:
        return function
    import torch._dynamo.config as dynamo  # takes a second

    # the limit is per function, and the cells of a sweep share it, each with its own shapes
    dynamo.recompile_limit, dynamo.accumulated_recompile_limit = MOST_COMPILED, 16 * MOST_COMPILED
    made: Function = torch.compile(function, dynamic=any_size, backend=BACKEND)
    return made


def any_length(tensor: Tensor, dim: int) -> None:
    """Let a function that is compiled with this tensor, e.g. a buffer, serve every size of dim."""
    import torch._dynamo as dynamo

    dynamo.config.force_parameter_static_shapes = False  # of buffers too
    dynamo.mark_dynamic(tensor, dim)


def compiled_tree(function: Function, wanted: bool) -> Function:
    """Return what `compiled` does, of a function whose result holds named tuples.

    The compiled part returns a plain list: torch 2.11 cannot compile what returns a named tuple
    that `_replace` made.
    """
    if not wanted:
        return function
    leaves = compiled(lambda *arguments: pytree.tree_leaves(function(*arguments)), True)
    form: list[Any] = []

    def run(*arguments: Any) -> Any:
        if not form:
            form.append(pytree.tree_structure(function(*arguments)))
        return pytree.tree_unflatten(leaves(*arguments), form[0])

    return run


def bytes_kept(function: Callable[[], Any]) -> tuple[Any, int]:
    """Return a function's result and the bytes of all that autograd keeps for its gradients."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = function()  # what is kept lives as long as this, so no address is used twice
    return result, sum(kept.values())
