"""What a cell's config is made of, in which order, and what its key depends on."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glas_bench import config, evaluate, registry
from glas_bench.config import PRESETS, SCORING, RunConfig, config_key, protocol_key, resolve
from glas_bench.errors import UsageError
from glas_bench.model import FilterSettings, Glas
from glas_bench.registry import Variant
from glas_bench.study import claims
from glas_bench.text import interval, seed_ranges

CAUCHY = registry.find("cauchy")
VAE = registry.find("vae")


class Declaring(Glas):
    """Declares a default of its own for a key that presets set."""

    class Settings(FilterSettings):
        hidden: int = 48
        rate: float = 0.5
        sharp: bool = False


DECLARING = dataclasses.replace(CAUCHY, name="declaring", cls=Declaring)


def refusal(variant: Variant = CAUCHY, **about: object) -> str:
    with pytest.raises(UsageError) as caught:
        resolve(variant, **about)  # type: ignore[arg-type]
    assert caught.value.exit_code == 2
    return str(caught.value)


# --------------------------------------------------------------------------- the order


def test_the_later_goes_before_the_earlier() -> None:
    flat = resolve(DECLARING, preset="smoke").flat()
    assert flat["hidden"] == 48  # the file's own default, not the preset's 64
    assert flat["steps"] == 4  # the preset's, for the file does not declare it
    assert flat["learning_rate"] == 1e-3
    study = {"hidden": 32, "steps": 5, "dataset": "mnist-static", "learning_rate": 0.01}
    flat = resolve(DECLARING, preset="smoke", study=study).flat()
    assert [flat[key] for key in study] == [32, 5, "mnist-static", 0.01]
    flat = resolve(DECLARING, preset="smoke", study=study, dataset="omniglot").flat()
    assert flat["dataset"] == "omniglot"
    overrides = {"dataset": "mnist-5k", "hidden": 8, "rate": 0.25, "sharp": True}
    flat = resolve(
        DECLARING, preset="smoke", study=study, dataset="omniglot", overrides=overrides
    ).flat()
    assert [flat[key] for key in overrides] == ["mnist-5k", 8, 0.25, True]
    assert flat["steps"] == 5


@pytest.mark.parametrize("preset", PRESETS)
def test_vae_keeps_its_sizes_under_any_preset(preset: str) -> None:
    resolved = resolve(VAE, preset=preset)
    assert resolved.settings == {"sample_size": 50, "hidden": 200, "charge_weight": 1.0}
    assert resolved.epochs == PRESETS[preset]["epochs"]
    assert resolve(VAE, preset=preset, overrides={"hidden": 20}).settings["hidden"] == 20
    assert "vae has no setting 'steps'" in refusal(VAE, preset=preset, overrides={"steps": 2})


def test_what_papers_call_a_setting_is_known() -> None:
    known = set(RunConfig.model_fields) | set(CAUCHY.cls.Settings.model_fields)
    assert set(config._SYNONYMS.values()) <= known
    assert known.isdisjoint(config._SYNONYMS)
    meant = {"batch_size": "batch", "beta": "charge_weight", "L": "latent_size", "K": "samples"}
    for key, name in meant.items():
        assert f"Did you mean {name!r}?" in refusal(overrides={key: 8})
    assert "Did you mean" not in refusal(VAE, overrides={"T": 9})  # it has no steps


def test_presets_are_those_of_the_design() -> None:
    assert {name: list(values.values()) for name, values in PRESETS.items()} == {
        "smoke": ["mnist-5k", 4, 64, 2, 10],
        "quick": ["mnist-5k", 8, 128, 20, 100],
        "laptop": ["mnist-static", 8, 128, 15, 3e-3, "linear", 1000, 100, 500],
        "short": ["mnist-static", 16, 256, 250, 1000],
        "paper": ["mnist-static", 64, 256, 250, 1000],
    }
    assert resolve(CAUCHY) == resolve(CAUCHY, preset="quick")
    paper = resolve(CAUCHY, preset="paper").flat()
    published = {"latent_size": 9, "filter_size": 5, "sample_size": 25, "batch": 128}
    assert {key: paper[key] for key in published} == published


def test_a_data_set_brings_its_own() -> None:
    assert resolve(CAUCHY, preset="paper").decay_epochs == 75
    omniglot = resolve(CAUCHY, preset="paper", dataset="omniglot")
    assert (omniglot.decay_epochs, omniglot.binarisation) == (100, "dynamic")
    said = refusal(dataset="mnist-static", overrides={"binarisation": "dynamc"})
    assert "binarisation of mnist-static 'dynamc'" in said
    assert "Allowed: static" in said
    chosen = resolve(CAUCHY, overrides={"binarisation": "dynamic"})
    assert chosen.binarisation == "dynamic"


# --------------------------------------------------------------------------- values


def test_values_are_read_as_yaml() -> None:
    pairs = ("learning_rate=1e-3", "latent-init=0.1", "epochs= 3", "grid=centred", "floor=1e-3")
    values = config.parse_overrides(pairs)
    assert set(values) == {"learning_rate", "latent_init", "epochs", "grid", "floor"}
    resolved = resolve(CAUCHY, overrides=values)
    assert (resolved.learning_rate, resolved.epochs) == (1e-3, 3)
    assert (resolved.settings["latent_init"], resolved.settings["floor"]) == ("0.1", "1e-3")
    for text, meant in (("1", "1"), ("1.0", "1"), ("1e-3", "1e-3"), ("0.001", "1e-3")):
        values = config.parse_overrides((f"latent_init={text}",))
        assert resolve(CAUCHY, overrides=values).settings["latent_init"] == meant


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (("epochs",), "--set 'epochs': write --set key=value"),
        (("=3",), "--set key=value"),
        (("epochs=",), "--set key=value"),
        (("epochs=[",), "not valid YAML"),
        (("latent-size=3", "latent_size=4"), "given twice"),
    ],
)
def test_pairs_that_are_none(pairs: tuple[str, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        config.parse_overrides(pairs)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"epohcs": 3}, ["'epohcs'", "Did you mean 'epochs'?", "learning_rate", "latent_size"]),
        ({"filtersize": 3}, ["Did you mean 'filter_size'?"]),
        ({"variant": "vae"}, ["'variant'"]),
        ({"settings": {}}, ["'settings'"]),
        ({"epochs": 0}, ["epochs", "greater than or equal to 1", "got 0"]),
        ({"images": 0}, ["images", "greater than or equal to 1", "got 0"]),
        ({"epochs": 2.5}, ["epochs", "got 2.5"]),
        ({"epochs": "many"}, ["epochs", "got 'many'"]),
        ({"epochs": None}, ["epochs", "got None"]),
        ({"epochs": [1, 2]}, ["epochs", "got [1, 2]"]),
        ({"epochs": True}, ["epochs", "got true"]),
        ({"latent_init": True}, ["latent_init", "got true"]),
        ({"learning_rate": "nan"}, ["learning_rate", "finite"]),
        ({"learning_rate": -1}, ["learning_rate", "greater than 0", "got -1"]),
        ({"precision": "bf61"}, ["'tf32' or 'bf16'", "got 'bf61'", "Did you mean 'bf16'?"]),
        ({"grid": "centerd"}, ["'original'", "'slip-mended'", "Did you mean 'centred'?"]),
        ({"filter_size": 10}, ["filter_size 10", "latent_size 9"]),
        ({"charge_weight": -1}, ["charge_weight", "greater than or equal to 0"]),
        ({"dataset": "mnist"}, ["'mnist'", "Did you mean 'mnist-5k'?", "omniglot"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_is_refused_is_named(values: dict[str, object], words: list[str]) -> None:
    said = refusal(overrides=values)
    assert all(word in said for word in words), said
    assert "\n" not in said


def test_settings_must_not_hide_a_run_s_keys() -> None:
    class Hiding(Glas):
        """Has an `epochs` of its own."""

        class Settings(FilterSettings):
            epochs: int = 3

    said = refusal(dataclasses.replace(CAUCHY, cls=Hiding), preset="smoke")
    assert "a setting of the name epochs" in said


@pytest.mark.parametrize("text", ["1:30", "-1:30", "12:30:45", "1:30.5", "0100", "-07", "08", "00"])
def test_numbers_in_base_60_and_base_8_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"{text} would be a number in base "):
        config.parse_overrides((f"epochs={text}",))
    with pytest.raises(UsageError, match=f"{text} would be a number in base "):
        claims.parse(f"elbo(cauchy, epochs={text}) > 3")


@pytest.mark.parametrize("text", ["1e-3", ".001", "0.001", "1.0E-3", "+0.001", "'1e-3'"])
def test_a_number_is_the_same_however_it_is_written(text: str) -> None:
    given = config.parse_overrides((f"learning_rate={text}", f"floor={text}"))
    assert config.same_value(given["learning_rate"], 1e-3)
    for name in ("cauchy", "draw", "grid"):
        resolved = config.resolve(registry.find(name), overrides=given)
        assert (resolved.learning_rate, resolved.settings["floor"]) == (1e-3, "1e-3")


# --------------------------------------------------------------------------- seeds


@given(st.sets(st.integers(0, 300), min_size=1), st.randoms(use_true_random=False))
def test_seeds_read_back(seeds: set[int], chance: object) -> None:
    parts = seed_ranges(list(seeds)).split(",")
    parts += parts[:2]  # named twice is meant once
    chance.shuffle(parts)  # type: ignore[attr-defined]
    for comma in (",", ", "):
        assert config.parse_seeds(comma.join(parts)) == sorted(seeds)


@pytest.mark.parametrize(
    "text", ["", "a", "-1", "1-", "3-1", "1,,2", "0-2-4", "1.5", "0..2", "0-99999999", "²", "1 2"]
)
def test_seeds_that_are_none(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        config.parse_seeds(text)
    assert str(caught.value).startswith(f"--seeds {text!r}: ")


# --------------------------------------------------------------------------- keys


def test_the_key_changes_with_all_that_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    def key(source: str = "s", data: str = "d", **changes: object) -> str:
        return config_key(RunConfig(**{**base, **changes}), source, data)

    base = resolve(CAUCHY, preset="smoke", overrides={"batch": 64}).model_dump()
    different = {
        "dataset": "mnist-static",
        "binarisation": "dynamic",
        "batch": 32,
        "epochs": 3,
        "learning_rate": 2e-3,
        "schedule": "linear",
        "warmup_steps": 10,
        "decay_epochs": 5,
        "precision": "bf16",
        "threads": 2,
    }
    assert {*different, "variant", *SCORING, "settings"} == set(RunConfig.model_fields)
    keys = [key(), key(source="t"), key(data="e")]
    keys += [key(**{name: value}) for name, value in different.items()]
    settings = base["settings"]
    for name, value in settings.items():
        other = value + 1 if isinstance(value, int | float) else f"{value}'"
        keys.append(key(settings={**settings, name: other}))
    assert len(set(keys)) == len(keys) == 3 + len(different) + len(settings)
    assert all(len(one) == 12 and int(one, 16) >= 0 for one in keys)
    assert key(samples=5000, images=7) == key(variant="a-copy") == key()
    assert key(settings=dict(reversed(settings.items()))) == key()
    monkeypatch.setattr(config, "CORE_VERSION", config.CORE_VERSION + 1)
    assert key() not in keys


def test_the_protocol_has_a_key_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def key(**overrides: object) -> str:
        return protocol_key(evaluate.protocol(resolve(CAUCHY, overrides=overrides)))

    assert key(samples=5) != key(samples=6)
    assert key(samples=5) == key(samples=5, epochs=3, hidden=3)
    assert key(images=7) != key(images=8) != key() == key(images="all")
    before = key()
    monkeypatch.setattr(config, "PROTOCOL_VERSION", config.PROTOCOL_VERSION + 1)
    assert key() != before


@pytest.mark.parametrize(
    ("ends", "unit", "text"),
    [
        ((1.826, -3.18, 6.83), "nats", "+1.83 nats [-3.18, +6.83]"),
        ((0.0084, 0.0031, 0.0139), "variance", "+0.008 variance [+0.003, +0.014]"),
        ((-0.4, -0.96, 0.53), "", "-0.40 [-0.96, +0.53]"),
        ((1.0, 1.0, 1.0), "", "+1.00 [+1.00, +1.00]"),
    ],
)
def test_an_interval_has_as_many_decimals_as_show_it(ends, unit, text):
    assert interval(*ends, unit) == text
