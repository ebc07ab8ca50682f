"""The yardstick: one set of named estimators for every variant, in nats per image.

Numbers are on the test split and the last epoch's parameters. Weights use the sampled log ratio
log q/p of whole trajectories, never the analytic KL. Noise is addressed by (seed, estimator,
image), so neither chunk size nor a subset changes what an image is scored with, and the first k of
K draws are the same draws. Under soft binarisation the objective, its parts and `elbo` are about
grey targets, as in training; `iw` is about the frozen binary images.

Burda et al. 2016 (arXiv 1509.00519), section 3: importance weighting. Shape suffixes: K draws,
B images, T steps, Z sample size.

Chunks, noise and summary stand beside the estimators, since each must not change the numbers.
"""

from __future__ import annotations

import math
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glas_bench import rollout, streams
from glas_bench.config import RunConfig, protocol_key
from glas_bench.data import Splits, random_subset
from glas_bench.errors import GlasBenchError
from glas_bench.model import Glas
from glas_bench.train import scoring

ROWS = 1024
"""Rows (images x draws) that are scored at once."""

NOISE_BLOCK = 100
"""Draws of an image that share a stream: the first k of K draws do not depend on K."""

SWEEP = (1, 5, 10, 50, 100, 500, 1000, 5000)
WIDE = 10.0
"""Var(log w) above which K weights leave more than a fraction of a nat of bias."""

PerImage = dict[str, np.ndarray]


class NotFinite(GlasBenchError):  # noqa: N818 - a finding
    """A score that is not a number: the seed is reported as failed, never as a number."""


def importance_weighted_nll(log_w_KB: Tensor) -> Tensor:
    """Return -log mean_k w_k, [B] nats: an upper bound of -log p(x) in expectation.

    Args:
        log_w_KB: log importance weights log p(x, z) - log q(z|x); -inf where z leaves p's support.
    """
    return math.log(log_w_KB.shape[0]) - torch.logsumexp(log_w_KB, 0)


def effective_sample_size(log_w_KB: Tensor) -> Tensor:
    """Return (sum w)^2 / sum w^2, [B] in [1, K]; 0 where every weight is 0 (Kong 1992)."""
    twice = 2 * torch.logsumexp(log_w_KB, 0) - torch.logsumexp(2 * log_w_KB, 0)
    return torch.where(torch.isfinite(twice), twice.exp(), torch.zeros_like(twice))


def protocol(
    config: RunConfig, samples: int | None = None, images: int | None = None
) -> dict[str, Any]:
    """Return the scoring protocol: all that makes a score besides the trained parameters.

    Args:
        config: the cell.
        samples: K; the config's own unless given.
        images: size of a seeded random draw from the test split; all of it unless given.
    """
    return {
        "estimators": ["elbo", "iw"],
        "samples": samples or config.samples,
        "images": images or "all",
    }


