"""The command line: help, lists, and what it says to what it cannot use."""

import json
import subprocess
import sys

import click
import pytest
from conftest import Ended, Glas

import glas_bench.model
import glas_bench.record
from glas_bench import registry
from glas_bench.cli import cli

HEAVY = ["torch", "numpy", "mlflow", "optuna", "pandas", "pydantic", "rich", "scipy", "yaml"]
RUN = ["run", "--variant", "cauchy", "--no-mirror"]


# --------------------------------------------------------------------------- light


def test_the_command_line_is_light() -> None:
    code = "import sys, glas_bench.__main__, glas_bench.cli; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    loaded = {name.partition(".")[0] for name in ended.stdout.split()}
    assert "click" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_the_package_lends_what_authors_and_notebooks_need() -> None:
    assert glas_bench.Glas is glas_bench.model.Glas
    assert glas_bench.load_run is glas_bench.record.load_run
    with pytest.raises(AttributeError, match="Glass"):
        _ = glas_bench.Glass


def test_it_has_a_version(bare_glas: Glas) -> None:
    assert bare_glas.here("--version").out.startswith("glas-bench, version ")


COMMANDS = {"": cli, **cli.commands}
COMMANDS |= {
    f"{name} {below}": command
    for name, group in cli.commands.items()
    for below, command in getattr(group, "commands", {}).items()
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(bare_glas: Glas, name: str) -> None:
    command = COMMANDS[name]
    for ask in ("--help", "-h"):
        ended = bare_glas.here(*name.split(), ask)
        assert (ended.code, ended.err) == (0, "")
        assert ended.out.startswith("Usage: ")
    for parameter in command.params:
        if parameter.param_type_name == "option":
            assert all(option in ended.out for option in parameter.opts)
            assert getattr(parameter, "help", None), parameter
    assert command.help
    assert " ".join(command.help.split()) in " ".join(ended.out.split())
    if isinstance(command, click.Group):
        assert all(below in ended.out for below in command.commands)
    else:
        assert "--debug" in ended.out


# --------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["Commands:"]),
        (["rnu"], ["unknown command 'rnu'", "Did you mean 'run'?", "check", "sync"]),
        (["run"], ["--variant"]),
        ([*RUN, "--sedes", "1"], ["--sedes", "--seeds"]),
        ([*RUN, "--threads", "0"], ["--threads", "0"]),
        ([*RUN, "--threads", "two"], ["--threads", "two"]),
        ([*RUN, "surplus"], ["surplus"]),
        (["run", "--variant", "hellingr"], ["Did you mean 'hellinger'?", "no-attention", "vae"]),
        (["run", "--variant", "./none.py"], ["none.py", "does not exist"]),
        ([*RUN, "--baseline", "gausian"], ["Did you mean 'gaussian'?", "cauchy"]),
        ([*RUN, "--baseline", "cauchy"], ["--baseline cauchy", "the variant itself"]),
        ([*RUN, "--preset", "smok"], ["unknown preset 'smok'", "'smoke'", "laptop", "paper"]),
        ([*RUN, "--dataset", "mnist5k"], ["'mnist5k'", "'mnist-5k'", "omniglot"]),
        ([*RUN, "--set", "lr=1e-3"], ["'lr'", "Did you mean 'learning_rate'?"]),
        ([*RUN, "--set", "seed=3"], ["'seed'", "Set it with --seeds"]),
        ([*RUN, "--threads", "2", "--set", "threads=1"], ["--threads", "give one of them"]),
        ([*RUN, "--dataset", "omniglot", "--set", "dataset=mnist-5k"], ["give one of them"]),
        ([*RUN, "--set", "epochs=-3"], ["epochs", "greater than or equal to 1", "-3"]),
        ([*RUN, "--set", "batch=5000"], ["batch 5000", "4000 training images"]),
        ([*RUN, "--set", "binarisation=soft"], ["'soft'", "dynamic, static"]),
        ([*RUN, "--precision", "fp8"], ["precision", "'tf32' or 'bf16'", "'fp8'"]),
        ([*RUN, "--device", "gpu"], ["'gpu'", "auto, cpu, cuda and cuda:N"]),
        ([*RUN, "--device", "cuda:99"], ["cuda:99", "CUDA device", "--device cpu"]),
        ([*RUN, "--seeds", "one"], ["'one'", "0,3,5-7"]),
        ([*RUN, "--data-file", "no.amat"], ["no.amat"]),
        (["variants", "cauchi"], ["Did you mean 'cauchy'?"]),
        (["samples", "cauchy", "--images", "0"], ["--images", "0"]),
        (["check", "cauchi"], ["Did you mean 'cauchy'?"]),
        (["check"], ["VARIANT"]),
        (["bench", "--steps", "8,x"], ["--steps", "8,x"]),
        (["bench", "--variant", "cauchi"], ["Did you mean 'cauchy'?"]),
        (["bench", "--precision", "tf32", "--device", "cpu"], ["for GPUs only"]),
        (["bench", "--precision", "fp16"], ["fp32"]),
    ],
    ids=lambda value: " ".join(part for part in value if part not in RUN) if value else "",
)
def test_a_usage_error_says_what_is_allowed(
    bare_glas: Glas, arguments: list[str], words: list[str]
) -> None:
    ended = bare_glas.here(*arguments)
    assert ended.code == 2, ended
    assert all(word in ended.err for word in words), ended.err
    assert ended.out == ""
    assert "Traceback" not in ended.err
    assert "bug in glas-bench" not in ended.err
    assert not (bare_glas.results / "runs").exists()


