"""The bench: what it counts, what it compares with, what it prints."""

import csv
import dataclasses
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from glas_bench import registry
from glas_bench.commands import bench

SCRIPT = Path(__file__).parents[1] / "results" / "bench" / "growth.py"


@pytest.fixture
def growth():
    """The script that measures how cost grows."""
    spec = importlib.util.spec_from_file_location("growth", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def case(**about):
    given = {"variant": "cauchy", "steps": 2, "hidden": 16, "batch": 4, "seeds": 1}
    return bench.Case(**given | about, precision="fp32", device="cpu")


def test_operations_are_those_of_the_layers_products():
    variant = registry.find("cauchy")
    steps, hidden, batch, z = 5, 16, 4, 25
    one = case(steps=steps, hidden=hidden, batch=batch).config(variant)
    found = bench.count_work(variant, one)
    gates = 4 * hidden
    products = (
        (784 + 2 * hidden) * gates + (z + hidden) * gates + hidden * 784 + hidden * 5 + 2 * z * 25
    )
    attention = 2 * (5 * 9 * 9 + 5 * 9 * 5)  # what is read: it has no weights but one
    a_step = 3 * 2 * batch * products
    assert found["flops"] == pytest.approx(steps * a_step + 2 * 2 * batch * 784 * gates, rel=0.15)
    longer = bench.count_work(variant, case(steps=2 * steps).config(variant))
    assert longer["flops"] - found["flops"] == pytest.approx(
        steps * (a_step + batch * attention * 3), rel=0.05
    )
    assert longer["bytes"] > found["bytes"]


def test_the_loops_train_the_same_model_with_the_operations_they_are_said_to_have():
    resolved = case(steps=3).config(registry.find("cauchy"))
    spent = {}
    for once in (True, False):
        torch.manual_seed(0)
        loop = bench.Loop(resolved, "cpu", once)
        with FlopCounterMode(display=False) as counter:
            first = float(loop.loss(loop.images[:4].float()).detach())
        spent[once] = counter.get_total_flops()
        for _ in range(30):
            loop.step()
        assert first == pytest.approx(784 * 0.693, rel=0.05)
        assert float(loop.loss(loop.images[:4].float()).detach()) < first - 10
    # beside one product with x at each of the further steps they differ in nothing
    assert spent[False] - spent[True] == 2 * 4 * 784 * 4 * 16 * 2


def test_captured_products_are_those_of_all_seeds():
    left, right = torch.randn(3, 4, 5), torch.randn(3, 5, 6)
    program = bench.captured_products(left, right, repeats=7)
    with FlopCounterMode(display=False) as counter:
        program()  # not captured on a CPU
    assert program.way == "eager"
    assert counter.get_total_flops() == 3 * 7 * 2 * 4 * 5 * 6


@pytest.mark.gpu
def test_a_gpu_is_measured_beside_its_ceilings():
    row = bench.measure(dataclasses.replace(case(seeds=2), device="cuda"))
    assert row["way"] == "captured"
    assert row["large_matmul_ceiling"] > row["matmul_ceiling"] > row["gflop_per_second"] > 0
    assert min(row[f"ratio_to_{name}"] for name in bench.LOOPS) > 0


def test_the_command_measures_and_prints_one_document(bare_glas):
    ended = bare_glas(
        "bench", "--steps", 2, "--hidden", 16, "--batch", 4, "--seeds", "1,2", "--json"
    )
    assert ended.code == 0, ended.err
    rows = ended.json["cases"]
    assert [(row["steps"], row["seeds"]) for row in rows] == [(2, 1), (2, 2)]
    for row in rows:
        assert row["precision"] == "fp32"
        assert row["images_per_second"] == pytest.approx(4 * row["seeds"] / row["seconds_per_step"])
        assert row["ratio_to_reference"] > 0
        assert row["ratio_to_plain"] > 0
        share = row["limit_seconds"] / row["seconds_per_step"]
        assert row["share_of_limit"] == pytest.approx(share)
        assert row["peak_memory_bytes"] > 2**20
        assert row["limit_seconds"] > 0
    assert bench.table(rows).split()[:6] == ["T", "S", "precision", "x", "reference", "x"]


def test_growth_is_fitted_and_drawn(growth, tmp_path, monkeypatch, capsys):
    sizes = {"STEPS": (2, 3), "SEEDS": (1, 2), "HIDDEN": (8, 16), "SAMPLES": (2, 4)}
    for name, values in sizes.items():
        monkeypatch.setattr(growth, name, values)
    monkeypatch.setenv("GLAS_BENCH_CORES", "1")
    monkeypatch.setattr(bench, "SECONDS", 0.0)
    sizes = ["--steps", "2", "--hidden", "8", "--batch", "4"]
    monkeypatch.setattr(sys, "argv", ["growth.py", *sizes, "--folder", str(tmp_path)])
    growth.main()
    head, *rows = csv.reader((tmp_path / "growth.csv").read_text().splitlines())
    assert head == ["varied", "size", "work", "seconds", "line_seconds", "miss"]
    assert [row[0] for row in rows] == ["T", "T", "S", "S", "H", "H", "K", "K"]
    assert all(abs(float(row[-1])) < 1e-6 for row in rows)  # a line goes through any two points
    assert (tmp_path / "growth.png").stat().st_size > 5000
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(rows)


def test_the_distance_from_the_line_is_relative(growth):
    rows = [{"work": work, "seconds": seconds} for work, seconds in ((1, 3.0), (2, 3.0), (3, 6.0))]
    growth.fit(rows)  # y = 1 + 1.5 x
    assert [row["line_seconds"] for row in rows] == pytest.approx([2.5, 4.0, 5.5])
    assert [row["miss"] for row in rows] == pytest.approx([0.2, -0.25, 1 / 11])


def test_a_variant_that_diverges_cannot_be_timed(glas):
    done = glas("bench", "--variant", "grid", "--steps", "2", "--hidden", "16", "--no-reference")
    assert done.code == 2
    assert "diverged at step 0" in done.err
    assert "Traceback" not in done.err
