"""A cell's seeds in one process, stacked: their folders hold what each alone would leave there."""

import pytest
import torch
from conftest import timeless
from test_stacked import OneExplodes
from test_train import TINY, local, tiny_splits

from glas_bench import evaluate, registry, signals, study
from glas_bench.record import RunFolder
from glas_bench.runs import pictures, stacked_seeds
from glas_bench.runs.seed import note_failure, open_seed, run_seed
from glas_bench.yardstick import refit

EPOCHS = 3


def cell_of(variant=None, **overrides):
    values = {**TINY, "epochs": EPOCHS, "samples": 5, **overrides}
    (cell,) = study.by_hand(
        variant or registry.find("cauchy"), None, [], preset="smoke", overrides=values
    )
    return cell


def run(folder, seeds, variant=None, splits=None, **about):
    events = []
    found = stacked_seeds.run_stacked(
        cell_of(variant),
        [folder.seed(seed) for seed in seeds],
        splits or tiny_splits(),
        lambda seed, event: events.append((seed, event)),
        **about,
    )
    return found, events


def run_alone(folder, seed, variant=None):
    return run_seed(cell_of(variant), folder.seed(seed), tiny_splits(), lambda event: None)


def assert_same(one, other, seeds=(0, 1, 2)):
    for seed in seeds:
        rows = [map(timeless, each.seed(seed).metrics()) for each in (one, other)]
        for got, want in zip(*rows, strict=True):
            assert got.keys() == want.keys()
            for key, value in want.items():
                close = pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
                assert got[key] == close, key
        scores = [next(iter(f.seed(seed).all_scores().values())) for f in (one, other)]
        for name in ("iw", "refit_iw", "validation_refit_iw", "nll"):
            assert scores[0][name] == pytest.approx(scores[1][name], rel=1e-4), name
        assert scores[0]["refit_steps"] == scores[1]["refit_steps"] > 0
        statuses = [f.seed(seed).status() for f in (one, other)]
        assert statuses[0]["status"] == statuses[1]["status"] == "complete"
        assert statuses[0]["step"] == statuses[1]["step"]
        assert statuses[0]["peak_memory_bytes"] > 2**20


@pytest.fixture
def folders(tmp_path):
    return [RunFolder(tmp_path / name, "cauchy", "0" * 12) for name in ("stacked", "alone")]


@pytest.fixture
def alone(folders):
    for seed in (0, 1, 2):
        assert run_alone(folders[1], seed) == "complete"
    return folders[1]


def test_every_seed_leaves_what_it_would_alone(folders, alone):
    found, events = run(folders[0], [0, 1, 2])
    assert found == {seed: {"status": "complete"} for seed in (0, 1, 2)}
    assert_same(folders[0], alone)
    for seed in (0, 1, 2):
        heard = [event["event"] for who, event in events if who == seed]
        assert heard.count("epoch") == EPOCHS
    assert run(folders[0], [0, 1, 2])[0] == found  # nothing left to do


class Interrupted(Exception):  # noqa: N818 - no error
    pass


@pytest.mark.parametrize("checkpoint_seconds", ["0", "1000"])
def test_seeds_that_stand_apart_catch_up(folders, alone, monkeypatch, checkpoint_seconds):
    monkeypatch.setenv("GLAS_BENCH_CHECKPOINT_SECONDS", "0")

    def stop(event):
        if event["event"] == "epoch" and event["epoch"] == 2:
            raise Interrupted

    # one seed has been further already, alone: at the first step of its second epoch or later
    with pytest.raises(Interrupted):
        run_seed(cell_of(), folders[0].seed(1), tiny_splits(), stop)
    assert folders[0].seed(1).load_checkpoint()["position"]["step"] > 3
    monkeypatch.setenv("GLAS_BENCH_CHECKPOINT_SECONDS", checkpoint_seconds)
    found, _ = run(folders[0], [0, 1, 2])
    assert {one["status"] for one in found.values()} == {"complete"}
    assert_same(folders[0], alone)


def test_a_seed_that_diverges_has_its_own_status(folders, monkeypatch):
    def marked(cell, folder, *about):
        run = open_seed(cell, folder, *about)
        if folder.seed == 1:
            with torch.no_grad():
                run.training.model.write.bias.fill_(5)
        return run

    monkeypatch.setattr(stacked_seeds, "open_seed", marked)
    found, _ = run(folders[0], [0, 1], variant=local(OneExplodes))
    assert found == {0: {"status": "complete"}, 1: {"status": "diverged"}}
    status = folders[0].seed(1).status()
    assert status["step"] == 1
    assert "not finite" in status["reason"]


@pytest.mark.parametrize("stage", ["training", "validating", "fitting"])
def test_out_of_memory_halves_the_stack(folders, alone, monkeypatch, stage):
    """Three seeds, then one at a time from the start, at the numbers of each alone."""
    stack = stacked_seeds.StackedTraining
    step, validate = stack.step, stack.validate

    def fill(self, now):
        if now == stage and len(self.trainings) > 1:
            raise torch.OutOfMemoryError("no room")

    def tight_step(self):
        if self.steps_done == 1:
            fill(self, "fitting" if isinstance(self.first, refit.Fit) else "training")
        step(self)

    def tight_validate(self):
        fill(self, "validating")  # an epoch is over, and there is no checkpoint
        return validate(self)

    monkeypatch.setattr(stack, "step", tight_step)
    monkeypatch.setattr(stack, "validate", tight_validate)
    found, events = run(folders[0], [0, 1, 2])
    assert {one["status"] for one in found.values()} == {"complete"}
    notes = [event["text"] for _, event in events if event["event"] == "note"]
    assert notes == ["out of memory with 3 seeds together: 1 at a time"]
    assert_same(folders[0], alone)


@pytest.mark.parametrize(
    ("trouble", "word"), [("asked to stop", "interrupted"), ("not finite", "failed")]
)
def test_scoring_a_complete_seed_once_more_leaves_it_complete(folders, monkeypatch, trouble, word):
    folder = folders[0]
    assert run_alone(folder, 0) == "complete"
    before = folder.seed(0).status()
    more = cell_of(samples=7)

    def fail(*_):
        raise evaluate.NotFinite("iw is not finite")

    if trouble == "asked to stop":
        monkeypatch.setattr(signals, "_requested", 15)
    else:
        monkeypatch.setattr(evaluate, "score_into", fail)
    assert run_seed(more, folder.seed(0), tiny_splits(), lambda event: None) == word
    assert folder.seed(0).status() == before
    note_failure(folder.seed(0), MemoryError("no room"), "cauchy")
    assert folder.seed(0).status() == before
    assert folder.seed(0).finished(cell_of().protocol) == "complete"
    assert folder.seed(0).finished(more.protocol) is None


def test_a_picture_that_cannot_be_drawn_costs_no_scores(folders, monkeypatch):
    def draw(*_):
        raise ValueError("784 pixels are no 9 x 9")

    monkeypatch.setattr(pictures, "draw", draw)
    found, events = run(folders[0], [0])
    assert found == {0: {"status": "complete"}}
    notes = [event["text"] for _, event in events if event["event"] == "note"]
    assert notes == ["seed 0 has no pictures: ValueError: 784 pixels are no 9 x 9"]
