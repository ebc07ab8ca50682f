"""A user's own images: how they are read and split, and every command on them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data import refused

from glas_bench import data, registry, study
from glas_bench.data import images, parse
from glas_bench.errors import UsageError
from glas_bench.runs.cost import core_hours

RANDOM = np.random.RandomState(0)
DIGITS = RANDOM.randint(0, 256, (120, 20, 20), np.uint8)
SMALL = [
    *("--preset", "smoke", "--set", "epochs=1", "--set", "steps=2", "--set", "hidden=8"),
    *("--set", "samples=2", "--set", "batch=32"),
]


def saved(folder, name, array):
    np.save(folder / name, array)
    return folder / name


def pictures(folder, array):
    from PIL import Image

    folder.mkdir(parents=True)
    for i, image in enumerate(array):
        Image.fromarray(image).save(folder / f"{i:04}.png")
    return folder


@settings(max_examples=15, deadline=None)
@given(st.integers(50, 200), st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_one_array_is_split_without_loss(tmp_path_factory, count, height, width, binary):
    array = RANDOM.randint(0, 2 if binary else 256, (count, height, width))
    array[0, 0, 0], array[1, 0, 0] = 0, 1 if binary else 255
    arrays = images.read(saved(tmp_path_factory.mktemp("own"), "own.npy", array))
    split = [arrays[f"{name}.grey"] for name in parse.SPLITS]
    assert [*arrays["shape"]] == [height, width]
    assert [len(part) for part in split] == [count - 2 * (count // 10), *[count // 10] * 2]
    whole, expected = np.concatenate(split), array.reshape(count, -1)
    assert sorted(map(tuple, whole)) == sorted(map(tuple, expected))
    if binary:  # nothing is drawn
        bits = np.unpackbits(arrays["test.bits"], axis=1, count=height * width)
        assert np.array_equal(bits, arrays["test.grey"])


def test_splits_of_their_own_stay_and_all_forms_agree(tmp_path):
    parts = dict(zip(parse.SPLITS, np.split(DIGITS, [80, 100]), strict=True))
    np.savez(tmp_path / "own.npz", **parts)
    loaded = data.load("images", data_file=tmp_path / "own.npz")
    assert (loaded.pixels, loaded.image_shape) == (400, (20, 20))
    assert torch.equal((loaded.train.images * 255).round(), torch.tensor(parts["train"]).flatten(1))
    for name, part in parts.items():
        pictures(tmp_path / "folders" / name, part)
    assert data.load("images", data_file=tmp_path / "folders").hash == loaded.hash

    whole = data.load("images", "static", saved(tmp_path, "whole.npy", DIGITS))
    forms = [
        pictures(tmp_path / "flat", DIGITS),
        saved(tmp_path, "floats.npy", DIGITS.astype(float)),  # whole numbers to 255
        saved(tmp_path, "channel.npy", DIGITS[:, None]),
    ]
    assert {data.load("images", "static", path).hash for path in forms} == {whole.hash}


def test_a_changed_picture_is_read_again(tmp_path):
    folder = pictures(tmp_path / "flat", DIGITS[:60])
    before = data.load("images", data_file=folder).hash
    pictures(tmp_path / "flat" / "deeper", DIGITS[:1])  # in a folder that is no split
    assert data.load("images", data_file=folder).hash == before
    (folder / "0000.png").write_bytes((folder / "0001.png").read_bytes())
    assert data.load("images", data_file=folder).hash != before


WRONG = {
    "expected [N, height, width]": DIGITS.reshape(120, -1),
    "[60, 20, 20, 3]": np.stack([DIGITS[:60]] * 3, -1),
    "too few": DIGITS[:9],
    "from -1 to 1; expected 0 to 255": DIGITS.astype(float) / 127.5 // 1 - 1,
    "from 0 to 1.5; expected 0 to 1": np.linspace(0, 1.5, 960).reshape(60, 4, 4),
    "nan": np.full((60, 4, 4), np.nan),
    "blank": np.zeros((60, 4, 4)),
    "complex": DIGITS * 1j,
    "empty": np.zeros((60, 0, 4)),
    "allow_pickle": np.array([{}], object),
}


@pytest.mark.parametrize("words", WRONG)
def test_an_array_that_cannot_be_used_is_refused(words, tmp_path):
    path = saved(tmp_path, "own.npy", WRONG[words])
    refused(UsageError, "own.npy", words, name="images", data_file=path)


@pytest.mark.parametrize(
    ("mode", "about", "words"),
    [
        ("I;16", {}, "has 16 bits a pixel; expected 8, values from 0 to 255: rescale it"),
        *((mode, {}, "has transparent pixels") for mode in ("LA", "RGBA")),
        *((mode, {"transparency": 0}, "has transparent pixels") for mode in ("1", "L", "P")),
    ],
)
def test_a_picture_that_8_bits_of_grey_do_not_hold_is_refused(mode, about, words, tmp_path):
    from PIL import Image

    folder = pictures(tmp_path / "own", DIGITS[:60])
    odd = Image.fromarray(DIGITS[60]).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        odd = Image.fromarray(DIGITS[60].astype(np.uint16) * 257)
    if mode in ("LA", "RGBA"):
        odd.save(folder / "opaque.png")
        assert len(images.read(folder)["train.grey"]) == 49
        odd.putpixel((3, 3), (*[200] * (len(mode) - 1), 254))
    odd.save(folder / "odd.png", **about)
    refused(UsageError, "odd.png", words, name="images", data_file=folder)


def test_files_and_folders_that_cannot_be_used_are_refused(tmp_path):
    np.savez(tmp_path / "half.npz", train=DIGITS, test=DIGITS)
    np.savez(tmp_path / "sizes.npz", train=DIGITS, validation=DIGITS, test=DIGITS[:, 1:])
    (tmp_path / "broken.npz").write_text("hello")
    (tmp_path / "none").mkdir()
    pictures(tmp_path / "some" / "train", DIGITS[:3])
    pictures(tmp_path / "mixed", DIGITS[:3])
    (pictures(tmp_path / "low", DIGITS[:1, :5]) / "0000.png").rename(tmp_path / "mixed" / "z.png")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "a.png").write_bytes(b"\x89PNG")
    expected = {
        "half.npz": "without validation",
        "sizes.npz": "different sizes",
        "broken.npz": "cannot be read",
        "none": "holds no PNG",
        "some": "without validation, test",
        "mixed": "5 x 20",
        "torn": "a.png",
        "nowhere": "does not exist",
    }
    for name, words in expected.items():
        refused(UsageError, name, words, name="images", data_file=tmp_path / name)


def test_a_20_by_20_npz_trains_is_scored_reported_and_sampled(glas, tmp_path, monkeypatch):
    mine, packs = tmp_path / "mine.npz", tmp_path / "packs"
    np.savez(mine, train=DIGITS[:80], validation=DIGITS[80:], test=DIGITS[80:])

    def succeeded(*arguments):
        done = glas.here(*arguments)
        assert done.code == 0, done.err
        return done

    run = ["run", "--variant", "cauchy", *SMALL, "--no-mirror", "--json", "--data-file"]
    done = succeeded(*run, mine)
    assert "about " in done.err.splitlines()[0]
    assert "for 1 seed" in done.err.splitlines()[0]
    document = done.json
    named = document["data_origin"]
    assert named.startswith("file mine.npz (")
    assert np.isfinite(document["seeds"][0]["nll"])
    succeeded("samples", document["folder"])
    succeeded("report", "--out", tmp_path)
    assert f"images, dynamic binarisation, {named}" in (tmp_path / "glas-bench.md").read_text()

    pack = ["datasets", "pack", "images", packs, "--data-file"]
    assert glas.here(*pack, "mine.npz").code == 2  # it lies elsewhere
    succeeded(*pack, mine)
    again = succeeded(*run, packs / "images.npz")
    assert again.json["folder"] == document["folder"]  # it is the same cell
    (tmp_path / "own.yaml").write_text(
        "name: own\nversion: 1\nquestion: q?\npreset: smoke\nvariants: [draw]\nseeds: 0\n"
        "set: {dataset: images, epochs: 1, steps: 2, hidden: 8, samples: 2, batch: 32}\n"
    )
    sweep = ["sweep", tmp_path / "own.yaml", "--no-mirror"]
    assert "GLAS_BENCH_DATA" in glas.here(*sweep).err
    monkeypatch.setenv("GLAS_BENCH_DATA", str(packs))
    succeeded(*sweep)


@pytest.mark.parametrize("shape", [(16, 9), (5, 2)])
def test_a_variant_of_square_images_refuses_others(glas, tmp_path, shape):
    path = saved(tmp_path, "wide.npy", RANDOM.randint(0, 256, (60, *shape)))
    done = glas.here("run", "--variant", "draw", *SMALL, "--data-file", path)
    assert done.code == 2
    assert "square" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("dataset", ["mnist-5k", "images"])
def test_core_hours_of_grey_images_and_of_ones_own(dataset, tmp_path):
    changes = {"dataset": dataset, "binarisation": "dynamic", "batch": 32, "hidden": 8}
    [cell] = study.by_hand(registry.find("cauchy"), None, [0], preset="smoke", overrides=changes)
    splits = None
    if dataset == "images":
        splits = data.load("images", data_file=saved(tmp_path, "own.npy", DIGITS))
        with pytest.raises(UsageError, match="data-file"):
            core_hours(cell)
    assert core_hours(cell, splits) > 0


def test_a_cell_that_diverges_at_once_costs_next_to_nothing():
    cells = {
        name: study.by_hand(registry.find(name), None, [0], preset="smoke")[0]
        for name in ("grid", "cauchy")
    }
    assert 0 < core_hours(cells["grid"]) < core_hours(cells["cauchy"]) / 10
