"""Every variant found trains, resumes, is scored and drawn under the same commands."""

import numpy as np
import pytest
import torch
from test_train import tiny_splits, training

from glas_bench import evaluate, registry
from glas_bench.core import train
from glas_bench.runs import pictures

SPLITS = tiny_splits(pixels=36)


def make(name):
    return training(name, splits=SPLITS, epochs=3)


def finish(run, last=100):
    """Train to the end or a step; return the epochs' means, and where it diverged if it did."""
    rows = []
    try:
        while not run.finished and run.at.step < last:
            run.step()
            if run.epoch_done:
                validation = run.validate()
                rows.append((run.end_epoch(), validation))
    except train.Diverged as diverged:
        rows.append((diverged.step, diverged.reason))
    return rows


@pytest.mark.parametrize("name", registry.names())
def test_it_resumes_to_the_same_bits(name, tmp_path):
    whole = make(name)
    rows = finish(whole)
    if rows == [(0, "the objective is not finite")]:
        assert name == "grid", "diverges at its first step"
        return
    first = make(name)
    assert repr(finish(first, last=4)) == repr(rows[:1])  # repr: nan equals nan
    torch.save(first.state(), tmp_path / "state.pt")
    second = make(name)
    second.load(torch.load(tmp_path / "state.pt", weights_only=True))
    assert repr(finish(second)) == repr(rows[1:])
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[key]), key


@pytest.mark.parametrize("name", registry.names())
def test_it_is_scored_and_drawn(name, tmp_path):
    run = make(name)
    scorer = evaluate.Scorer(run.model, run.config, SPLITS, 0, samples=3)
    try:
        scores, per_image = scorer.score()
    except evaluate.NotFinite:
        assert name == "grid", "its initial parameters cannot be scored"
        return
    assert np.isfinite(per_image["objective"]).all()
    has_density = run.model.has_density
    assert (scores["elbo_status"] == "undefined") != has_density
    assert (scores["iw"] is None) == (scores["iw_status"] != "finite")
    assert np.isfinite(per_image["nll"]).all()
    assert np.array_equal(per_image["nll"], per_image[scores["nll_from"]])
    assert (per_image["refit_iw_1"] >= per_image["refit_iw"] - 1e-9).all(), "Jensen"
    assert scores["refit_elbo"] >= scores["refit_iw"]
    bounds = run.model.bound(run.model.settings).holds
    assert (scores["objective_gap"] is None) == (bounds is True)
    if bounds is not True:
        hidden = scores["nll"] - scores["objective"]
        assert scores["objective_gap"] == pytest.approx(hidden, abs=1e-4)
    subject = pictures.Subject(name, run.model, run.config, SPLITS, 0)
    drawn = [path.name for path in pictures.draw(tmp_path, subject, pictures.trace(subject, 2))]
    filters = ["filter.png"] * run.model.has_filter
    assert drawn == ["samples.png", "reconstructions.png", *filters]
