"""The referee on models whose log p(x) is exact, on every variant, and as a command."""

import dataclasses
import json
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import until
from test_evaluate import SIGMA, LinearGaussian, scorer
from test_train import tiny_splits, training

from glas_bench import ais, config, evaluate, registry
from glas_bench.ais import AISResult, Annealing, Bidirectional, decoder, referee, verdict
from glas_bench.ais.referee import Referee
from glas_bench.ais.verdict import Verdict
from glas_bench.config import RunConfig
from glas_bench.core import rollout
from glas_bench.data import Splits
from glas_bench.errors import UsageError
from glas_bench.model import LSTM, Glas, Linear, StandardUniform
from glas_bench.record import Partial, SeedFolder, read_checkpoint

pytestmark = pytest.mark.usefixtures("real_valued")


class Exact(LinearGaussian):
    """With images of its own to walk both ways on."""

    def draw_pixels(self, canvas_BP, noise_BP):
        return canvas_BP + SIGMA * noise_BP


class ExactUniform(Exact):
    """x ~ N(A (u_1 + u_2), SIGMA^2 I) with u uniform: the sum's density is a triangle."""

    bounds_nll = False

    def prior(self):
        return StandardUniform()

    def exact_nll(self, x_BP):
        sums = torch.linspace(0, 2, 20_001, dtype=torch.float64)
        canvas_NP = sums[:, None] * self.loading.detach().double()[:, 0]
        log_p_NB = torch.distributions.Normal(canvas_NP[:, None], SIGMA).log_prob(x_BP.double())
        density_N = (1 - (sums - 1).abs()) * (sums[1] - sums[0])
        return -(log_p_NB.sum(-1) + density_N.log()[:, None]).logsumexp(0)


class Stiff(Exact):
    """Loadings so large that a short walk cannot find the posterior."""

    def build_generation(self):
        super().build_generation()
        with torch.no_grad():
            self.loading.mul_(100)


SHORT = {"temperatures": 5, "chains": 4, "leapfrog": 2, "pilot": 16}
SHORTEST = {"temperatures": 2, "chains": 2, "leapfrog": 1, "pilot": 16}


@dataclasses.dataclass
class Seed:
    """A seed of a cell that was never trained."""

    model: Glas
    config: RunConfig
    splits: Splits
    seed: int
    folder: SeedFolder

    def referee(self, **how):
        return Referee(self.model, self.config, self.splits, self.seed, **how)

    def score(self, **how):
        """The scores as they are stored, with their key."""
        one = self.referee(**how)
        return {"seed": self.seed, "protocol_key": one.key, **referee.score_into(self.folder, one)}


def make(cls, folder, seed=0, splits=None, **sizes):
    """Its images have three pixels."""
    one = scorer(cls, 5, seed, **sizes)
    return Seed(one.model, one.config, splits or one.splits, seed, SeedFolder(folder, seed))


# --------------------------------------------------------------------------- exact models


@pytest.mark.parametrize(
    ("cls", "sizes"), [(Exact, {}), (ExactUniform, {"sample_size": 1})], ids=["normal", "uniform"]
)
def test_it_reaches_the_exact_value_within_its_error(cls, sizes, tmp_path):
    seed = make(cls, tmp_path, **sizes)
    row = seed.score(temperatures=60, leapfrog=4, pilot=32)
    exact_B = seed.model.exact_nll(seed.splits.test.images.float())
    values = seed.folder.per_image(row["protocol_key"])
    assert row["ais_status"] == "accepted", row
    assert row["images"] == 8
    assert row["ais_chain_error"] < 0.1
    assert abs(row["ais"] - float(exact_B.mean())) < 3 * row["ais_chain_error"]
    np.testing.assert_array_less(np.abs(values["ais"] - exact_B.numpy()), 4 * values["ais_error"])
    assert row["ais_error"] == pytest.approx(float(exact_B.std()) / math.sqrt(8), rel=0.2)
    assert row["ais"] == pytest.approx(values["ais"].mean())
    assert row["change"] == pytest.approx(row["ais"] - row["ais_half"])
    assert 0 < abs(row["change"]) < 0.2
    assert row["gap"] == pytest.approx(values["simulated_gap"].mean())
    assert abs(row["gap"]) < 0.2


