"""The commands around a run: pictures, scoring again, data sets, this machine, stand-ins."""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Glas, sets
from matplotlib.image import imread
from test_train import tiny_splits, training

from glas_bench import data, evaluate, registry, study
from glas_bench.commands import evaluate as commands_evaluate
from glas_bench.commands.evaluate import weights_text
from glas_bench.data import parse
from glas_bench.errors import RunError, UsageError
from glas_bench.record import RunFolder, find_run, load_run
from glas_bench.runs import pictures
from glas_bench.runs.finished import load_finished

SHARED = Path(__file__).parents[2] / "shared" / "data"
SMOKE = ["--preset", "smoke", "--no-mirror", "--json"]
TINY = [*SMOKE, *sets(steps=3, hidden=8, epochs=1, samples=5)]
RUN = ["run", "--variant", "cauchy", *TINY]


def done(command, *arguments):
    """Run a command that completes."""
    ended = command.here(*arguments)
    assert ended.code == 0, ended.err
    return ended


@pytest.fixture(scope="module")
def finished(tmp_path_factory, packed):
    """A results folder with one finished run."""
    command = Glas(tmp_path_factory.mktemp("finished"))
    ended = done(command, *RUN)
    yield command, ended.json
    command.close()


def test_a_run_leaves_its_pictures_and_samples_draws_them_again(finished):
    command, document = finished
    folder = Path(document["folder"]) / "seed-0"
    names = {"samples.png", "reconstructions.png", "filter.png"}
    assert names <= set(os.listdir(folder))
    before = {name: (folder / name).read_bytes() for name in names}
    for name in names:
        (folder / name).unlink()
    ended = done(command, "samples", document["config_key"][:6])
    assert {Path(line).name for line in ended.out.split()} == names
    assert before == {name: (folder / name).read_bytes() for name in names}
    for name in names:
        assert imread(folder / name).std() > 0.02, f"{name} is blank"


def test_pictures_show_what_the_model_gives():
    run = training("cauchy")
    subject = pictures.Subject("a title", run.model, run.config, run.splits, 0)
    with torch.inference_mode():
        canvases = pictures._from_prior(subject, 4)
        x, reconstructed, looks = pictures._reconstructed(subject, 4)
    assert canvases.shape == reconstructed.shape == (3, 4, 20)
    assert ((reconstructed > 0) & (reconstructed < 1)).all()
    assert set(x.unique().tolist()) == {0, 1}
    assert looks.shape == (3, 4, 4, 4)
    torch.testing.assert_close(looks.sum((2, 3)), torch.ones(3, 4))
    other = pictures.Subject("a title", run.model, run.config, run.splits, 1)
    assert not torch.equal(pictures._from_prior(other, 4), canvases)


def text_subject(variant, steps=3):
    """An untrained model, with 40 lines."""
    splits = data.load("text-kjv")
    few = dataclasses.replace(splits.train, images=splits.train.images[:40])
    splits = dataclasses.replace(splits, train=few, validation=few, test=few)
    run = training(variant, splits=splits, dataset="text-kjv", steps=steps)
    return pictures.Subject("a title", run.model, run.config, splits, 0)


@pytest.mark.parametrize("variant", ["cauchy", "no-attention"])
def test_text_is_drawn_a_row_a_step_with_its_entropy(variant, tmp_path, monkeypatch):
    figures = {}
    monkeypatch.setattr(pictures, "_save", lambda path, figure: figures.update({path: figure}))
    subject = text_subject(variant)
    traces = pictures.trace(subject, 3)
    pictures.draw(tmp_path, subject, traces)
    by_name = {path.name: figure for path, figure in figures.items()}
    filters = {"filter.png"} if subject.model.has_filter else set()
    assert set(by_name) == {"samples.png", "reconstructions.png", "entropy.png"} | filters

    first, _, third, empty, _ = by_name["reconstructions.png"].axes
    assert not empty.axison
    assert [label.get_text() for label in first.get_yticklabels()] == ["t=1", "t=2", "t=3", "true"]
    steps = [pictures.written(step)[0][2] for step in traces.canvases_TBP]
    (true,) = pictures.written(traces.x_BP[2:])[0]
    shown = {(t.get_position()[1], t.get_position()[0]): t.get_text() for t in third.texts}
    assert {t.get_family()[0] for t in third.texts} == {"monospace"}
    for row, line in enumerate([*steps, true]):
        assert "".join(shown.get((row, place), " ") for place in range(28)) == line
    shades = traces.canvases_TBP[:, 2].reshape(3, 28, 28).amax(-1)
    np.testing.assert_array_equal(third.images[0].get_array(), shades.numpy())
    bars = {
        (round(y), round((a + b) / 2)) for (a, y), (b, _) in third.collections[0].get_segments()
    }
    assert bars == set(pictures.changes(steps)) != set()
    assert len(third.images) == 1 + 3 * bool(filters), "a footprint beside each step"

    heat = by_name["entropy.png"].axes[0].images[0].get_array()
    assert heat.shape == (3, 28)
    assert 0 < heat.min() < heat.max() <= np.log(28) + 1e-9


