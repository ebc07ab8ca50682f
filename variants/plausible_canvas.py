"""Every canvas is trained to be a likely image, not only the last (future work of the write-up).

Adds aux_weight times the mean of -log p(x | o_t) over all steps; o_t is the canvas after step t.

Source: Akoury 2017, README, future work, which asks ("minimize the plausibility", surely maximise)
for a canvas that is as likely as possible under the true distribution at every step. It is in no
commit of the original code; this is our reading, with x as the one sample of that distribution. It
rewards early canvases that are like x, and does not change the definition of p(x).

What the write-up says happened: nothing; it proposes to try this.
"""

from pydantic import Field
from torch import Tensor

from glas_bench.model import Context, FilterSettings, Glas, Memory, Recognition, State


class PlausibleCanvas(Glas):
    """GLAS that is scored on all its canvases."""

    bounds_nll = True
    why = "-log p(x | o_t) of binary pixels is never negative: at least the negative ELBO"
    write_up = "proposed for the future, not tried: every canvas as plausible as possible"

    class Settings(FilterSettings):
        """Those of a filter, and the weight of the canvases."""

        aux_weight: float = Field(1.0, ge=0, description="weight of the mean over canvases")

    def begin_recognition(self, x: Tensor) -> Recognition:
        return super().begin_recognition(x)._replace(memory={"misses": x.new_zeros(x.shape[0])})

    def observe(self, context: Context, state: State, t: Tensor) -> Memory:
        missed = -self.log_likelihood(state.generation.canvas, context.target)
        return {"misses": state.recognition.memory["misses"] + missed}

    def auxiliary(self, context: Context, state: State) -> Tensor:
        weight: float = self.settings.aux_weight
        return weight * state.recognition.memory["misses"] / self.steps
