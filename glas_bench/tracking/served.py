"""A trained seed as MLflow loads it: `mlflow.pyfunc.load_model("runs:/<run id>/model")`.

The model in MLflow is a copy of the run folder with that seed alone; its checkpoint holds weights
and no code. The variant has to be installed where it is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glas_bench.errors import RunError
from glas_bench.record import load_run

if TYPE_CHECKING:
    import numpy as np

    from glas_bench.model import Glas


class Served:
    """A decoder with its recogniser."""

    def __init__(self, model: Glas) -> None:
        self.model = model

    def predict(self, images: np.ndarray, params: Mapping[str, Any] | None = None) -> np.ndarray:
        """Return E[x | o_T], [N, P].

        Args:
            images: x in [0, 1], [N, P].
            params: `seed` of the draws (0); with `sample` (false) they are from the prior, one for
                each of the images, which are not looked at, and otherwise from q of the images.

        Raises:
            RunError: q has running statistics, which take training images, and `sample` is false.
        """
        import torch

        given = {"sample": False, "seed": 0, **(params or {})}
        if given["sample"]:
            return self.model.sample(len(images), int(given["seed"])).numpy()
        if self.model.statistics_of:
            raise RunError(
                "the recogniser of this variant has running statistics, which are made of training "
                "images and are not part of the model; only params={'sample': True} works"
            )
        generator = torch.Generator().manual_seed(int(given["seed"]))
        x_BP = torch.as_tensor(images, dtype=torch.float32)
        with torch.inference_mode():
            context, state = self.model.begin(x_BP, x_BP)
            for t in torch.arange(self.model.steps):
                noise = torch.randn(len(x_BP), self.model.noise_size, generator=generator)
                state, _ = self.model.step(context, state, noise, t)
            return self.model.likelihood.mean(state.generation.canvas).numpy()


def _load_pyfunc(path: str) -> Served:
    """Return the model in the copy of a run folder; MLflow calls this."""
    (seed,) = load_run(Path(path)).seeds.values()
    return Served(seed.model())