def test_a_sure_line_has_no_entropy_and_its_changes_are_marked():
    symbols = torch.tensor([[26] * 28, [*range(28)], [*range(27), 0]])
    one_hot = torch.eye(28)[symbols].flatten(1)
    lines, p = pictures.written(one_hot)
    assert lines == [" " * 28, parse.ALPHABET, parse.ALPHABET[:-1] + "a"]
    assert (p == 1).all()
    assert pictures.changes(lines) == [*((1, i) for i in range(28) if i != 26), (2, 27)]
    figure = pictures._entropy("sure", one_hot[:, None])
    assert not figure.axes[0].images[0].get_array().any()


def test_samples_prints_lines_as_they_form(glas, monkeypatch):
    ended = done(glas, *RUN, "--dataset", "text-kjv", "--set", "images=20")
    folder = Path(ended.json["folder"])
    names = ["samples.png", "reconstructions.png", "entropy.png", "filter.png"]
    assert set(names) <= set(os.listdir(folder / "seed-0"))
    traced, trace = [], pictures.trace
    monkeypatch.setattr(pictures, "trace", lambda *of: traced.append(of) or trace(*of))
    ended = done(glas, "samples", str(folder), "--images", "2")
    assert len(traced) == 1  # what is printed is what is drawn
    shown = ended.out.splitlines()
    assert [Path(line).name for line in shown[-4:]] == names
    (subject,) = load_finished(folder)
    traces = pictures.trace(subject, 2)
    for title, step_TBP in (("sample", traces.prior_TBP), ("test line", traces.canvases_TBP)):
        for b in range(2):
            start = shown.index(f"{title} {b + 1}") + 1
            block = shown[start : shown.index("", start)]
            rows = [line for line in block if not set(line) <= {" ", "^"}]
            lines = [pictures.written(step)[0][b] for step in step_TBP]
            expected = [f"  t={t}  {line}".rstrip() for t, line in enumerate(lines, 1)]
            if title == "test line":
                true = pictures.written(traces.x_BP)[0][b]
                expected.append(f" true  {true}".rstrip())
            assert rows == expected
            marks = "".join(line for line in block if set(line) <= {" ", "^"})
            assert marks.count("^") == len(pictures.changes(lines))
    monkeypatch.setattr("glas_bench.commands.evaluate.screen_width", lambda: 80)
    on_screen = [*commands_evaluate._forming(subject.title, traces)]
    assert "^" not in "".join(on_screen)
    plain = [re.sub(r"\033\[\d?m", "", line).rstrip() for line in on_screen]
    assert plain[2:] == [line for line in shown[2:-4] if not line or not set(line) <= {" ", "^"}]


@pytest.mark.parametrize(("steps", "columns"), [(1, 1), (5, 5), (16, 16), (64, 16)])
def test_time_steps_are_spread_evenly_and_hold_the_last(steps, columns):
    shown = pictures._columns(steps)
    assert (len(shown), shown[0], shown[-1]) == (columns, 0, steps - 1)


def test_a_run_that_scores_some_images_can_score_all_later(finished, glas):
    _, whole = finished
    ended = done(glas, *RUN, "--set", "images=40")
    assert ended.json["config_key"] == whole["config_key"]  # nothing that was trained is other
    assert ended.json["protocol_key"] != whole["protocol_key"]
    (row,) = ended.json["seeds"]
    assert row["images"] == 40
    folder = ended.json["folder"]
    some = load_run(folder).seeds[0].per_image(ended.json["protocol_key"])["elbo"]
    glas.here("evaluate", folder, "--images", "500", "--json")
    every = load_run(folder).seeds[0].per_image(whole["protocol_key"])["elbo"]
    assert every.shape == (500,)
    rows = evaluate.scored_images(500, 40).numpy()
    np.testing.assert_allclose(some, every[rows], rtol=1e-5)


