"""A latent matrix learned by classification, then fixed (approach 2, in two steps).

Phase one takes max(1, round(epochs / 10)) of the epochs: canvas and decoder stay at zero, a linear
head reads the mean over t of a_t, and its cross-entropy trains encoder, filter, latent matrix and
head. In phase two the matrix is frozen, everything else is drawn again and the optimiser restarts.
With one epoch there is only phase two: the matrix stays as it was drawn, as in `fixed-random`.

`latent_from` selects a control with the same epochs in phase two: `permuted` shuffles the cells of
the supervised matrix, `cauchy` learns the matrix from the published objective in phase one, and
`random` discards the learned matrix and draws it again.

Source: Akoury 2017, README, unsuccessful approach 2, which proposes this. The original code has no
such option: phases, head and controls are our design.

What the write-up says happened: nothing; it proposes to try this.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from glas_bench.model import (
    Context,
    FilterSettings,
    Glas,
    Linear,
    Memory,
    Phase,
    Recognition,
    State,
    Terms,
)


class FixedSupervised(Glas):
    """GLAS over a frozen matrix that was learned from labels."""

    needs_labels = True
    write_up = "proposed for the future, not tried: classify first, then fix the latent space"

    class Settings(FilterSettings):
        """Those of a filter, and the origin of the matrix."""

        latent_from: Literal["supervised", "permuted", "cauchy", "random"] = Field(
            "supervised", description="what the fixed matrix is: learned from labels, or a control"
        )

    def build_attention(self) -> int:
        read_size = super().build_attention()
        self.head = Linear(read_size, self.classes)
        return read_size

    def phases(self, epochs: int) -> tuple[Phase, ...]:
        source = self.settings.latent_from
        first = min(max(1, round(0.1 * epochs)), epochs - 1)
        keep = () if source == "random" else ("latent",)
        main = Phase("main", epochs - first, keep=keep, frozen=("latent", "head"))
        if first == 0:
            return (main,)
        if source == "cauchy":
            return Phase("cauchy", first, frozen=("head",)), main
        return (
            Phase(
                "supervised",
                first,
                objective=cross_entropy_alone,
                auxiliary=type(self).cross_entropy,
                generates=False,
                frozen=("decoder", "write", "mean", "log_std"),
            ),
            main,
        )

    def between_phases(self, before: Phase, after: Phase) -> None:
        if self.settings.latent_from == "permuted":
            order = torch.randperm(self.latent.numel(), device=self.latent.device)
            self.latent.copy_(self.latent.flatten()[order].view_as(self.latent))

    def begin_recognition(self, x: Tensor) -> Recognition:
        reads = x.new_zeros(x.shape[0], self.head.in_features)
        return super().begin_recognition(x)._replace(memory={"reads": reads})

    def attend(self, e_BH: Tensor, memory: Memory, t: Tensor) -> tuple[Tensor, Memory]:
        read, _ = super().attend(e_BH, memory, t)
        return read, {"reads": memory["reads"] + read}

    def cross_entropy(self, context: Context, state: State) -> Tensor:
        """Return the cross-entropy of the labels given the mean read, [B] nats."""
        assert context.labels is not None  # guaranteed by the core: needs_labels
        logits = self.head(state.recognition.memory["reads"] / self.steps)
        return F.cross_entropy(logits, context.labels, reduction="none")


def cross_entropy_alone(model: Glas, terms: Terms) -> Tensor:
    """Return the objective of the supervised phase, [B] nats."""
    return terms.aux.mean(0)