def test_a_second_call_reads_back_and_fewer_images_are_the_same_numbers(tmp_path):
    seed = make(Exact, tmp_path)
    whole = seed.score(**SHORT)
    stored = tmp_path / "eval" / f"{whole['protocol_key']}.json"
    before = stored.stat().st_mtime_ns
    assert seed.score(**SHORT) == whole
    assert stored.stat().st_mtime_ns == before
    assert [path.name for path in stored.parent.iterdir()] == [stored.name]
    few = seed.score(images=3, **SHORT)
    assert few["protocol_key"] != whole["protocol_key"]
    all_of_it, some = (seed.folder.per_image(row["protocol_key"]) for row in (whole, few))
    drawn = evaluate.scored_images(8, 3).tolist()
    assert some["image"].tolist() == drawn != [0, 1, 2]
    for name in ("ais", "ais_half", "ais_error", "ais_spread"):
        np.testing.assert_allclose(some[name], all_of_it[name][drawn], rtol=1e-4, err_msg=name)
    assert make(Exact, tmp_path / "other", seed=1).score(**SHORT)["ais"] != whole["ais"]


class Killed(BaseException):
    """What no one catches."""


def test_a_killed_walk_goes_on_to_the_same_bits(tmp_path):
    """Killed again and again, each time some moves further on."""
    how = {**SHORT, "temperatures": 12, "chunk": 5}
    whole = make(Exact, tmp_path).referee(**how).score()
    at_once = make(Exact, tmp_path).referee(**{**how, "chunk": None})
    for name, value in at_once.score()[1].items():  # chunks change nothing
        np.testing.assert_allclose(value, whole[1][name], rtol=1e-4, atol=1e-4, err_msg=name)
    assert at_once.how.chunk == decoder.ROWS["cpu"] // 4
    deaths = 0

    def killing(model, looks):
        plain = type(model).log_likelihood

        def log_likelihood(canvas_BP, target_BP):
            nonlocal looks
            looks -= 1
            if not looks:
                raise Killed
            return plain(model, canvas_BP, target_BP)

        model.log_likelihood = log_likelihood

    while True:
        one = make(Exact, tmp_path).referee(**how)
        killing(one.model, 150)
        try:
            scores, values = one.score(Partial(tmp_path, one.key, every=0))
            break
        except Killed:
            deaths += 1
    assert deaths > 3
    assert scores["ais"] == whole[0]["ais"]
    for name, value in whole[1].items():
        assert np.array_equal(values[name], value), name
    assert scores["seconds"] > 0
    assert [path.name for path in tmp_path.glob("*.pt")] == [f"{one.key}.ais-5.partial.pt"]


def test_the_way_back_starts_where_the_images_came_from(tmp_path, monkeypatch):
    """Over images that the model makes, p(x) over the weight of a way back averages to 1."""
    splits = tiny_splits(pixels=3)
    many = dataclasses.replace(splits.test, images=torch.zeros(500, 3), labels=None)
    seed = make(Exact, tmp_path, splits=dataclasses.replace(splits, test=many))
    drawn, both = [], []
    draw, bidirectional = seed.model.draw_pixels, ais.bidirectional

    def drawing(canvas_BP, noise_BP):
        drawn.append(draw(canvas_BP, noise_BP))
        return drawn[-1]

    monkeypatch.setattr(seed.model, "draw_pixels", drawing)

    def walking(*arguments, **how):
        both.append(bidirectional(*arguments, **how))
        return both[-1]

    monkeypatch.setattr(ais, "bidirectional", walking)
    seed.referee(images=500, temperatures=6, chains=2, leapfrog=2, pilot=16).score()
    [x_BP], [found] = drawn, both
    ratio_B = (-seed.model.exact_nll(x_BP) - found.reverse.log_w_CB).exp().mean(0)
    error = float(ratio_B.std()) / math.sqrt(500)
    assert error < 0.1
    assert abs(float(ratio_B.mean()) - 1) < 3.5 * error