def test_weights_of_both_recognisers_are_shown_for_every_k():
    """Where the refitted one was chosen for nll, the variant's own has fewer draws."""
    row = {"seed": 0, "images": 40, "elbo": 99.0, "v_mean": 2.0, "ess_mean": 3.0}
    row |= {f"refit_{name}": value for name, value in row.items() if name not in ("seed", "images")}
    row |= {"iw_sweep": {"1": 99.0, "10": 96.0}, "refit_iw_sweep": {"1": 98.0, "100": 94.0}}
    row |= {"nll": 94.0, "nll_from": "refit_iw", "nll_bound_only": False, "bound_only": False}
    more = row | {"seed": 1, "iw_sweep": {"1": 99.5, "100": 95.0}, "refit_iw_sweep": {}}
    head, *lines = (line.split() for line in weights_text([row, more]).splitlines()[:5])
    assert head[4:-2] == ["iw,", "K=1", "iw,", "K=10", "iw,", "K=100"]
    assert [line[:2] + line[4:-2] for line in lines if line[0].isdecimal()] == [
        ["0", "own", "99.00", "96.00", "-"],
        ["0", "refit", "98.00", "-", "94.00"],
        ["1", "own", "99.50", "-", "95.00"],
    ]


def test_evaluate_scores_again_with_other_weights_and_keeps_both(finished):
    command, document = finished
    asked = ("evaluate", document["folder"], "-K", "12", "--images", "40")
    ended = done(command, *asked, "--json")
    row = ended.json["seeds"][0]
    assert (row["samples"], row["images"], row["protocol"]["images"]) == (12, 40, 40)
    assert len(list(Path(document["folder"]).glob("seed-0/eval/*.json"))) == 2
    assert command.here(*asked, "--json").json == ended.json
    assert "iw, K=12" in command.here(*asked).out
    kept = load_run(document["folder"]).seeds[0]
    subset = kept.per_image(row["protocol_key"])
    whole = kept.per_image(document["protocol_key"])
    rows = evaluate.random_subset(500, 40, "evaluation").numpy()
    assert subset["elbo"].shape == (40,)
    np.testing.assert_allclose(subset["elbo"], whole["elbo"][rows], rtol=1e-5)
    np.testing.assert_allclose(subset["iw_5"].mean(), row["iw_sweep"]["5"])


def test_a_run_is_scored_wherever_it_lies(finished, tmp_path, monkeypatch):
    command, document = finished
    shutil.copytree(document["folder"], tmp_path / "down" / "x")
    monkeypatch.chdir(tmp_path / "down")
    about = ("-K", "5", "--images", "20", "--estimator", "iw", "--json")
    ended = done(command, "evaluate", "x", *about)
    assert ended.json["seeds"][0]["samples"] == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["down"]
    with RunFolder.at(Path("x")).locked():
        assert "already running" in command.here("evaluate", "x", *about).err


def test_a_run_is_named_by_path_or_beginning(finished, tmp_path):
    command, document = finished
    folder = Path(document["folder"])
    assert find_run(command.results, document["config_key"][:4]) == folder
    assert find_run(command.results, "cauchy-") == folder
    assert find_run(tmp_path, str(folder)) == folder
    with pytest.raises(UsageError, match=r"no run 'zebra'.*There are: cauchy-"):
        find_run(command.results, "zebra")
    with pytest.raises(UsageError, match="make one with glas-bench run"):
        find_run(tmp_path, "zebra")


def test_a_changed_variant_is_not_loaded_as_if_it_were_the_same(glas):
    path = glas.folder / "my_idea.py"
    source = '"""Mine."""\nfrom glas_bench.model import Glas\n\nclass Mine(Glas):\n    pass\n'
    path.write_text(source)
    folder = Path(glas.here("run", "--variant", path, *TINY).json["folder"])
    assert load_finished(folder)[0].variant.path == path
    path.write_text(source.replace("pass", "latent_trained = False"))
    with pytest.raises(RunError, match=r"my_idea.py or the training core has changed"):
        load_finished(folder)


