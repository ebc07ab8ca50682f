"""What other code, older results and finished cells rely on, recorded once and compared here.

`frozen/results` holds a small study as version 0.1.0 left it, by version 3 of the training core and
version 2 of the protocol: its run folders (pictures and all but one checkpoint left out) and its
queue. Host names are replaced. `golden.json` holds names, keys and numbers of the present versions.
`python tests/test_freeze.py` records these again; do so only where a change is meant, and raise
`CORE_VERSION` or `PROTOCOL_VERSION` where numbers change.
"""

import hashlib
import inspect
import json
import shutil
import sys
from pathlib import Path

import click
import pytest
import torch

from glas_bench import (
    ais,
    cli,
    config,
    divergences,
    environment,
    evaluate,
    filters,
    model,
    record,
    registry,
    stats,
)
from glas_bench import data as data_sets
from glas_bench.core import train

FROZEN = Path(__file__).parent / "frozen"
GOLDEN = FROZEN / "golden.json"
TINY = {"hidden": 8, "epochs": 1, "samples": 5, "images": 20, "batch": 200}
SCORED = ("cauchy", "hellinger", "uniform-pit", "vae", "draw")
LOSSES = ("cauchy", "gaussian", "hellinger", "no-attention", "vae")
TIMES = {"time", "seconds", "seconds_by", "seconds_of"}
ROUNDING = 1e-5


def machine() -> str:
    """Return what decides the bits of a sum: the processor with its instructions, and torch."""
    lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    kept = ("cpu family", "model", "model name", "stepping", "flags")
    facts = sorted(line for line in lines if line.partition("\t")[0] in kept)
    about = [*facts, torch.__version__, torch.backends.cpu.get_cpu_capability()]
    return hashlib.sha256("\n".join(about).encode()).hexdigest()[:16]


def numbers(value):
    """Return a JSON value without what it took to make it."""
    if isinstance(value, dict):
        return {key: numbers(item) for key, item in value.items() if key not in TIMES}
    return [numbers(item) for item in value] if isinstance(value, list) else value


def agree(made, wanted, bits, where=""):
    """Assert that two JSON values are equal, numbers to the bit or to rounding."""
    if isinstance(wanted, dict):
        assert sorted(made) == sorted(wanted), where
        for key in wanted:
            agree(made[key], wanted[key], bits, f"{where}.{key}")
    elif isinstance(wanted, list):
        assert len(made) == len(wanted), where
        for index, (one, other) in enumerate(zip(made, wanted, strict=True)):
            agree(one, other, bits, f"{where}[{index}]")
    elif isinstance(wanted, float) and not bits:
        assert made == pytest.approx(wanted, rel=ROUNDING, abs=1e-3), where
    else:
        assert made == wanted, where


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text())


@pytest.fixture
def same_machine(golden):
    return golden["machine"] == machine()


@pytest.fixture
def frozen(glas):
    """The command over a copy of the frozen results."""
    shutil.copytree(FROZEN / "results", glas.results)
    return glas


