"""What a user reads: names cut to a terminal, one line for each mistake, where an error was."""

from __future__ import annotations

import pytest

from glas_bench import config, registry, text
from glas_bench.environment import memory_bytes
from glas_bench.errors import UsageError
from glas_bench.runs.cells import check_memory
from glas_bench.study import by_hand
from glas_bench.tracking.address import error_line

NAMES = [
    *(f"cauchy filter_size={size} grid={grid} rate=0.001" for size in (1, 2) for grid in "ab"),
    "a" * 30 + "1" + "b" * 30,
    "a" * 30 + "2" + "b" * 30,
    "vae",
]


@pytest.mark.parametrize("width", [12, 20, 30, 80])
def test_no_two_names_look_alike(width: int) -> None:
    short = text.shortened(NAMES, width)
    assert list(short) == NAMES
    assert len(set(short.values())) == len(NAMES)
    assert all(len(each) <= width for each in short.values())


@pytest.mark.parametrize("width", [40, 60, 80, None])
def test_a_table_fits_its_screen(width: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "screen_width", lambda: width)
    rows = [["cell", "status", "nll", "elbo"], *([n, "complete", "1.00", "2.0"] for n in NAMES)]
    lines = text.aligned(rows, ["elbo"])
    assert max(map(len, lines)) <= (width or 100)
    assert len(set(lines[2:])) == len(NAMES)
    assert ("elbo" in lines[0]) == (width is None)


def test_words_and_numbers() -> None:
    assert (text.count(1, "epoch"), text.count(2, "image")) == ("1 epoch", "2 images")
    assert (text.p_value(0.0), text.p_value(0.0123)) == ("p < 1e-16", "p = 0.012")


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        ("0-100000", "more than 1000 seeds"),
        ("0-900,2000-2900", "more than 1000 seeds"),
        (str(2**64), "a seed is at most 4294967295"),
        ("9" * 5000, "a seed is at most"),
    ],
)
def test_seeds_beyond_reason(seeds: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        config.parse_seeds(seeds)


@pytest.mark.parametrize("value", ["all,200", 0, 1.5])
def test_a_value_that_fits_no_type_is_one_sentence(value: object) -> None:
    with pytest.raises(UsageError) as caught:
        config.resolve(registry.find("vae"), overrides={"images": value})
    assert str(caught.value).startswith("images: Input should be ")
    assert str(caught.value).endswith(f" or 'all', got {value!r}.")


def test_more_draws_than_a_signal_could_stop_are_refused() -> None:
    with pytest.raises(UsageError, match="samples: Input should be less than or equal to 100000"):
        config.resolve(registry.find("vae"), overrides={"samples": 10**8})


@pytest.mark.parametrize(
    ("variant", "sizes"),
    [
        ("vae", {"hidden": 10_000_000}),
        ("cauchy", {"latent_size": 10_000_000}),
        ("cauchy", {"steps": 10_000_000_000}),
        ("vae", {"sample_size": 10**12}),
    ],
)
def test_memory_is_refused_before_it_is_taken(variant: str, sizes: dict[str, int]) -> None:
    (cell,) = by_hand(registry.find(variant), None, [0], preset="smoke", overrides=sizes)
    with pytest.raises(UsageError, match=r"at least [\d.]+ GiB of memory, and cpu has .* lower"):
        check_memory(cell, "cpu")


def test_every_shipped_variant_fits() -> None:
    assert memory_bytes() > 2**28
    for name in registry.names():
        (cell,) = by_hand(
            registry.find(name), None, [0], preset="paper", overrides={"dataset": "omniglot"}
        )
        check_memory(cell, "cpu")


def test_a_store_that_does_not_answer_is_called_by_its_name() -> None:
    """What else may be wrong with one is in test_tracking, with real stores."""
    words = "API request to http://u:p@host:5/api failed with exception Connection refused"
    assert error_line(Exception(words)) == (
        "no MLflow server answers at http://***@host:5 (no connection)"
    )