def test_datasets_lists_what_there_is(bare_glas):
    ended = bare_glas.here("datasets", "--json")
    found = {one["name"]: one for one in json.loads(ended.out)}
    assert {name: [one["sizes"], one["classes"], one["labels"]] for name, one in found.items()} == {
        "mnist-5k": [[4000, 500, 500], 10, "digit"],
        "mnist-static": [[50_000, 10_000, 10_000], 0, None],
        "omniglot": [[23_000, 1_345, 8_070], 50, "alphabet"],
        **{name: [[50_000, 2_000, 2_000], 0, None] for name in ("text-kjv", "text8", "text")},
        "images": [[0, 0, 0], 0, None],  # of any size
    }
    assert found["omniglot"]["binarisations"] == ["dynamic", "soft"]
    assert found["text8"]["likelihood"] == "categorical"
    assert found["mnist-5k"]["present"].endswith(".gz")
    text = bare_glas.here("datasets").out
    assert "no; glas-bench datasets fetch omniglot" in text
    assert bare_glas.here("datasets", "fetch", "omniglt").code == 2


def test_doctor_tells_what_is_there_and_hides_passwords(bare_glas, monkeypatch):
    monkeypatch.setenv("OPTUNA_STORAGE", "postgresql://me:secret@127.0.0.1/studies")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:5000")
    ended = bare_glas.here("doctor")
    assert ended.code == 0
    assert "secret" not in ended.out
    assert torch.__version__ in ended.out
    assert "glas-bench datasets fetch omniglot" in ended.out
    assert "--results" not in ended.out
    assert "choose another with --results" in bare_glas.here("doctor", "--results", "/proc/no").out


def test_soft_training_scores_elbo_on_grey_and_weights_on_binary():
    from test_evaluate import scorer

    found = scorer(registry.find("cauchy"), samples=1, latent_init="normal")
    splits = tiny_splits(pixels=3)
    grey = torch.rand(8, 3, generator=torch.Generator().manual_seed(1))
    test = dataclasses.replace(splits.test, grey=grey)
    found.splits = dataclasses.replace(splits, binarisation="soft", test=test)
    _, values = found.score()
    binary = scorer(registry.find("cauchy"), samples=1, latent_init="normal").score()[1]
    np.testing.assert_array_equal(values["iw"], binary["iw"])
    assert np.abs(values["elbo"] - binary["elbo"]).min() > 1e-3


@pytest.mark.skipif(
    not SHARED.is_dir(), reason="the real data files do not stand beside the checkout"
)
@pytest.mark.parametrize("binarisation", ["dynamic", "soft"])
def test_a_stand_in_trains_and_is_named_in_every_result(glas, binarisation):
    given = ["--dataset", "omniglot", "--data-file", SHARED / "chardata_small.mat"]
    arguments = [*RUN, *given, *sets(binarisation=binarisation)]
    ended = done(glas, *arguments)
    assert ended.json["data_origin"] == "stand-in: chardata_small.mat"
    assert ended.json["seeds"][0]["images"] == 1210
    arguments.remove("--json")
    text = glas.here(*arguments).out
    assert f"omniglot ({binarisation}, stand-in: chardata_small.mat, not the published" in text
    done(glas, "samples", ended.json["config_key"])


def test_a_seed_made_otherwise_than_its_cell_says_so(glas):
    folder = Path(glas.here(*RUN).json["folder"])
    cell = json.loads((folder / "environment.json").read_text())
    del cell["digest"]
    (folder / "environment.json").write_text(json.dumps({**cell, "processor": "another"}))
    assert glas.here(*RUN, "--seeds", "1").code == 0
    assert not (folder / "seed-0" / "environment.json").exists()
    record = load_run(folder)
    assert record.environment["processor"] == "another"
    assert record.seeds[0].environment == {}
    assert record.seeds[1].environment == cell


def test_a_phase_that_generates_nothing_is_not_validated(glas):
    sizes = sets(steps=3, hidden=8, epochs=2, samples=5)
    document = glas.here("run", "--variant", "fixed-supervised", *SMOKE, *sizes).json
    first, second = load_run(document["folder"]).seeds[0].metrics
    kinds = [first[key] for key in ("phase", "validation", "validation_kind")]
    assert kinds == ["supervised", None, "none"]
    assert second["validation_kind"] == "elbo"
    assert second["validation"] > 0