def test_soft_training_is_refereed_on_binary_images(tmp_path):
    plain = make(Exact, tmp_path / "a")
    test = dataclasses.replace(plain.splits.test, grey=torch.rand(8, 3))
    soft = dataclasses.replace(plain.splits, binarisation="soft", test=test)
    rows = [each.score(**SHORTEST) for each in (plain, make(Exact, tmp_path / "b", splits=soft))]
    assert rows[0]["ais"] == rows[1]["ais"]


# --------------------------------------------------------------------------- every variant


@pytest.mark.parametrize("name", registry.names())
def test_every_variant_can_be_refereed(name):
    """Its likelihood, as a function of noise, is finite and has the gradient that it seems to."""
    model = training(name, splits=tiny_splits(pixels=36)).model.double().eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias"):
                parameter.add_(0.3)
    x_BP = (torch.rand(2, 36, dtype=torch.float64) > 0.5).double()
    torch.manual_seed(0)
    noise = torch.randn(3, 2, model.steps * model.noise_size, dtype=torch.float64)
    look = decoder.log_likelihood_for(model)(x_BP)
    value_CB = look(noise.requires_grad_())
    (slope,) = torch.autograd.grad(value_CB.sum(), noise)
    assert value_CB.shape == (3, 2)
    assert bool(value_CB.isfinite().all())
    with torch.no_grad():
        way = torch.randn_like(noise)
        ahead, behind = (look(noise + h * way) for h in (1e-5, -1e-5))
    assert float(((ahead - behind).sum() / 2e-5 - (slope * way).sum()).abs()) < 1e-4
    assert float(slope.abs().max()) > 0

    with torch.no_grad():
        noise_TBZ = noise[1].view(2, model.steps, -1).transpose(0, 1)
        z_TBZ = rollout.sample_prior(model, noise_TBZ)
        plain_BP = rollout.generate(model, z_TBZ)
        if rollout.canvas_is_a_sum(model):
            torch.testing.assert_close(rollout.summed_canvas(model, z_TBZ), plain_BP)
        torch.testing.assert_close(value_CB[1], model.log_likelihood(plain_BP, x_BP))
        drawn = model.draw_pixels(plain_BP[:1].expand(20_000, -1), torch.randn(20_000, 36))
    assert set(drawn.unique().tolist()) == {0, 1}
    assert float((drawn.mean(0) - torch.sigmoid(plain_BP[0])).abs().max()) < 0.02
    assert decoder.simulates(model)
    paints = any(
        getattr(type(model), name) is not getattr(Glas, name) for name in ("paint", "generate")
    )
    assert rollout.canvas_is_a_sum(model) is not paints


class SeesItsCanvas(Glas):
    """The decoder reads what it has painted, beside z."""

    def build_generation(self):
        self.decoder = LSTM(self.settings.hidden, input=self.sample_size + self.pixels)
        self.write = Linear(self.settings.hidden, self.pixels)

    def decoder_input(self, generation, z_BZ, t):
        return torch.cat([z_BZ, torch.sigmoid(generation.canvas)], -1), generation.memory


class WithoutBias(Glas):
    """Its layer that paints has no bias."""

    def build_generation(self):
        super().build_generation()
        self.write = torch.nn.Linear(self.settings.hidden, self.pixels, bias=False)


