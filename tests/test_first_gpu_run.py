"""The script of a first quarter of an hour on a GPU, rehearsed on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import Ended

SCRIPT = Path(__file__).parents[1] / "scripts" / "first_gpu_run.sh"


def call(folder, *arguments, **environment):
    """Run a call; return how it ended, its document and its page."""
    places = ["--out", folder / "out", "--work", folder / "work"]
    ended = subprocess.run(
        ["bash", SCRIPT, *map(str, [*places, *arguments])],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable, **environment},
        cwd=folder,
    )
    assert "Traceback" not in ended.stdout + ended.stderr
    found = folder / "out" / "first_gpu_run.json"
    document = json.loads(found.read_text()) if found.is_file() else None
    page = found.with_suffix(".md").read_text() if document else ""
    return Ended(ended.returncode, ended.stdout, ended.stderr), document, page


def test_a_rehearsal_goes_through_all_calls(tmp_path, packed):
    for number, steps in (
        (1, ["versions", "small", "ceilings", "prepare S=2 fp32", "tests"]),
        (2, ["train", "export"]),
        (3, ["score"]),
    ):
        ended, document, page = call(tmp_path, number, "--rehearse")
        assert ended.code == 0, ended
        found = document["calls"][str(number)]
        assert [step["name"] for step in found["steps"]][: len(steps)] == steps
        printed = (ended.out + ended.err).splitlines()
        assert len(printed) == len(found["steps"]) + 1  # a line a step, and the page
    assert "A rehearsal on a CPU" in page
    first, second, third = document["calls"].values()
    assert " skipped" in first["tests"]
    for one in first["prepared"].values():
        assert one["ways"] == {"2": "compiled", "3": "compiled"}
        assert 0 < one["gates"]["compiled against float64"] < 1e-5
    assert {"milliseconds", "images_per_second", "peak_memory_gib"} <= set(
        first["measured"]["S=2 fp32"]
    )
    assert second["run"]["exit_code"] == 75
    seed = second["export"]["seeds"]["0"]
    assert seed["steps"] > 0
    assert len(seed["metrics"]) == seed["epochs"]
    assert 0 < third["score"]["seed-0"]["iw"] < 784 * 0.693  # of even pixels
    carried = [path.stat().st_size for path in (tmp_path / "out").iterdir()]
    assert len(carried) <= 8
    assert max(carried) < 2**24


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without a GPU")
def test_without_a_gpu_it_stops_and_says_why(tmp_path):
    ended, document, page = call(tmp_path, 1)
    assert ended.code == 1
    (problem,) = document["calls"]["1"]["problems"]
    assert "sees no CUDA device" in problem
    assert problem in page
    assert [step["name"] for step in document["calls"]["1"]["steps"]] == ["versions"]
    ended, *_ = call(tmp_path, 3)
    assert ended.code == 1
    assert "call 2 writes them" in ended.out + ended.err


def test_a_step_that_takes_too_long_costs_itself_alone(tmp_path):
    ended, document, _ = call(tmp_path, 1, "--rehearse", "--seconds", "5.3")
    assert ended.code == 1
    assert "versions: FAILED: not done in 0 s" in ended.out + ended.err
    assert document["calls"]["1"]["steps"][0]["seconds"] < 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: call"),
        ([4], "invalid choice"),
        ([1, "--seconds", "-1"], "invalid positive value: '-1'"),
        ([1, "--out", "/proc/none"], "cannot be written"),
    ],
)
def test_wrong_arguments_are_refused(arguments, words, tmp_path):
    ended, *_ = call(tmp_path, *arguments)
    assert ended.code == 2
    assert words in ended.err


def test_missing_wheels_are_named(tmp_path):
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    ended, *_ = call(tmp_path, 1, PYTHON=str(bare), WHEELS=str(tmp_path))
    assert ended.code == 1
    assert "pydantic is missing" in ended.out + ended.err
