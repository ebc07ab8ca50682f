"""Whether an AIS estimate is accepted, what to raise where it is not, and its text.

Two estimates of the real images, at N temperatures and independently at 2N, must agree in the mean;
walks both ways on images that the model made must lie close together (see `ais`). Neither is enough
alone: two estimates that agree may share a bias, and the model's own images are easier than real
ones. All numbers are nats per image, -log p(x).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glas_bench.ais import AISResult, Annealing, Bidirectional
from glas_bench.ais.annealing import mean_and_error
from glas_bench.record import SeedFolder, finite
from glas_bench.text import aligned, duration, number

ALLOWED = 0.5
"""Nats that the two estimates may differ by, and that the gap may have, in the mean over images."""

PAIRED_WITH = ("iw", "refit_iw", "nll")


@dataclass(frozen=True)
class Verdict:
    """The walks of one model and whether they are accepted."""

    how: Annealing
    images: Tensor
    """[B] int64, which test images they are."""
    total: int
    """Images of the test split."""
    once: AISResult
    """Real images at N temperatures."""
    again: AISResult
    """Real images at 2N temperatures."""
    both: Bidirectional | None
    """Simulated images at N temperatures; None where none can be simulated."""

    def scores(self) -> dict[str, Any]:
        """Return the scores, JSON-ready, null where there is no number."""
        problems = self.problems()
        value, error = mean_and_error(-self.again.log_p_B)
        change, change_error = mean_and_error(self._change())
        n = len(self.images)
        return {
            "images": n,
            "ais": finite(value),
            "ais_status": "refused" if problems else "accepted",
            "ais_error": finite(error),
            "ais_chain_error": finite(float(self.again.error_B.square().sum().sqrt()) / n),
            "ais_half": finite(-float(self.once.log_p_B.mean())),
            "change": finite(change),
            "change_error": finite(change_error),
            "images_apart": [int(i) for i in self.images[~(self._change().abs() <= ALLOWED).cpu()]],
            "spread": finite(float(self.again.spread_B.mean())),
            "acceptance": finite(float(self.again.acceptance_B.mean())),
            "gap": finite(self.both.gap if self.both else math.nan),
            "gap_error": finite(self.both.gap_error if self.both else math.nan),
            "problems": problems,
            "advice": self.advice() if problems else [],
        }

    def per_image(self) -> dict[str, np.ndarray]:
        """Return what is stored of each image, [B]."""
        values = {
            "ais": -self.again.log_p_B,
            "ais_half": -self.once.log_p_B,
            "ais_error": self.again.error_B,
            "ais_spread": self.again.spread_B,
            "ais_acceptance": self.again.acceptance_B,
            "image": self.images,
        }
        if self.both is not None:
            values["simulated_gap"] = self.both.gap_B
        return {name: value.cpu().numpy() for name, value in values.items()}

    def _change(self) -> Tensor:
        """-log p(x) at 2N temperatures less that at N."""
        return self.once.log_p_B - self.again.log_p_B

    def problems(self) -> list[str]:
        """Return why the estimate is refused; empty where it is accepted."""
        problems = []
        N, change = self.how.temperatures, float(self._change().mean())
        if not math.isfinite(change):
            return ["log p(x) is not finite: no chain came to where the model allows an image"]
        if abs(change) > ALLOWED:
            problems.append(
                f"{N} and {2 * N} temperatures differ by {abs(change):.2f} nats; {ALLOWED} are "
                "allowed"
            )
        if self.both is None:
            problems.append(
                "the variant overrides log_likelihood and not draw_pixels, so that no images can "
                "be simulated to walk both ways on"
            )
        elif not abs(self.both.gap) < ALLOWED:
            problems.append(
                f"the two ways on simulated images leave a gap of {self.both.gap:.2f} +- "
                f"{self.both.gap_error:.2f} nats; less than {ALLOWED} is allowed"
            )
        return problems

    def advice(self) -> list[str]:
        """Return what to raise, and to how much."""
        gap = abs(self.both.gap) if self.both else 0.0
        error = self.both.gap_error if self.both else 0.0
        excess = max(abs(float(self._change().mean())), gap) / ALLOWED
        if not math.isfinite(excess):
            return ["look at what it generates: glas-bench samples RUN"]
        advice = []
        if excess >= 1:  # the bias falls as 1 / temperatures at best
            more = _round_up(1.2 * excess * self.how.temperatures)
            advice.append(f"raise --temperatures from {self.how.temperatures} to {more}")
            if float(self.again.spread_B.mean()) <= 1:  # and as 1 / chains where they are alike
                more = _round_up(1.2 * excess * self.how.chains)
                advice[0] += f", or --chains from {self.how.chains} to {more}"
        if gap >= ALLOWED > gap - 2 * error:
            n = len(self.images)
            wanted = 2 * n if math.isinf(error) else n * (4 * error / ALLOWED) ** 2
            more = min(self.total, max(_round_up(wanted), n + 1))
            if more > n:
                advice.append(f"raise --images from {n} to {more}: the gap may be chance")
        if self.both is None:
            advice.append("give the variant a draw_pixels that draws from its log_likelihood")
        return advice


def _round_up(value: float) -> int:
    """Return the next number of two digits and zeros."""
    unit = 10 ** max(0, math.floor(math.log10(value)) - 1)
    return int(math.ceil(value / unit) * unit)


# --------------------------------------------------------------------------- text and comparison


def paired(
    folder: SeedFolder, own_key: str, scored: np.ndarray, images: np.ndarray, ais_B: np.ndarray
) -> dict[str, dict[str, Any]]:
    """Return AIS less each estimate of the run's own protocol, on the same images.

    Args:
        folder: the seed's.
        own_key: key of the run's own protocol.
        scored: the test images that it scores, ascending.
        images: those of AIS; images outside `scored` are ignored.
        ais_B: -log p(x) of them.

    Returns:
        By estimate: difference, its standard error over images, and `corrected`: the estimate's
        mean over all its images plus the difference, an estimate of AIS on all of them.
    """
    corrections = {}
    both = np.isin(images, scored)
    there, ais_B = np.searchsorted(scored, images[both]), ais_B[both]
    for name, values in folder.per_image(own_key).items():
        if name in PAIRED_WITH and len(values) == len(scored) and len(there):
            difference, error = mean_and_error(torch.from_numpy(ais_B - values[there]))
            corrections[name] = {
                "difference": finite(difference),
                "error": finite(error),
                "corrected": finite(float(values.mean()) + difference),
            }
    return corrections


def scores_text(rows: Sequence[dict[str, Any]]) -> str:
    """Return the scores of seeds as a table, nats per image, with remarks below it."""
    head = ["seed", "images", "ais", "+-", "2N less N", "gap", "+-", "spread", "acceptance", ""]
    names = ("ais", "ais_error", "change", "gap", "gap_error", "spread", "acceptance")
    table = [
        [f"{row['seed']}", f"{row['images']}", *(number(row[n]) for n in names), row["ais_status"]]
        for row in rows
    ]
    below = [f"seed {row['seed']}: {line}" for row in rows for line in _remarks(row)]
    return "\n".join([*aligned([head, *table]), "", *below])


def _remarks(row: dict[str, Any]) -> list[str]:
    lines = []
    if row["problems"]:
        lines.append(f"refused: {'; '.join(row['problems'])}")
        lines.append(f"to mend it, {'; '.join(row['advice'])}")
    if apart := row["images_apart"]:
        some = ", ".join(map(str, apart[:5])) + " and others" * (len(apart) > 5)
        lines.append(
            f"on {len(apart)} of {row['images']} images the estimates at N and 2N temperatures "
            f"differ by more than {ALLOWED} nats: test images {some}"
        )
    lines += [
        f"ais less {name}: {number(one['difference'])} +- {number(one['error'])} on these images, "
        f"which makes {number(one['corrected'])} on all that the run has scored"
        for name, one in row["paired"].items()
    ]
    seconds = row["seconds_of"]
    real, made = duration(seconds["real"]), duration(seconds["simulated"])
    return [*lines, f"{real} on real images, {made} on simulated ones"]
