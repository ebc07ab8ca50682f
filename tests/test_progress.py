"""What the displays say of every kind of event that training, scoring and the referee send."""

import pytest

from glas_bench import display as progress

EVENTS = [
    {"event": "train", "done": 3, "total": 62, "epoch": 1, "epochs": 2, "images_per_second": 900.0}
    | {"seconds_left": 61.0},
    {"event": "epoch", "epoch": 1, "epochs": 2, "objective": 207.5, "validation": None}
    | {"validation_kind": "elbo", "images_per_second": 900.0, "seconds": 5.0},
    {"event": "score", "stage": "own-q", "done": 20, "total": 500},
    {"event": "score", "stage": "annealing", "done": 7, "total": 90, "seconds_left": 3700.0},
    {"event": "note", "text": "about 2:00 ahead"},
    {"event": "end", "status": "failed", "reason": "no disk"},
]


@pytest.fixture
def always_due(monkeypatch):
    monkeypatch.setattr(progress.Display, "EVERY", -1.0)


def test_lines(always_due, capsys):
    with progress.Display() as display:
        for event in EVENTS:
            display.show("cauchy seed 0", event)
    lines = [line.removeprefix("cauchy seed 0: ") for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "training, 3 of 62",
        "epoch 1/2, objective 207.50, validation elbo -, 900 images/s, 5 s left",
        "scoring, own-q, 20 of 500",
        "scoring, annealing, 7 of 90, 1:01:40 left",
        "about 2:00 ahead",
        "failed: no disk",
    ]


def test_bars(capsys):
    with progress.Bars() as display:
        for event in EVENTS:
            display.show("cauchy seed 0", event)
    printed = capsys.readouterr().err
    assert "about 2:00 ahead" in printed
    assert "failed: no disk" in printed


@pytest.mark.parametrize("width", [60, 80, 130])
def test_bars_fit_their_terminal(width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    names = ["cauchy seed 0", "a-variant-of-mine-with-quite-a-long-name seed 12"]
    with progress.Bars() as display:
        for name in names:
            display.show(name, EVENTS[0])
        display.show("third seed 1", {"event": "end", "status": "failed", "reason": "word " * 40})
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3  # a line each: nothing wraps
    assert max(map(len, lines)) <= width
    assert all("epoch 1/2  1:01 left" in line for line in lines[:2])
    assert "seed 12 " in lines[1]