@pytest.mark.parametrize("variant", [SeesItsCanvas, WithoutBias])
def test_a_canvas_that_is_no_plain_sum_is_painted_step_by_step(variant):
    settings = variant.Settings(steps=3, hidden=6, sample_size=2)
    model = rollout.build(variant, settings, 9, 0, 0).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert not rollout.canvas_is_a_sum(model)
    noise = torch.randn(3, 2, model.steps * model.noise_size, dtype=torch.float64)
    x_BP = (torch.rand(2, model.pixels, dtype=torch.float64) > 0.5).double()
    noise_TRZ = noise.reshape(6, model.steps, -1).transpose(0, 1)
    canvas_RP = rollout.generate(model, rollout.sample_prior(model, noise_TRZ))
    wanted = model.log_likelihood(canvas_RP, x_BP.repeat(3, 1)).view(3, 2)
    torch.testing.assert_close(decoder.log_likelihood_for(model)(x_BP)(noise), wanted)


def test_less_memory_makes_smaller_chunks(monkeypatch):
    model = training("cauchy").model

    def images_at_once(memory, steps=3):
        monkeypatch.setattr(decoder, "MEMORY_ON_CPU", memory)
        model.steps = steps
        return decoder.images_at_once(model, torch.zeros(1, 20), Annealing(chains=4))

    assert images_at_once(decoder.MEMORY_ON_CPU) == decoder.ROWS["cpu"] // 4
    growth = images_at_once(2**18, steps=4) / images_at_once(2**18, steps=16)
    assert 2.5 < growth < 4.5, "what a gradient keeps grows with time"
    assert images_at_once(1) == 1


# --------------------------------------------------------------------------- the verdict


def test_a_hopeless_schedule_is_refused_and_says_what_to_raise(tmp_path):
    row = make(Stiff, tmp_path).score(**{**SHORT, "temperatures": 3})
    assert row["ais_status"] == "refused"
    assert "3 and 6 temperatures differ by" in row["problems"][0]
    assert "leave a gap of" in row["problems"][1]
    assert row["images_apart"]
    assert row["advice"][0].startswith("raise --temperatures from 3 to ")
    wanted = int(row["advice"][0].split()[-1])
    assert wanted >= 3 * row["gap"] / 0.5
    text = verdict.scores_text([row])
    assert "seed 0: refused: 3 and 6" in text
    assert f"to mend it, raise --temperatures from 3 to {wanted}" in text


def test_without_simulated_images_it_is_refused(tmp_path):
    row = make(LinearGaussian, tmp_path).score(**SHORTEST)
    assert row["ais_status"] == "refused"
    assert row["gap"] is None
    for lines in (row["problems"], row["advice"]):
        assert any("draw_pixels" in line for line in lines)
    assert "refused" in verdict.scores_text([row])


def results(log_p_B, spread=0.5):
    log_p_B = torch.as_tensor(log_p_B, dtype=torch.float64)
    like = torch.full_like(log_p_B, spread)
    return AISResult(log_p_B, like / 4, log_p_B.expand(4, -1), like, like, like.expand(16, -1))


def judged(change, gap, spread=0.5, wobble=0.0, images=20):
    off_B = wobble * torch.linspace(-1, 1, images)
    once, again = results(-100 - change + off_B, spread), results(-100 + 0 * off_B, spread)
    gap_B = (gap + off_B).double()
    error = float(gap_B.std()) / math.sqrt(images)
    both = Bidirectional(again, again, gap_B, float(gap_B.mean()), error)
    how = Annealing(temperatures=1000, chains=16)
    return Verdict(how, torch.arange(images) * 3, 500, once, again, both).scores()


@pytest.mark.parametrize(
    ("change", "gap", "status"),
    [
        *((c, g, "accepted") for c, g in ((0.49, 0.49), (-0.49, -0.49))),
        *((c, 0.1, "refused") for c in (0.51, -0.51, math.inf)),
        *((0.1, g, "refused") for g in (0.51, -0.51, math.inf)),
    ],
)
def test_both_conditions_must_hold(change, gap, status):
    assert judged(change, gap)["ais_status"] == status


