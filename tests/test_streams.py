"""Noise by address: the published generator, its laws, and what it must not depend on."""

import itertools
import math

import numpy as np
import pytest
import torch
from conftest import needs_compiler
from scipy import stats as scipy_stats

from glas_bench.core import streams
from glas_bench.ops import programs


def words(key, counter, block=0):
    found = streams._philox(torch.tensor([counter]), torch.tensor(key), block)
    return [int(word) for word in found]


def test_it_is_philox():
    """Known answers of the authors' Random123 1.14 for philox4x32-10 with a zero counter and key;
    the others are numpy-free evaluations of the same recurrence in Python's own integers."""
    assert words(0, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    for key, counter, block in ((1, 0, 0), (2**62 + 12345, 7, 3), (2**63 - 1, 3, 2**32 - 1)):
        assert words(key, counter, block) == reference(key, counter, block)


@needs_compiler
@pytest.mark.filterwarnings("default")  # the compiler's own
def test_it_is_philox_compiled_too_for_any_number_of_counters():
    philox = programs.compiled(streams._philox, True, any_size=True)
    keys, block = torch.tensor([3, 2**62 + 12345, 2**63 - 1]), torch.tensor(2**32 - 1)
    for count in (70, 130):
        at = streams.counters(count, keys.device)
        for word, exact in zip(
            philox(at, keys, block), streams._philox(at, keys, block), strict=True
        ):
            assert torch.equal(word, exact)


def reference(key, counter, block):
    c, k = [counter, 0, block, 0], [key & 0xFFFFFFFF, key >> 32]
    for _ in range(10):
        first, second = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [
            (second >> 32) ^ c[1] ^ k[0],
            second & 0xFFFFFFFF,
            (first >> 32) ^ c[3] ^ k[1],
            first & 0xFFFFFFFF,
        ]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def test_normals_are_normal():
    noise = streams.normal((1_000_000,), 0, "law").double()
    assert scipy_stats.kstest(noise.numpy(), "norm").pvalue > 1e-3
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        values = noise**power
        error = float(values.std()) / math.sqrt(len(noise))
        assert abs(float(values.mean()) - moment) < 4 * error
    for lag in (1, 2, 3, 4, 1000):
        assert abs(float((noise[lag:] * noise[:-lag]).mean())) < 4 / math.sqrt(len(noise))


def test_a_number_depends_on_its_address_alone():
    draw = streams.normals
    keys = streams.keys(3, "address", range(5))
    whole = draw(keys, 10, 7)
    assert whole.shape == (5, 10)
    np.testing.assert_array_equal(draw(keys, 3, 7), whole[:, :3])
    np.testing.assert_array_equal(draw(keys[2], 10, 7), whole[2])
    blocks = torch.tensor([7, 8, 9, 10, 11])
    each = draw(keys, 10, blocks)
    np.testing.assert_array_equal(each[0], whole[0])
    np.testing.assert_array_equal(each[3], draw(keys[3], 10, 10))
    assert not (each[1:] == whole[1:]).any()


def test_streams_of_other_names_are_apart():
    names = [(0, "a", 1), (0, "a", 2), (1, "a", 1), (0, "b", 1), (0, "a", 1, 0)]
    found = [streams.normal((64,), *name) for name in names]
    for one, other in itertools.combinations(found, 2):
        assert not torch.equal(one, other)
        assert abs(float((one * other).mean())) < 4.5 / 8
    assert torch.equal(streams.normal((4, 16), 0, "a", 1).flatten(), found[0])


def test_it_runs_under_vmap():
    keys = streams.keys(0, "vmap", range(3))
    mapped = torch.func.vmap(lambda key, block: streams.normals(key, 5, block))
    blocks = torch.tensor([0, 4, 9])
    np.testing.assert_array_equal(mapped(keys, blocks), streams.normals(keys, 5, blocks))


@pytest.mark.gpu
def test_a_gpu_draws_the_same_numbers():
    keys = streams.keys(0, "device", range(4))
    here, there = streams.normals(keys, 1000, 3), streams.normals(keys.cuda(), 1000, 3).cpu()
    np.testing.assert_allclose(there, here, rtol=1e-5, atol=1e-6)
