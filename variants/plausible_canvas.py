"""Every canvas a likely picture, not the last one alone (future work of the write-up).

Adds aux_weight times the mean over steps of -log p(x | o_t), the last step among them, o_t being
the canvas after step t.

Source: Akoury 2017, README, future work, which asks (as "minimize the plausibility", surely
maximise) that the canvas be as likely as possible under the true distribution at every step. It is
in no commit of the original code, and x is the one sample of that distribution at hand: this is our
reading. It pays for early canvases and leaves p(x) itself as it is.

What the write-up says happened: nothing; it is named as something to try.
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