def test_advice_is_a_number():
    few = judged(0.2, 2.0, spread=3.0)
    assert few["advice"] == ["raise --temperatures from 1000 to 4800"]
    alike = judged(1.0, 0.2)
    assert alike["advice"] == ["raise --temperatures from 1000 to 2400, or --chains from 16 to 39"]
    noisy = judged(0.1, 0.6, spread=3.0, wobble=4.0)
    assert noisy["gap_error"] == pytest.approx(0.557, abs=0.001)
    assert noisy["advice"][1] == "raise --images from 20 to 400: the gap may be chance"
    assert judged(0.1, 0.3)["advice"] == []
    one = judged(0.1, 0.3, wobble=1.0)
    assert one["ais_status"] == "accepted"
    change_B = 0.1 - torch.linspace(-1, 1, 20)
    assert one["images_apart"] == [3 * i for i in range(20) if abs(change_B[i]) > 0.5]
    json.dumps(judged(math.inf, math.inf), allow_nan=False)


def test_ais_is_paired_with_the_run_s_own_estimates(tmp_path):
    folder = SeedFolder(tmp_path, 0)

    def paired(stored, images, ais, scored=range(41)):
        folder.save_scores("own", {}, stored)
        where = np.array(scored), np.array(images)
        return verdict.paired(folder, "own", *where, np.array(ais, dtype=float))

    all_of_it = np.linspace(80, 120, 41)
    stored = {"iw": all_of_it, "nll": all_of_it - 1, "elbo": all_of_it + 9, "refit_iw": np.ones(3)}
    images = [3, 10, 30]
    found = paired(stored, images, all_of_it[images] - [1, 2, 3])
    assert set(found) == {"iw", "nll"}
    assert found["iw"]["difference"] == pytest.approx(-2)
    assert found["iw"]["error"] == pytest.approx(1 / math.sqrt(3))
    assert found["iw"]["corrected"] == found["nll"]["corrected"] == pytest.approx(98)
    infinite = {"iw": np.where(all_of_it > 119, np.inf, all_of_it)}
    assert paired(infinite, images, all_of_it[images])["iw"]["corrected"] is None

    some, scored = {"iw": np.array([90.0, 91, 92, 93, 94])}, [2, 3, 10, 25, 30]
    found = paired(some, [3, 7, 30], [90, 1, 92], scored)
    assert found["iw"]["difference"] == pytest.approx(-1.5)  # image 7 was not scored
    assert found["iw"]["corrected"] == pytest.approx(90.5)
    assert paired(some, [7], [1], scored) == {}


def test_scores_that_come_after_ais_are_set_beside_it(tmp_path):
    seed = make(Exact, tmp_path)
    before = seed.score(**SHORTEST)
    assert before["paired"] == {}
    ais = seed.folder.per_image(before["protocol_key"])["ais"]
    own = config.protocol_key(evaluate.protocol(seed.config))
    seed.folder.save_scores(own, {}, {"nll": ais + np.arange(8) / 7})
    after = seed.score(**SHORTEST)
    assert after["paired"]["nll"]["difference"] == pytest.approx(-0.5)
    stored = seed.folder.scores(before["protocol_key"])
    assert stored["paired"] == after["paired"]
    assert stored["time"] == before["time"], "it is the same scoring"
    assert seed.score(**SHORTEST) == after


