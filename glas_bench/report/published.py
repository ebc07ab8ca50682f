"""Numbers of others, with what they are: nats per image, as their sources give them.

The original's README gave four versions of its table (commits below); its `eval.py` averages the
training loss over one draw and takes the `train` part unless told otherwise, and no configuration
says which part the README's numbers are of. All of them are therefore marked unverified.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

ESTIMATOR = "as its file says; split unverified"
"""Of a number that a variant's file declares; what it measures is in that file's docstring."""

_GLAS = "GLAS README, commit"
_LOSS = "single-sample -ELBO, which `eval.py` averages"
_NO_BOUND = "recon + ln(1 + m^2), which bounds nothing"
_GREY = "; grey targets, not binary ones"
_SPLIT = "not established"


class Number(NamedTuple):
    """A published number."""

    dataset: str
    nats: float
    estimator: str
    split: str
    source: str
    verified: bool
    steps: int | None = 64
    """T, where it is known."""
    bound: bool = False
    """Whether it is given as an upper bound of the true value."""
    remark: str = ""
    grey: bool = False
    """Whether its targets are grey: of ours, only those of `soft` are."""
    is_elbo: bool = True
    """Whether it is what we call elbo; if not, it is what we call objective."""
    epochs: int | None = 250
    """Of the original's code; None where the source is another."""
    settings: Mapping[str, str] = {}
    """What of it is not the variant's default, as a run's parameters are written."""

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return self._asdict()


_BY_VARIANT: dict[str, tuple[Number, ...]] = {
    "cauchy": (
        Number("mnist-static", 89.67, _LOSS, _SPLIT, f"{_GLAS} 004c76f (2017)", False),
        Number(
            *("mnist-static", 92.07, _LOSS, _SPLIT, f"{_GLAS} 828ba56 (20 March 2017)", False),
            remark="the KL's part 22.24; replaced by 89.67 a week later",
        ),
        Number(
            *("omniglot", 119.63, _LOSS + _GREY, _SPLIT, f"{_GLAS} 004c76f (2017)", False),
            grey=True,
        ),
        Number(
            *("omniglot", 125.77, _LOSS + _GREY, _SPLIT, f"{_GLAS} 828ba56 (20 March 2017)"),
            verified=False,
            steps=16,
            remark="the KL's part 20.88",
            grey=True,
        ),
    ),
    "min-chi2": (
        Number(
            *("mnist-static", 82.07, _NO_BOUND, _SPLIT, f"{_GLAS} 1001bd3 (27 March 2017)", False),
            remark="charge 13.35; withdrawn; charged honestly at least 105.1 (computed here)",
            is_elbo=False,
        ),
        Number(
            *("mnist-static", 89.09, _NO_BOUND, _SPLIT, f"{_GLAS} 828ba56 (20 March 2017)", False),
            remark="charge 10.88; withdrawn",
            is_elbo=False,
        ),
        Number(
            *("omniglot", 112.43, _NO_BOUND + _GREY, _SPLIT, f"{_GLAS} 2b70636 (26 March 2017)"),
            verified=False,
            remark="charge 14.59; withdrawn; charged honestly at least 137.6 (computed here)",
            grey=True,
            is_elbo=False,
        ),
        Number(
            *("omniglot", 137.97, _NO_BOUND + _GREY, _SPLIT, f"{_GLAS} 828ba56 (20 March 2017)"),
            verified=False,
            steps=16,
            remark="charge 7.92; withdrawn",
            grey=True,
            is_elbo=False,
        ),
    ),
    "draw": (
        Number(
            *("mnist-static", 80.97, "variational bound", "test", "Chen et al., arXiv 1611.02731"),
            verified=True,
            bound=True,
            epochs=None,
            remark="quoted there",
        ),
        Number(
            *("omniglot", 96.50, "variational bound", "test", "Chen et al., arXiv 1611.02731"),
            verified=True,
            bound=True,
            epochs=None,
            remark="quoted there",
        ),
    ),
    "no-attention": (
        Number(
            *(
                "mnist-static",
                87.40,
                "variational bound",
                "test",
                "Rolfe, arXiv 1609.02200",
            ),
            verified=False,
            bound=True,
            epochs=None,
            settings={"sample_size": "100"},
            remark="given there as DRAW's; that this is DRAW without attention is unverified",
        ),
    ),
}


def of_variant(variant: str, declared: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return what was published of a variant: what is known here, else what its file declares.

    Args:
        variant: its name.
        declared: its class's `published`, nats by data set.
    """
    known = list(_BY_VARIANT.get(variant, ()))
    there = {(each.dataset, each.nats) for each in known}
    known += [
        Number(dataset, nats, ESTIMATOR, _SPLIT, "the variant's file", False, None, epochs=None)
        for dataset, nats in declared.items()
        if (dataset, nats) not in there
    ]
    return [each.as_json() for each in known]
