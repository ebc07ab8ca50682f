"""The yardstick: one set of named estimators for every variant, in nats per image.

Numbers are on the test split and the last epoch's parameters. `elbo` and `iw` use the variant's own
q, `refit_iw` a common recogniser that is fitted to the frozen decoder (see `yardstick.refit`).
`nll`, the number that is ranked, is the smaller of `iw` and `refit_iw`; which one is chosen on
validation images, once for a trained model, so that nothing is selected on test. Both bound the
same -log p(x) from above. Under soft binarisation the objective, its parts and `elbo` are about
grey targets, as in training; weights are about the frozen binary images.

Shape suffixes: K draws, B images, T steps, Z sample size.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from glas_bench import contract
from glas_bench.config import RunConfig, protocol_key
from glas_bench.core import rollout
from glas_bench.core.train import scoring
from glas_bench.data import Split, Splits, random_subset
from glas_bench.errors import UsageError, unknown
from glas_bench.model import Bound, Glas
from glas_bench.record import Partial, Scores, SeedFolder, finite
from glas_bench.yardstick import refit
from glas_bench.yardstick.diagnostics import diagnose
from glas_bench.yardstick.weights import (
    Images,
    PerImage,
    Tell,
    Tick,
    Weigher,
    Weights,
    as_numbers,
    joined,
    rows_on,
    sweep_sizes,
)
from glas_bench.yardstick.weights import NotFinite as NotFinite
from glas_bench.yardstick.weights import effective_sample_size as effective_sample_size
from glas_bench.yardstick.weights import importance_weighted_nll as importance_weighted_nll

ESTIMATORS = ("iw", "refit")
"""Estimators besides `objective` and `elbo`, which are always computed."""

CHOICE_IMAGES = 250
CHOICE_SAMPLES = 50
"""Validation images (a fifth of the test split's size where that is less) and draws that choose
`nll`; the same images stop a fit early."""

OWN_SAMPLES = 10
"""Draws of a variant's own q on test images where the refitted recogniser was chosen for `nll`."""

DOUBLING_GAIN = 0.1
"""Nats that K draws gain over K/2, above which the estimate is marked: more draws would lower it.

Var(log w) is a poor mark: log w is skewed to the left, and images with a variance of 20 gain .23
nats from K = 100 to 1000.
"""

BUDGET = refit.Budget()

PRECISION = "fp32"
"""Of the products in scoring, whatever the model was trained at: one yardstick for all."""


def protocol(
    config: RunConfig,
    samples: int | None = None,
    images: int | str | None = None,
    estimators: Sequence[str] = ESTIMATORS,
) -> dict[str, Any]:
    """Return the scoring protocol: all that a score depends on besides the trained parameters.

    Args:
        config: the cell.
        samples: K; by default the config's.
        images: size of a seeded random draw from the test split, or `all`; by default the config's.
            A smaller split is scored whole.
        estimators: of `ESTIMATORS`.

    Raises:
        UsageError: an unknown estimator.
    """
    for name in estimators:
        if name not in ESTIMATORS:
            raise unknown("estimator", name, ESTIMATORS)
    made: dict[str, Any] = {
        "estimators": ["elbo", *(name for name in ESTIMATORS if name in estimators)],
        "samples": samples or config.samples,
        "images": images or config.images,
    }
    if "refit" in estimators:
        made["refit"] = _fit_protocol()
        made["choice_samples"] = CHOICE_SAMPLES
        made["own_samples"] = OWN_SAMPLES
    if config.precision != PRECISION:  # else it goes without saying, as in records of old
        made["precision"] = PRECISION
    return made


def _fit_protocol() -> dict[str, Any]:
    return {**BUDGET.as_protocol(), "validation_images": CHOICE_IMAGES}


def fit_name() -> str:
    """Return the name under which a fit is kept beside the scores."""
    return f"refit-{protocol_key(_fit_protocol())}"


def scored_images(total: int, images: int | str) -> torch.Tensor:
    """Return which of `total` test images are scored: a random draw, or `all`.

    A smaller draw lies within a larger one.
    """
    size = total if isinstance(images, str) else images
    return random_subset(total, size, "evaluation")


class Scorer:
    """Scores one trained model on the test split.

    Args:
        model: a trained model, on the device of the data. A refit freezes its parameters.
        config: its cell.
        splits: the data.
        seed: the training seed, from which the scoring streams are derived.
        samples: K; by default the config's.
        images: size of a seeded random draw from the test split; by default the config's.
        estimators: of `ESTIMATORS`.
        rows: how many rows (images x draws) are scored at once; by default as fits the device.
    """

    def __init__(
        self,
        model: Glas,
        config: RunConfig,
        splits: Splits,
        seed: int,
        samples: int | None = None,
        images: int | None = None,
        estimators: Sequence[str] = ESTIMATORS,
        rows: int | None = None,
        tell: Tell = lambda message: None,
    ) -> None:
        self.tell = tell
        self.model = model
        self.config = config.model_copy(update={"precision": PRECISION})
        self.splits = splits
        self.seed = seed
        self.rows = rows or rows_on(splits.test.images.device)
        total = len(splits.test.images)
        if images is not None and images > total:
            raise UsageError(f"--images {images}: give 1 to {total}, the images of the test split")
        self.test = _chosen(splits.test, scored_images(total, images or config.images))
        fifth = max(1, total // 5)  # choosing costs less than scoring
        choice = random_subset(len(splits.validation.images), min(CHOICE_IMAGES, fifth), "choice")
        self.validation = _chosen(splits.validation, choice)
        asked = "all" if images is not None and images >= total else images
        self.protocol = protocol(config, samples, asked, estimators)
        self.key = protocol_key(self.protocol)
        self.samples: int = self.protocol["samples"]
        self.budget = BUDGET.after(config.epochs)
        cls = type(model)
        self.unsound = contract.likelihood_problem(cls, model.settings, model.likelihood.name)
        if self.unsound or contract.ratio_problem(cls, model.settings):
            model.has_density = False  # none that is shown to be one
        self.refits = "refit" in self.protocol["estimators"] and self.unsound is None
        self.seconds: dict[str, float] = {}

    def score(
        self,
        partial: Partial | None = None,
        tick: Tick = lambda stage, done, total: None,
    ) -> tuple[dict[str, Any], PerImage]:
        """Return scores (JSON-ready, null where there is no number) and per-image values.

        Args:
            partial: where half-done work is kept, if anywhere.
            tick: called after each piece of work; it may raise to stop.

        Raises:
            NotFinite: a value is not a number although the parameters are.
        """
        partial = partial or Partial()
        with scoring(self.model, self.config, self.splits):
            with self._timed("elbo"):
                values = self._one_draw()
            with self._timed("diagnostics"), torch.inference_mode():
                diagnosis = diagnose(self.model, self.config, self.splits, self.seed)
            choice: dict[str, Any] = {}
            if self.refits:
                refitted, choice = self._refit(partial, tick)
                values |= refitted
            by_own = not choice or _own_is_better(choice)
            own_samples = self.samples if by_own else min(self.samples, OWN_SAMPLES)
            if self.model.has_density and "iw" in self.protocol["estimators"]:
                with self._timed("iw"):
                    own = self._own("evaluation-iw", "own-q", own_samples)
                    values |= own(self.test, partial, tick)
            scores = self._summary(values, own_samples) | diagnosis.scores
            if self.refits:
                scores |= self._refit_summary(values, choice)
            if self.unsound:  # recon is no number of nats
                scores |= {"failed": None, "failed_reason": self.unsound}
                scores["validation_baseline"] = None
        scores["seconds_by"] = {name: round(value, 3) for name, value in self.seconds.items()}
        scores["seconds"] = round(sum(self.seconds.values()), 3)
        return scores, {**values, **diagnosis.arrays}

    @contextmanager
    def _timed(self, estimator: str) -> Iterator[None]:
        """Add the time that the block takes to the estimator's seconds."""
        started = time.perf_counter()
        yield
        spent = time.perf_counter() - started
        self.seconds[estimator] = self.seconds.get(estimator, 0.0) + spent

    # ---- own q

    @torch.inference_mode()
    def _one_draw(self) -> PerImage:
        """Return the objective with its parts, and the elbo, from one rollout an image."""
        model = self.model
        pixels = self.splits.targets(self.splits.test)
        rows = torch.tensor(self.test.names, device=pixels.device)
        images = Images(pixels[rows], self.test.labels_N, self.test.names)
        chunks = []
        for part in images.split(max(1, self.rows // model.draws)):
            here = images[part]
            noise = here.noise(model, self.seed, "evaluation-elbo", model.draws)
            terms = rollout.rollout(model, here.as_float(), here.as_float(), here.labels_N, noise)
            values = {
                "objective": model.objective(terms),
                "recon": terms.recon.mean(0),
                "charge": terms.charge.mean(0),
                "aux": terms.aux.mean(0),
            }
            if model.has_density:
                values["elbo"] = terms.recon[0] + terms.log_ratio[0]
            chunks.append(as_numbers(values, here))
        return joined(chunks)

    def _own(self, purpose: str, stage: str, samples: int) -> Weigher:
        return Weigher(
            self.seed,
            purpose,
            stage,
            samples,
            prepare=lambda images: lambda part: self.model,
            rows=self.rows,
            log_w=Weights(self.tell),
        )

    # ---- refit

    def fit(self) -> refit.Fit:
        """Return a new fit of a recogniser to the model."""
        return refit.Fit(
            self.model, self.config, self.splits, self.seed, self.validation, self.budget
        )

    def _refit(self, partial: Partial, tick: Tick) -> tuple[PerImage, dict[str, Any]]:
        """Return the refitted recogniser's values on test, and what `nll` is chosen by."""
        fit = self.fit()
        if self.test.pixels_NP.is_cuda:
            refit.fit_stacked([fit], fit_name(), [partial], tick, tell=self.tell)
        recogniser = fit.run(fit_name(), partial, tick)
        self.seconds["refit_fit"] = fit.at.seconds

        def weigher(purpose: str, stage: str, samples: int) -> Weigher:
            return refit.weigher(
                recogniser, self.seed, purpose, stage, samples, self.budget, self.rows, self.tell
            )

        few = min(self.samples, CHOICE_SAMPLES)
        validation: dict[str, float | None] = {"iw": None}
        with self._timed("choice"):
            if self.model.has_density:
                own = self._own("choice-iw", "choice-own-q", few)(self.validation, partial, tick)
                validation["iw"] = float(own["iw"].mean())
            refitted = weigher("choice-refit", "choice-refit", few)(self.validation, partial, tick)
            validation["refit_iw"] = float(refitted["iw"].mean())
        with self._timed("refit_iw"):
            values = weigher("evaluation-refit", "refit", self.samples)(self.test, partial, tick)
        choice = {
            "validation_iw": finite(validation["iw"]),
            "validation_refit_iw": finite(validation["refit_iw"]),
            "refit_steps": fit.best_step,
            "refit_total_steps": fit.total_steps,
            "refit_last_gain": fit.last_gain,
            "refit_converged": fit.converged,
        }
        return {f"refit_{name}": each for name, each in values.items()}, choice

    def _refit_summary(self, values: PerImage, choice: dict[str, Any]) -> dict[str, Any]:
        """Return the scores of the refit, and `nll`; adds `nll` to the per-image values."""
        by_own = "iw" in values and _own_is_better(choice)
        by_own = by_own and bool(np.isfinite(values["iw"]).all())  # else q leaves the prior
        chosen, other = ("iw", "refit_iw") if by_own else ("refit_iw", "iw")
        values["nll"] = values[chosen]
        prefix = "" if by_own else "refit_"
        scores = {
            **choice,
            "refit_iw": _mean(values["refit_iw"])[0],
            "refit_iw_status": _mean(values["refit_iw"])[1],
            "refit_elbo": _mean(values["refit_iw_1"])[0],
            "refit_iw_sweep": _sweep(values, "refit_", self.samples),
            **_weight_health(values, self.samples, "refit_"),
            "validation_nll": choice["validation_iw" if by_own else "validation_refit_iw"],
            "nll": _mean(values["nll"])[0],
            "nll_from": chosen,
            "nll_bound_only": _weight_health(values, self.samples, prefix)[f"{prefix}bound_only"],
        }
        if (lower := _mean(values.get(other))[0]) is not None and scores["nll"] is not None:
            scores["nll_bound_only"] |= scores["nll"] - lower > DOUBLING_GAIN
        if scores["nll"] is not None:
            scores |= self.model.likelihood.rate(scores["nll"], self.model.pixels)
        bounds = self._bound().holds is True
        if not bounds and self.splits.binarisation != "soft":  # whose objective is of grey images
            scores["objective_gap"] = finite(float((values["nll"] - values["objective"]).mean()))
        return scores

    # ---- the summary

    def _bound(self) -> Bound:
        return contract.bound(type(self.model), self.model.settings, self.model.likelihood.name)

    def _summary(self, values: PerImage, own_samples: int) -> dict[str, Any]:
        bound = self._bound()
        train = self.splits.train.images
        scores: dict[str, Any] = {
            "protocol": self.protocol,
            "split": "test",
            "images": len(values["recon"]),
            "samples": self.samples,
            "bounds_nll": bound.holds,
            "bound_reason": bound.reason,
            **self.model.likelihood.calibration(train, self.test.pixels_NP),
        }
        for name in ("objective", "recon", "charge", "aux"):
            scores[name] = _mean(values[name])[0]
        for name in ("elbo", "iw"):
            scores[name], scores[f"{name}_status"] = _mean(values.get(name))
        scores["iw_samples"] = own_samples if "iw" in values else None
        scores["iw_sweep"] = _sweep(values, "", own_samples)
        scores |= {"refit_iw": None, "nll": None, "ais": None, "objective_gap": None}
        return scores | _weight_health(values, own_samples)


def refit_stacked(
    scorers: Sequence[Scorer],
    folders: Sequence[SeedFolder],
    tick: Tick = lambda stage, done, total: None,
    every: float = 30,
    *,
    tell: Tell = lambda message: None,
    ways: Sequence[str] | None = None,
) -> None:
    """Fit the recognisers of one cell's seeds in one program, for `score_into` to use.

    Seeds that have their scores, or are scored without `refit`, are skipped.
    """
    waiting = [
        (scorer, Partial(folder.path / "eval", scorer.key, every))
        for scorer, folder in zip(scorers, folders, strict=True)
        if scorer.refits and folder.scores(scorer.key) is None
    ]
    if not waiting:
        return
    with ExitStack() as modes:
        for scorer, _ in waiting:
            modes.enter_context(scoring(scorer.model, scorer.config, scorer.splits))
        refit.fit_stacked(
            [scorer.fit() for scorer, _ in waiting],
            fit_name(),
            [partial for _, partial in waiting],
            tick,
            tell=tell,
            ways=ways,
        )


def score_into(
    folder: SeedFolder,
    scorer: Scorer,
    tick: Tick = lambda stage, done, total: None,
    every: float = 30,
) -> Scores:
    """Score into a seed's folder, or read back the scores that are there; return them.

    Half-done work is kept beside them, at most every `every` seconds, and continued later.

    Raises:
        NotFinite: a value is not a number although the parameters are.
        RunError: the folder cannot be written.
    """
    if (stored := folder.scores(scorer.key)) is not None:
        return stored
    partial = Partial(folder.path / "eval", scorer.key, every)
    scores, per_image = scorer.score(partial, tick)
    base, gain = scores["validation_baseline"], scorer.splits.likelihood.gain
    most = None if base is None else base - gain
    scores["escape_epoch"] = escape_epoch(folder.metrics(), most)
    folder.save_scores(scorer.key, scores, per_image)
    partial.remove()
    return folder.scores(scorer.key) or {}


def _chosen(split: Split, rows: torch.Tensor) -> Images:
    """Return some of a split's frozen binary images."""
    there = rows.to(split.images.device)
    labels = None if split.labels is None else split.labels[there]
    return Images(split.images[there], labels, tuple(rows.tolist()))


def _mean(values: np.ndarray | None) -> tuple[float | None, str]:
    """Return the mean over images and its status: finite, infinite or undefined."""
    if values is None:
        return None, "undefined"
    mean = float(values.mean())
    return (mean, "finite") if math.isfinite(mean) else (None, "infinite")


def _sweep(values: Mapping[str, np.ndarray], prefix: str, samples: int) -> dict[str, float | None]:
    """Return the mean over images by number of weights."""
    return {str(size): _mean(values.get(f"{prefix}iw_{size}"))[0] for size in sweep_sizes(samples)}


def _weight_health(
    values: Mapping[str, np.ndarray], samples: int, prefix: str = ""
) -> dict[str, Any]:
    """Return how reliable the weights are: v, ESS, what the last draws gained, and the mark."""
    names = ("v_mean", "doubling_gain", "ess_mean", "ess_median", "bound_only")
    if f"{prefix}v" not in values:
        return dict.fromkeys(prefix + name for name in names)
    v, gain, ess = _mean(values[f"{prefix}v"])[0], None, values[f"{prefix}ess"]
    if samples == 1:  # a weight alone has no spread
        v = None
    else:
        half, full = (_mean(values[f"{prefix}iw_{k}"])[0] for k in (samples // 2, samples))
        gain = None if half is None or full is None else half - full
    marked = gain is None or gain > DOUBLING_GAIN
    health = (v, gain, float(ess.mean()), float(np.median(ess)), marked)
    return dict(zip((prefix + name for name in names), health, strict=True))


def _own_is_better(choice: Mapping[str, Any]) -> bool:
    """Return whether the variant's own q gives the lower bound on the choosing images."""
    own, fitted = choice["validation_iw"], choice["validation_refit_iw"]
    return own is not None and (fitted is None or own < fitted)


def escape_epoch(metrics: Sequence[Mapping[str, Any]], most: float | None) -> int | None:
    """Return the first epoch from which the model paints more than the mean image, or None.

    Args:
        metrics: the lines of `metrics.jsonl`, one per epoch. Those of the last phase count: what an
            earlier one trains may be drawn again after it.
        most: nats per image of training recon: 20 below the pixel-wise Bernoulli on validation
            images, or the like of another likelihood; None where there is no such number.
    """
    if most is None:
        return None
    last = [row for row in metrics if row.get("phase") == metrics[-1].get("phase")]
    painted = [row for row in last if row["validation_kind"] != "none"]
    away = (row["epoch"] for row in painted if row["recon"] is not None and row["recon"] <= most)
    return min(away, default=None)
