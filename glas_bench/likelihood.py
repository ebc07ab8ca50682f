"""p(x|z) of a canvas: what its numbers mean belongs to the data, not to the variant.

A data set names one of `LIKELIHOODS`, and the core gives it to the model. x has P numbers, each 0
or 1 (a Bernoulli likelihood also takes targets between).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from glas_bench.text import bits_per_character


class Likelihood(Protocol):
    """p(x | canvas o), with B rows of P numbers."""

    name: ClassVar[str]
    """In `LIKELIHOODS`."""
    unit: ClassVar[str]
    """What one x is: "image" or "line"; nats are per unit."""
    baseline: ClassVar[str]
    """The distribution of `baseline_nll`."""
    gain: ClassVar[float]
    """Nats by which a model that can reconstruct beats the baseline."""

    def log_prob(self, canvas: Tensor, target: Tensor) -> Tensor:
        """Return log p(target | canvas), [B] nats."""

    def mean(self, canvas: Tensor) -> Tensor:
        """Return E[x | canvas], [B, P]."""

    def draw(self, canvas: Tensor, noise: Tensor) -> Tensor:
        """Map standard-normal noise [B, P] to a draw x [B, P]."""

    def baseline_nll(self, train: Tensor, x: Tensor) -> Tensor:
        """Return the nats of x [B, P] under the means of train [N, P], smoothed by one: [B]."""

    def calibration(self, train: Tensor, x: Tensor) -> dict[str, float]:
        """Return the mean nats of x [B, P] under models of train without latents, by score."""
        del train, x
        return {}

    def rate(self, nats: float, pixels: int) -> dict[str, float]:
        """Return nats of an x of P = `pixels` numbers in the field's other unit, by score."""
        del nats, pixels
        return {}

    def outcomes(self, pixels: int) -> Tensor:
        """Return every x of so few numbers, float64 [N, pixels]."""


@dataclass(frozen=True)
class Bernoulli(Likelihood):
    """Binary pixels with logits o."""

    name: ClassVar[str] = "bernoulli"
    unit: ClassVar[str] = "image"
    baseline: ClassVar[str] = "pixel-wise Bernoulli"
    gain: ClassVar[float] = 20.0

    def log_prob(self, canvas: Tensor, target: Tensor) -> Tensor:
        """Return log p(target | canvas), [B] nats; targets between 0 and 1 are allowed."""
        return -F.binary_cross_entropy_with_logits(canvas, target, reduction="none").sum(-1)

    def mean(self, canvas: Tensor) -> Tensor:
        """Return sigmoid(canvas), [B, P]."""
        return torch.sigmoid(canvas)

    def draw(self, canvas: Tensor, noise: Tensor) -> Tensor:
        """Return 1 where Phi(noise) lies under the chance of ink, [B, P]."""
        is_on: Tensor = torch.special.ndtr(noise) < torch.sigmoid(canvas)
        return is_on.to(canvas.dtype)

    def baseline_nll(self, train: Tensor, x: Tensor) -> Tensor:
        """Return nats, [B]; the chance of ink is (sum + 1) / (n + 2) over n training images."""
        ink_P = (train.sum(0, dtype=torch.float64) + 1) / (len(train) + 2)
        log_odds_P = torch.log(ink_P) - torch.log1p(-ink_P)
        return -(x.double() @ log_odds_P + torch.log1p(-ink_P).sum())

    def outcomes(self, pixels: int) -> Tensor:
        """Return every binary image, float64 [2^pixels, pixels]."""
        return torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * pixels)


@dataclass(frozen=True)
class Categorical(Likelihood):
    """One symbol of an alphabet at each place, one-hot, place by place; independent given o.

    P is places x symbols. The logits of a place are its part of the canvas.
    """

    symbols: int = 28

    name: ClassVar[str] = "categorical"
    unit: ClassVar[str] = "line"
    baseline: ClassVar[str] = "place-wise unigram"
    gain: ClassVar[float] = 8.0

    def places(self, x: Tensor) -> Tensor:
        """Return x [..., P] as [..., places, symbols]."""
        return x.reshape(*x.shape[:-1], -1, self.symbols)

    def log_prob(self, canvas: Tensor, target: Tensor) -> Tensor:
        log_p = F.log_softmax(self.places(canvas), -1)
        return (log_p * self.places(target)).sum((-2, -1))

    def mean(self, canvas: Tensor) -> Tensor:
        """Return the probability of every symbol at every place, [B, P]."""
        return F.softmax(self.places(canvas), -1).flatten(-2)

    def draw(self, canvas: Tensor, noise: Tensor) -> Tensor:
        """Draw by the Gumbel-max trick, with Gumbel noise -log(-log Phi(noise)), [B, P]."""
        gumbel = -torch.log(-torch.special.log_ndtr(noise))
        best = self.places(canvas + gumbel).argmax(-1)
        return F.one_hot(best, self.symbols).flatten(-2).to(canvas.dtype)

    def baseline_nll(self, train: Tensor, x: Tensor) -> Tensor:
        """Return nats, [B]; p(symbol | place) is (count + 1) / (n + symbols) over n lines."""
        count_P = train.sum(0, dtype=torch.float64)
        return -(x.double() @ torch.log((count_P + 1) / (len(train) + self.symbols)))

    def outcomes(self, pixels: int) -> Tensor:
        """Return every line, float64 [symbols^places, pixels]."""
        one = torch.arange(self.symbols)
        lines = torch.cartesian_prod(*[one] * (pixels // self.symbols))
        return F.one_hot(lines, self.symbols).flatten(1).double()

    def bigram_nll(self, train: Tensor, x: Tensor) -> Tensor:
        """Return the nats of lines x [B, P] under p(first symbol) and p(next symbol | symbol), [B].

        Frequencies of train [N, P], one added to each count.
        """
        S, known = self.symbols, self.places(train).argmax(-1)
        first = torch.bincount(known[:, 0], minlength=S).double() + 1
        pairs = torch.bincount((known[:, :-1] * S + known[:, 1:]).flatten(), minlength=S * S)
        after = pairs.reshape(S, S).double() + 1
        log_first = torch.log(first / first.sum())
        log_after = torch.log(after / after.sum(1, keepdim=True))
        lines = self.places(x).argmax(-1)
        return -(log_first[lines[:, 0]] + log_after[lines[:, :-1], lines[:, 1:]].sum(1))

    def calibration(self, train: Tensor, x: Tensor) -> dict[str, float]:
        """Return `unigram_nll`, by place, and `bigram_nll`, nats per line."""
        return {
            "unigram_nll": float(self.baseline_nll(train, x).mean()),
            "bigram_nll": float(self.bigram_nll(train, x).mean()),
        }

    def rate(self, nats: float, pixels: int) -> dict[str, float]:
        """Return `bits_per_character`."""
        return {"bits_per_character": bits_per_character(nats, pixels // self.symbols)}


LIKELIHOODS: dict[str, Likelihood] = {each.name: each for each in (Bernoulli(), Categorical())}