# --------------------------------------------------------------------------- names and commands


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (model.Glas.charge, "self, q, p, z"),
        (divergences.kl_normal, "mean, std"),
        (divergences.squared_hellinger_normal, "mean, std"),
        (divergences.log1p_chi2_normal, "mean, std"),
        (divergences.renyi_normal, "mean, std, alpha"),
        (divergences.kl_uniform, "low, high"),
        (divergences.moment_chi2, "mean, prior_mean, prior_var"),
        (divergences.min_chi2_log_prob, "z, mean"),
        (filters.grid_centres, "filter_size, matrix_size, offset, log_stride, grid"),
        (evaluate.importance_weighted_nll, "log_w_KB"),
        (evaluate.effective_sample_size, "log_w_KB"),
        (
            ais.annealed_importance_sampling,
            "log_likelihood, latent_size, batch, *chains=16, *temperatures=1000, *leapfrog=10, "
            "*seed=0, *device=None, *dtype=None",
        ),
        (stats.paired_difference, "a_SB, b_SB"),
        (record.load_run, "path"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_public_names_take_what_they_took(function, parameters):
    takes = []
    for each in inspect.signature(function).parameters.values():
        star = "*" * (each.kind is each.KEYWORD_ONLY)
        default = "" if each.default is each.empty else f"={each.default}"
        takes.append(f"{star}{each.name}{default}")
    wanted = parameters.split(", ")
    assert takes[: len(wanted)] == wanted
    assert all("=" in each for each in takes[len(wanted) :]), "what is new has a default"


def test_public_names_give_what_they_gave():
    estimate = stats.paired_difference([[1.0, 2.0], [2.0, 4.0]], [[0.0, 1.0], [1.5, 2.0]])
    assert [float(getattr(estimate, name)) for name in ("estimate", "low", "high", "p")]
    q = model.Normal(torch.zeros(2, 3), torch.ones(2, 3))
    assert torch.equal(q.mean, torch.zeros(2, 3))
    assert torch.equal(q.std, torch.ones(2, 3))


def commands(group=cli.cli, above=""):
    """Return every command with its parameters: flags, whether one is required, its default."""
    found = {}
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            found |= commands(command, f"{above}{name} ")
        found[above + name] = {
            "/".join([*each.opts, *each.secondary_opts]): [
                each.required,
                getattr(each, "multiple", False),
                getattr(each, "is_flag", False),
                str(each.default) if isinstance(each.default, str | int | float | Path) else None,
                str(each.envvar) if each.envvar else None,
            ]
            for each in command.params
        }
    return found


def test_commands_take_what_they_took(golden):
    now = commands()
    for name, parameters in golden["commands"].items():
        assert {key: now[name].get(key) for key in parameters} == parameters, name


# --------------------------------------------------------------------------- identities


def identities(splits):
    """Return source hash and config key of every shipped variant at `quick`, on one data set."""
    found = {}
    for name in registry.names():
        variant = registry.find(name)
        resolved = config.resolve(variant, preset="quick", dataset="mnist-5k")
        key = config.config_key(resolved, variant.source_hash, splits.hash)
        found[name] = [variant.source_hash, key]
    return found


def test_finished_cells_keep_their_keys(golden, packed):
    now = identities(packed)
    assert {name: now.get(name) for name in golden["identities"]} == golden["identities"]


# --------------------------------------------------------------------------- numbers


def losses(splits):
    """Return the mean objective of three steps and the validation after them."""
    found = {}
    for name in LOSSES:
        variant = registry.find(name)
        run = train.Training(variant, config.resolve(variant, preset="smoke"), splits, 7)
        for _ in range(3):
            run.step()
        found[name] = [run.at.sums["objective"] / 3, run.validate()[1]]
    return found


def scores(glas, variant):
    """Return all that a tiny run of a variant was scored by, and its training's rows."""
    own = registry.find(variant).cls.Settings.model_fields
    sets = [
        f"--set={key}={value}"
        for key, value in {**TINY, "steps": 3}.items()
        if key in own or key in config.RunConfig.model_fields
    ]
    ended = glas.here(
        "run", "--variant", variant, "--preset", "smoke", *sets, "--no-mirror", "--json"
    )
    assert ended.code == 0, ended.err
    folder = Path(ended.json["folder"]) / "seed-0"
    (path,) = folder.glob("eval/*.json")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scored = json.loads(path.read_text())
    kept = [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows]
    return {
        "protocol": path.stem,
        "metrics": numbers(kept),
        "scores": numbers({k: v for k, v in scored.items() if k not in ("digest", "per_image")}),
    }


def test_losses_are_those_of_the_frozen_core(golden, same_machine, packed):
    """A change of these numbers must raise `CORE_VERSION`: finished cells would not be repeated."""
    assert golden["versions"] == [config.CORE_VERSION, config.PROTOCOL_VERSION]
    agree(losses(packed), golden["losses"], same_machine)


@pytest.mark.parametrize("variant", SCORED)
def test_scores_are_those_of_the_frozen_protocol(variant, golden, same_machine, glas):
    agree(scores(glas, variant), golden["scores"][variant], same_machine, variant)


RESCORED = {
    "weights": ("--estimator", "iw,refit", "-K", 3, "--images", 12),
    "ais": ("--estimator", "ais", "--images", 2, "--temperatures", 4, "--chains", 2),
}


def rescored(glas):
    """Return the scores of the tiny run of `cauchy` under other protocols."""
    scores(glas, "cauchy")
    (run,) = (glas.results / "runs").iterdir()
    ended = {how: glas.here("evaluate", run.name, "--json", *RESCORED[how]) for how in RESCORED}
    assert {each.code for each in ended.values()} == {0}, ended
    return {how: numbers(each.json) for how, each in ended.items()}


def test_a_checkpoint_scores_as_it_did(golden, same_machine, glas):
    agree(rescored(glas), golden["rescored"], same_machine)


# --------------------------------------------------------------------------- older results


def test_frozen_run_folders_load():
    runs = {path.name: record.load_run(path) for path in record.find_runs(FROZEN / "results")}
    statuses = {name: {k: v.status for k, v in run.seeds.items()} for name, run in runs.items()}
    assert statuses == {
        "cauchy-05ff08554f56": {0: "diverged", 1: "diverged"},
        "cauchy-93281c2024cb": {0: "complete", 1: "complete"},
        "gaussian-686f066898f4": {0: "complete", 1: "failed"},
        "hellinger-1281865f963d": {0: "complete", 1: "complete"},
    }
    run = runs["cauchy-93281c2024cb"]
    assert run.config_key == "93281c2024cb"
    assert run.config.settings["hidden"] == 2
    assert [row["epoch"] for row in run.seeds[0].metrics] == [1, 2]
    arrays = run.seeds[0].per_image("6382355c8db5")
    assert {"elbo", "iw_4", "refit_iw_4"} <= set(arrays)
    assert arrays["iw_4"].shape == (16,)


def test_the_report_leaves_out_runs_of_an_older_core(frozen):
    ended = frozen.here("report", FROZEN / "frozen.yaml")
    assert ended.code == 3, ended.err
    page = (frozen.results / "report" / "frozen.md").read_text()
    assert "8 runs are left out: made by version 3 of the training core" in page


def test_a_queue_of_an_older_version_is_read_and_extended(frozen):
    ended = frozen.here("status", FROZEN / "frozen.yaml", "--json")
    assert {cell["status"] for cell in ended.json["cells"]} == {"complete", "failed"}, ended.err
    nothing_begins = ("--max-hours", 1e-9, "--no-mirror", "--json")
    ended = frozen.here("sweep", FROZEN / "frozen.yaml", "--extend", *nothing_begins)
    assert {cell["status"] for cell in ended.json["cells"]} == {"waiting"}, ended.err


@pytest.mark.parametrize("command", ["samples", "evaluate"])
def test_a_checkpoint_of_an_older_core_is_refused(command, frozen):
    ended = frozen.here(command, "93281", "--seed", 0)
    assert ended.code == 1
    assert "the training core has changed since; check out the commit that made it" in ended.err
    assert ended.err.count("\n") == 1


def test_runs_of_an_older_core_are_mirrored(frozen):
    ended = frozen.here("sync")
    assert ended.code == 0, ended.err
    assert "4 run folders mirrored" in ended.out


if __name__ == "__main__":  # record the answers of this version
    from tempfile import TemporaryDirectory

    from conftest import Glas

    environment.prepare_torch(1)  # as the tests do
    with TemporaryDirectory() as folder:
        splits = data_sets.load("mnist-5k")
        document = {
            "machine": machine(),
            "versions": [config.CORE_VERSION, config.PROTOCOL_VERSION],
            "commands": commands(),
            "identities": identities(splits),
            "losses": losses(splits),
            "rescored": rescored(Glas(Path(folder) / "rescored")),
            "scores": {
                variant: scores(Glas(Path(folder) / variant), variant) for variant in SCORED
            },
        }
    GOLDEN.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    print(f"recorded on {machine()}", file=sys.stderr)