def test_the_images_of_ais_are_among_those_that_a_run_scores():
    few, some = (set(evaluate.scored_images(10_000, n).tolist()) for n in (20, 2000))
    assert few < some < set(evaluate.scored_images(10_000, "all").tolist())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"images": 9}, r"--images 9: give 1 to 8, the images of the test split"),
        ({"images": 0}, "--images 0: give 1 to 8"),
        ({"temperatures": 1}, "--temperatures 1: give 2 or more"),
        ({"chains": 1}, "--chains 1: give 2 or more"),
        ({"leapfrog": 0}, "--leapfrog 0: give 1 or more"),
    ],
)
def test_numbers_that_cannot_be(wrong, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        make(Exact, tmp_path).referee(**wrong)


class Nowhere(Exact):
    """No canvas allows any image."""

    def log_likelihood(self, canvas_BP, target_BP):
        return super().log_likelihood(canvas_BP, target_BP) * math.nan

    def draw_pixels(self, canvas_BP, noise_BP):
        return canvas_BP


def test_a_likelihood_that_is_no_number_is_a_finding(tmp_path):
    with pytest.raises(evaluate.NotFinite, match="cannot be refereed"):
        make(Nowhere, tmp_path).score(**SHORTEST)


# --------------------------------------------------------------------------- the command

TINY = ["--set", "steps=2", "--set", "hidden=8", "--set", "epochs=1", "--set", "samples=5"]
RUN = ["run", "--variant", "cauchy", "--preset", "smoke", *TINY, "--no-mirror", "--json"]
AIS = ["--estimator", "ais", "--images", "3", "--chains", "4"]


def moves_in(path):
    """The moves that half-done work amounts to."""
    return sum((read_checkpoint(path) or {"moves": {}})["moves"].values())


def test_the_command_referees_stops_and_goes_on(glas):
    ended = glas.here(*RUN)
    assert ended.code == 0, ended.err
    key, folder = ended.json["config_key"], Path(ended.json["folder"]) / "seed-0"
    command = ["evaluate", key, *AIS, "--temperatures", "20", "--json"]
    whole = glas.here(*command)
    assert whole.code == 0, whole.err
    [row] = whole.json["seeds"]
    assert row["estimator"] == "ais"
    assert row["protocol"]["temperatures"] == 20
    assert set(row["paired"]) >= {"iw"}
    assert "about" in whole.err
    values = SeedFolder(folder, 0).per_image(row["protocol_key"])
    assert row["ais"] == pytest.approx(values["ais"].mean())
    assert glas.here(*command).json == whole.json, "read back"
    text = glas.here(*[part for part in command if part != "--json"]).out
    assert f"{row['ais']:.2f}" in text
    assert "ais less iw" in text

    stored = folder / "eval" / f"{row['protocol_key']}.json"
    stored.unlink()
    partial = stored.with_suffix(".ais-160.partial.pt")  # all images fit into one chunk
    process = glas.start(*command, GLAS_BENCH_CHECKPOINT_SECONDS=0)
    until(lambda: moves_in(partial) > 0, process)
    process.send_signal(signal.SIGTERM)
    stopped = glas.ended(process)
    assert stopped.code == 75, stopped.err
    assert stopped.out == ""
    assert "the same command resumes" in stopped.err
    assert partial.exists()
    assert not stored.exists()
    again = glas.here(*command)
    assert "done before" in again.err
    assert again.json["seeds"][0]["ais"] == row["ais"]
    assert not partial.exists()

    both = glas.here("evaluate", key, "--estimator", "iw,ais", *AIS[2:], "--temperatures", "20")
    assert both.code == 0, both.err
    assert "iw, K=5" in both.out
    assert "ais less iw" in both.out
    wrong = ["--images 0", "--temperatures 1", "--temperatures many", "--chains 1", "--images 501"]
    for option in wrong:
        refused = glas.here("evaluate", key, "--estimator", "ais", *option.split())
        assert refused.code == 2, option
        assert "Traceback" not in refused.err
    assert "give 1 to 500" in refused.err
    unknown = glas.here("evaluate", key, "--estimator", "iw,aiss")
    assert unknown.code == 2
    assert "Did you mean 'ais'" in unknown.err
    assert os.environ.get("GLAS_BENCH_CHECKPOINT_SECONDS") is None


@pytest.mark.gpu
def test_a_gpu_referees_too(tmp_path):
    plain = make(Exact, tmp_path / "cpu")
    there = make(Exact, tmp_path / "gpu", splits=plain.splits.to("cuda"))
    there.model.to("cuda")
    rows = [each.score(temperatures=60, leapfrog=4, pilot=32) for each in (plain, there)]
    assert rows[1]["ais_status"] == "accepted"
    assert abs(rows[0]["ais"] - rows[1]["ais"]) < 3 * rows[0]["ais_chain_error"]
