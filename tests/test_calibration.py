"""Whether our estimators agree with one another where one of them is an upper bound of log p(x).

That the pixel-wise Bernoulli scores the field's 205.79 is in test_data; exact answers of
linear-Gaussian decoders are in test_evaluate, test_refit, test_ais and test_referee.
"""

import math

import numpy as np
import pytest
import torch
from test_train import local

from glas_bench import ais, config, data, registry
from glas_bench.ais.annealing import Annealing
from glas_bench.ais.decoder import latents, log_likelihood_for
from glas_bench.core import rollout, train
from glas_bench.record import Partial
from glas_bench.yardstick import refit
from glas_bench.yardstick.weights import Images, Weigher

SIMULATED = 12


def trained(name):
    """Return a small model after 60 steps on the digits."""
    variant = local(registry.find(name).cls)
    sizes = {"steps": 2, "hidden": 16, "sample_size": 3, "latent_size": 4, "filter_size": 2}
    own = variant.cls.Settings.model_fields
    values = {k: v for k, v in sizes.items() if k in own}
    resolved = config.resolve(variant, preset="smoke", overrides={**values, "learning_rate": 5e-3})
    splits = data.load("mnist-5k")
    run = train.Training(variant, resolved, splits, 0)
    for _ in range(60):
        run.step()
        if run.at.batch == run.steps_per_epoch:
            run.end_epoch()
    return run.model.eval(), resolved, splits


@pytest.mark.parametrize("name", ["cauchy", "uniform-kl"])
def test_lower_estimates_of_simulated_images_stay_below_the_upper_one(name):
    """Forward AIS, own q and refitted q against the way back from the exact latents (BDMC)."""
    model, resolved, splits = trained(name)
    how = Annealing(chains=8, temperatures=60, pilot=32)
    size = model.steps * model.noise_size
    uniform = torch.rand(SIMULATED, 784, generator=torch.Generator().manual_seed(3))

    def simulate(z_BD, normals):
        with torch.no_grad():
            return (
                uniform < torch.sigmoid(rollout.generate(model, latents(model, z_BD[None])))
            ).float()

    both = ais.bidirectional(log_likelihood_for(model), simulate, size, SIMULATED, how)
    z_BD, x = ais.simulated(simulate, size, range(SIMULATED), how)
    torch.testing.assert_close(
        log_likelihood_for(model)(x)(z_BD[None])[0],
        model.log_likelihood(rollout.generate(model, _steps(model, z_BD)), x),
    )
    upper = both.reverse.log_p_B.numpy()
    error = both.reverse.error_B.numpy()
    images = Images(x, None, tuple(range(SIMULATED)))
    own = Weigher(0, "own", "own", 500, lambda _: lambda _: model)(images, Partial())
    budget = refit.Budget(share=2.0)
    fit = refit.Fit(model, resolved, splits, 0, images, budget)
    recogniser = fit.run("fit", Partial(), lambda *_: None)
    weigher = refit.weigher(recogniser, 0, "refit", "refit", 500, budget, 1000)
    refitted = weigher(images, Partial())
    for lower in (both.forward.log_p_B.numpy(), -own["iw"], -refitted["iw"]):
        difference = upper - lower
        spread = difference.std(ddof=1) / math.sqrt(SIMULATED)
        assert difference.mean() > -3 * spread - 0.05
        assert (difference > -5 * error - 0.5).all()
    assert abs(both.gap) < 0.5
    assert np.mean(upper + refitted["iw"]) < 2, "neither is far off: the comparison says something"


def _steps(model, z_BD):
    noise_TBZ = z_BD.reshape(len(z_BD), model.steps, model.noise_size).transpose(0, 1)
    return rollout.sample_prior(model, noise_TBZ)