def test_a_results_folder_that_is_a_file(bare_glas: Glas) -> None:
    bare_glas.results.write_text("")
    for arguments in (RUN, [*RUN, "--results", bare_glas.results]):
        ended = bare_glas.here(*arguments)
        assert ended.code == 2
        assert str(bare_glas.results) in ended.err


def test_a_traceback_is_for_those_who_ask(bare_glas: Glas) -> None:
    plain = bare_glas("variants", "no-such")
    asked = bare_glas("variants", "no-such", "--debug")
    assert (plain.code, plain.out) == (2, "")
    assert plain.err.startswith("error: unknown variant 'no-such'.")
    assert plain.err.count("\n") == 1
    assert "Traceback (most recent call last)" in asked.err
    assert "unknown variant 'no-such'" in asked.err
    assert asked.code != 0


def test_a_fault_of_our_own_is_called_that(
    bare_glas: Glas, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault() -> None:
        raise RuntimeError("it fell over")

    monkeypatch.setattr(registry, "names", fault)
    ended = bare_glas.here("variants")
    assert ended.code == 1
    assert "error: RuntimeError: it fell over" in ended.err
    assert "--debug" in ended.err
    assert "Traceback" not in ended.err
    with pytest.raises(RuntimeError):
        bare_glas.here("variants", "--debug")


# --------------------------------------------------------------------------- variants


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ended, Ended]:
    command = Glas(tmp_path_factory.mktemp("listed"))
    return command.here("variants"), command.here("variants", "--json")


def test_the_list_has_every_variant(listed: tuple[Ended, Ended]) -> None:
    table, document = listed
    found = {one["name"]: one for one in json.loads(document.out)}
    rows = {line.split()[0]: line for line in table.out.splitlines()[2:]}
    assert set(rows) == set(found) == set(registry.names()) >= {"cauchy", "vae"}
    for name, one in found.items():
        assert one["summary"] in rows[name]
        assert one["summary"]
    words = [found[name]["bounds_nll"] for name in ("cauchy", "hellinger")]
    assert words == [True, False]


@pytest.mark.parametrize("name", registry.names())
def test_a_page_tells_all_that_is_known(
    bare_glas: Glas, listed: tuple[Ended, Ended], name: str
) -> None:
    ended = bare_glas.here("variants", name)
    assert (ended.code, ended.err) == (0, "")
    facts = next(one for one in json.loads(listed[1].out) if one["name"] == name)
    assert json.loads(bare_glas.here("variants", name, "--json").out) == facts
    assert all(line in ended.out for line in facts["docstring"].splitlines())
    for key, setting in facts["settings"].items():
        assert f"{key} = {setting['default']}  ({setting['allowed']})" in ended.out
        assert setting["allowed"]
        assert setting["about"], key
        assert setting["about"] in ended.out
    assert facts["bound_reason"] in ended.out
    assert f"happened: {facts['write_up'] or 'nothing'}" in ended.out
    for number in facts["published"]:
        assert f"{number['dataset']}: {number['nats']} nats" in ended.out
        assert "split unverified" in ended.out


def test_allowed_values_are_told_in_words(listed: tuple[Ended, Ended]) -> None:
    found = {one["name"]: one for one in json.loads(listed[1].out)}
    allowed = {key: one["allowed"] for key, one in found["cauchy"]["settings"].items()}
    assert allowed["grid"] == "original | slip-mended | centred"
    assert allowed["steps"] == "whole number >= 1"
    assert allowed["charge_weight"] == "number >= 0"
    assert found["cauchy"]["published"][0]["nats"] == 89.67


def test_check_holds_what_is_shipped(bare_glas: Glas) -> None:
    ended = bare_glas.here("check", "vae")
    assert (ended.code, ended.err) == (0, "")
    *promises, last = ended.out.splitlines()
    assert len(promises) >= 10
    assert all(line.startswith("ok  ") for line in promises)
    assert last == f"vae: all {len(promises)} promises are kept."


def test_a_second_signal_ends_a_command_and_no_child() -> None:
    code = (
        "import os, signal\nfrom glas_bench import signals\n"
        "signals.install(second_ends={})\n"
        "with signals.graceful():\n"
        "    for name in ('SIGUSR1', 'SIGHUP', 'SIGUSR2', 'SIGTERM'):\n"
        "        os.kill(os.getpid(), getattr(signal, name))\n"
        "        print(name, flush=True)\n"
        "raise SystemExit(signals.exit_code() + 1)\n"
    )
    for ends, expected in ((True, (75, 3)), (False, (76, 4))):
        command = [sys.executable, "-c", code.format(ends)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (ended.returncode, len(ended.stdout.split())) == expected
