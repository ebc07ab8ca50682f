"""A latent matrix learned by classification while the bound is optimised (approach 2, in tandem).

One rollout: a linear head on the mean over t of a_t adds aux_weight times its cross-entropy to the
objective. The reads for q have a stop-gradient at the matrix, so that it learns from the
cross-entropy only; everything else learns from both. The gradient of the cross-entropy through z
and the canvas, a path shared with the bound, does not reach the matrix either.

Source: Akoury 2017, README, unsuccessful approach 2, which proposes this. The original code has no
such option: the stop-gradient and the head are our design; see `fixed-supervised`.

What the write-up says happened: nothing; it proposes to try this.
"""

from pydantic import Field
from torch import Tensor

from glas_bench.filters import read_matrix
from glas_bench.model import Context, FilterSettings, Glas, Memory, Phase, State
from glas_bench.variants.fixed_supervised import FixedSupervised


class TandemSupervised(FixedSupervised):
    """GLAS over a matrix that is learned from labels."""

    bounds_nll = True
    why = "cross-entropy is never negative: the objective is at least the negative ELBO"
    write_up = "proposed for the future, not tried: supervise in tandem with the bound"

    class Settings(FilterSettings):
        """Those of a filter, and the weight of the labels."""

        aux_weight: float = Field(1.0, ge=0, description="weight of the cross-entropy")

    def phases(self, epochs: int) -> tuple[Phase, ...]:
        return Glas.phases(self, epochs)

    def between_phases(self, before: Phase, after: Phase) -> None:
        pass

    def attend(self, e_BH: Tensor, memory: Memory, t: Tensor) -> tuple[Tensor, Memory]:
        rows = self.filter_rows(e_BH)
        seen_by_head = read_matrix(self.latent, *rows)
        read = read_matrix(self.latent.detach(), *rows)
        return read, {"reads": memory["reads"] + seen_by_head}

    def auxiliary(self, context: Context, state: State) -> Tensor:
        weight: float = self.settings.aux_weight
        return weight * self.cross_entropy(context, state)