def test_evaluate_names_a_seed_that_is_broken_and_scores_the_others(glas):
    sizes = sets(epochs=1, batch=512, samples=2, images=10)
    assert glas("run", "--variant", "vae", *SMOKE, "--seeds", "0,1", *sizes).code == 0
    [broken] = (glas.results / "runs").glob("vae-*/seed-1/per_image.npz")
    broken.write_text("hi\n")
    ended = glas("evaluate", "vae", "-K", 3, "--images", 10, "--estimator", "iw")
    assert ended.code == 3
    assert str(broken) in ended.err
    assert "Seed 1 is left out" in ended.err
    assert "own      10" in ended.out


# --------------------------------------------------------------------------- lists


def test_studies_are_listed_with_their_core_hours(finished):
    command, _ = finished
    listed = {each["study"]: each for each in json.loads(command.here("studies", "--json").out)}
    assert set(listed) == set(study.shipped())
    slip, smoke = listed["grid-slip"], listed["smoke"]
    assert (slip["cells"], slip["claims"], slip["runs"]) == (4, 4, 20)
    assert 0 < smoke["core_hours"] < slip["core_hours"] < listed["published"]["core_hours"]
    ended = command.here("studies", "--preset", "labtop")
    assert ended.code == 2
    assert "Did you mean 'laptop'?" in ended.err


def test_runs_are_listed_and_removed_unless_at_work(finished, tmp_path):
    command, document = finished
    results = tmp_path / "results"
    name = Path(document["folder"]).name
    shutil.copytree(document["folder"], results / "runs" / name)
    broken = results / "runs" / "cauchy-0123456789ab"
    (broken / "seed-0").mkdir(parents=True)
    sizes = [p.stat().st_size for p in (results / "runs" / name).rglob("*") if p.is_file()]
    rows = json.loads(command.here("runs", "--json", "--results", results).out)
    listed = {each["run"]: each for each in rows}
    assert listed[name]["seeds"] == {"complete": 1}
    assert (listed[name]["finished"], listed[name]["bytes"]) == (True, sum(sizes))
    assert not listed[broken.name]["finished"]
    assert "config.yaml" in listed[broken.name]["problem"]
    assert "1 complete" in command.here("runs", "--results", results).out

    ended = command.here("runs", "remove", "nix", "--yes", "--results", results)
    assert (ended.code, "no run 'nix'" in ended.err) == (2, True)
    ended = command.here("runs", "remove", name[:9], "--results", results)  # nobody answers
    assert ended.code != 0
    with RunFolder.at(results / "runs" / name).locked():
        ended = command.here("runs", "remove", name[:9], "--yes", "--results", results)
    assert (ended.code, "already running" in ended.err) == (1, True)
    assert (results / "runs" / name).is_dir()
    done(command, "runs", "remove", name, broken.name, "--yes", "--results", results)
    assert list((results / "runs").iterdir()) == []


def test_nothing_but_a_run_is_removed(finished, tmp_path, monkeypatch):
    command, document = finished
    monkeypatch.chdir(tmp_path)
    results, project = tmp_path / "results", tmp_path / "project"
    shutil.copytree(document["folder"], results / "runs" / Path(document["folder"]).name)
    (project / "sub").mkdir(parents=True)
    (project / "config.yaml").write_text("a: 1\n")
    before = sorted(tmp_path.rglob("*"))
    for name in ("./project", "project", str(project), "."):
        ended = command.here("runs", "remove", name, "--yes", "--results", results)
        assert (ended.code, "is no run folder" in ended.err) == (2, True), ended.err
    for words in (("runs", "remove", "--yes"), ("evaluate",), ("samples",), ("sync",)):
        ended = command.here(*words, "", "--results", results)
        assert (ended.code, "the name of a run is empty" in ended.err) == (2, True), ended.err
        ended = command.here(*words, "./project", "--results", results)
        assert (ended.code, "is no run folder" in ended.err) == (2, True), ended.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("run --variant hel", {"hellinger", "hellinger-renyi"}),
        ("run --variant draw --set read", {"read_size="}),
        ("run --preset la", {"laptop"}),
        ("sweep grid-", {"grid-parts", "grid-slip"}),
        ("samples cauchy-", None),
    ],
)
def test_a_shell_completes_names(finished, words, expected):
    command, document = finished
    place = {"COMP_WORDS": f"glas-bench {words}", "COMP_CWORD": len(words.split())}
    ended = command(_GLAS_BENCH_COMPLETE="bash_complete", **place)
    found = {line.split(",", 1)[1] for line in ended.out.split()}
    assert found == (expected or {Path(document["folder"]).name})