class Progress:
    """Importance weights of the images done so far, so that a stopped scoring goes on.

    Args:
        path: where they are kept; written at most every `every` seconds.
        save: writes a file atomically (`record.write_atomically`).
    """

    def __init__(
        self, path: Path, save: Callable[[Path, Callable[[Any], object]], None], every: float = 30
    ) -> None:
        self.path = path
        self.save = save
        self.every = every
        self.saved_at = time.monotonic()

    def load(self, key: str) -> PerImage:
        """Return the values stored under this protocol, or nothing."""
        try:
            with open(self.path, "rb") as file, np.load(file, allow_pickle=False) as stored:
                values = {name: stored[name] for name in stored.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return {}
        return values if str(values.pop("protocol", "")) == key else {}

    def store(self, key: str, chunks: list[PerImage]) -> None:
        """Keep the values of the images scored so far, if it is time to."""
        if time.monotonic() - self.saved_at >= self.every:
            values = {**_joined(chunks), "protocol": np.array(key)}
            self.save(self.path, lambda file: np.savez(file, **values))  # type: ignore[arg-type]
            self.saved_at = time.monotonic()

    def remove(self) -> None:
        """Remove what was kept, once the scores are stored."""
        self.path.unlink(missing_ok=True)


class Scorer:
    """Scores one trained model on the test split.

    Args:
        model: a trained model, on the device of the data.
        config: its cell.
        splits: the data.
        seed: the training seed, from which the scoring streams are derived.
        samples: K; the config's own unless given.
        images: size of a seeded random draw from the test split; all of it unless given.
        rows: how many rows (images x draws) are scored at once.
    """

    def __init__(
        self,
        model: Glas,
        config: RunConfig,
        splits: Splits,
        seed: int,
        samples: int | None = None,
        images: int | None = None,
        rows: int = ROWS,
    ) -> None:
        self.model = model
        self.config = config
        self.splits = splits
        self.seed = seed
        total = len(splits.test.images)
        self.images = random_subset(total, min(images or total, total), "evaluation")
        self.protocol = protocol(config, samples, images if len(self.images) < total else None)
        self.key = protocol_key(self.protocol)
        self.samples: int = self.protocol["samples"]
        self.rows = rows

    def score(
        self,
        progress: Progress | None = None,
        tick: Callable[[int, int], None] = lambda done, total: None,
    ) -> tuple[dict[str, Any], PerImage]:
        """Return scores (JSON-ready, null where there is no number) and per-image values.

        Args:
            progress: where half-done work is kept, if anywhere.
            tick: called after each chunk with images done and in all; it may raise to stop.

        Raises:
            NotFinite: a value is not a number although the parameters are.
        """
        total = len(self.images)
        with torch.inference_mode(), scoring(self.model, self.config, self.splits):
            at_once = torch.split(torch.arange(total), max(1, self.rows // self.model.draws))
            found = _joined([self._images(self._one_draw, rows) for rows in at_once])
            if self.model.has_density:
                found |= self._all_weights(total, progress, tick)
        return self._summary(found), found

    def _all_weights(
        self, total: int, progress: Progress | None, tick: Callable[[int, int], None]
    ) -> PerImage:
        stored = progress.load(self.key) if progress else {}
        chunks = [stored] if stored else []
        start = len(stored["iw"]) if stored else 0
        at_once = max(1, self.rows // self.samples)
        for rows in torch.split(torch.arange(start, total), at_once) if start < total else ():
            chunks.append(self._images(self._weights, rows))
            if progress:
                progress.store(self.key, chunks)
            tick(int(rows[-1]) + 1, total)
        return _joined(chunks)

    # ---- one chunk of images

    def _images(
        self,
        estimate: Callable[[Tensor, Tensor | None, Tensor], dict[str, Tensor]],
        rows: Tensor,
    ) -> PerImage:
        split = self.splits.test
        indices = self.images[rows]
        there = indices.to(split.images.device)
        pixels = self.splits.targets(split) if estimate == self._one_draw else split.images
        x = pixels[there].to(torch.float32)
        found = estimate(x, None if split.labels is None else split.labels[there], indices)
        values = {name: value.double().cpu().numpy() for name, value in found.items()}
        for name, value in values.items():
            if np.isnan(value).any():
                raise NotFinite(f"{name} of test image {int(indices[0])} or after is not a number")
        return values

    def _one_draw(self, x: Tensor, labels: Tensor | None, indices: Tensor) -> dict[str, Tensor]:
        """Return the objective with its parts, and the elbo, from one rollout an image."""
        noise = self._noise("elbo", indices, self.model.draws, 0)
        terms = rollout.rollout(self.model, x, x, labels, noise)
        found = {
            "objective": self.model.objective(terms),
            "recon": terms.recon.mean(0),
            "charge": terms.charge.mean(0),
            "aux": terms.aux.mean(0),
        }
        if self.model.has_density:
            found["elbo"] = terms.recon[0] + terms.log_ratio[0]
        return found

    def _weights(self, x: Tensor, labels: Tensor | None, indices: Tensor) -> dict[str, Tensor]:
        """Return iw for every K of the sweep, the variance of log w and the ESS."""
        blocks = []
        for block in range(math.ceil(self.samples / NOISE_BLOCK)):
            draws = min(NOISE_BLOCK, self.samples - block * NOISE_BLOCK)
            noise = self._noise("iw", indices, NOISE_BLOCK, block)[:, :draws]
            blocks.append(rollout.rollout(self.model, x, x, labels, noise).log_w)
        log_w_KB = torch.cat(blocks).double()
        found = {
            "iw": importance_weighted_nll(log_w_KB),
            "v": variance(log_w_KB),
            "ess": effective_sample_size(log_w_KB),
        }
        for size in sweep_sizes(self.samples):
            found[f"iw_{size}"] = _grouped(log_w_KB, size)
        return found

    def _noise(self, estimator: str, indices: Tensor, draws: int, block: int) -> Tensor:
        """Return noise [T, draws, B, Z]: a stream for every image and block of draws."""
        shape = (draws, self.model.steps, self.model.noise_size)
        keys = streams.keys(self.seed, f"evaluation-{estimator}", indices.tolist())
        device = self.splits.test.images.device
        noise = streams.normals(keys.to(device), math.prod(shape), block)
        return noise.reshape(-1, *shape).permute(2, 1, 0, 3)

    # ---- the summary

    def _summary(self, found: PerImage) -> dict[str, Any]:
        bound = self.model.bound(self.model.settings)
        scores: dict[str, Any] = {
            "protocol": self.protocol,
            "split": "test",
            "images": len(found["recon"]),
            "samples": self.samples,
            "bounds_nll": bound.holds,
            "bound_reason": bound.reason,
        }
        for name in ("objective", "recon", "charge", "aux"):
            scores[name] = _mean(found[name])[0]
        for name in ("elbo", "iw"):
            scores[name], scores[f"{name}_status"] = _mean(found.get(name))
        scores["iw_sweep"] = {
            str(size): _mean(found.get(f"iw_{size}"))[0] for size in sweep_sizes(self.samples)
        }
        scores |= {"refit_iw": None, "nll": None, "ais": None}
        return scores | _weight_health(found)


def _joined(chunks: list[PerImage]) -> PerImage:
    """Join the values of consecutive chunks of images."""
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def sweep_sizes(samples: int) -> list[int]:
    """Return the numbers of weights that are reported beside K itself."""
    return sorted({size for size in SWEEP if size < samples} | {samples})


def variance(log_w_KB: Tensor) -> Tensor:
    """Return v = Var(log w) over draws, [B]; inf where a weight is 0, 0 for a single draw."""
    if log_w_KB.shape[0] == 1:
        return torch.zeros_like(log_w_KB[0])
    v = log_w_KB.var(0)
    return torch.where(torch.isfinite(log_w_KB).all(0), v, torch.full_like(v, math.inf))


def _grouped(log_w_KB: Tensor, size: int) -> Tensor:
    """Return the estimate with `size` weights, averaged over disjoint groups of the K draws."""
    groups = log_w_KB.shape[0] // size
    cut = log_w_KB[: groups * size].reshape(groups, size, -1)
    return torch.stack([importance_weighted_nll(group) for group in cut]).mean(0)


def _mean(values: np.ndarray | None) -> tuple[float | None, str]:
    """Return the mean over images and its status: finite, infinite or undefined."""
    if values is None:
        return None, "undefined"
    mean = float(values.mean())
    return (mean, "finite") if math.isfinite(mean) else (None, "infinite")


def _weight_health(found: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return how far the weights can be trusted: v, ESS, and whether iw is a bound only."""
    if "v" not in found:
        names = ("v_mean", "v_over_10_share", "ess_mean", "ess_median", "bound_only")
        return dict.fromkeys(names)
    share = float((found["v"] > WIDE).mean())
    return {
        "v_mean": _mean(found["v"])[0],
        "v_over_10_share": share,
        "ess_mean": float(found["ess"].mean()),
        "ess_median": float(np.median(found["ess"])),
        "bound_only": share > 0.05,
    }
