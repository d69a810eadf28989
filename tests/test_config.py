"""Configuration: literal text, types, ranges, nearest names."""

from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gs_propeller.app.config import Config, help_text, load, to_yaml, updated
from gs_propeller.app.devices import group_size
from gs_propeller.base.errors import UserError

IMAGE = str(Path(__file__).parent.parent / "configs" / "image.yaml")


def _load(*pairs: str) -> Config:
    return load(["--config", IMAGE, *pairs])[0]


@given(st.text(min_size=1, alphabet=st.characters(blacklist_categories=["Cs"], blacklist_characters="\0")))
def test_text_is_taken_literally(text: str) -> None:
    assert _load(f"prompt={text}").prompt == text


@given(st.floats(0, 1e6, allow_nan=False))
def test_floats_come_back(value: float) -> None:
    assert _load(f"lambda_sds={value!r}").lambda_sds == value


def test_types() -> None:
    config = _load("resume=false", "steps=1e3", "elevation=-5", "name=777", "input=a=b.png")
    assert (config.resume, config.steps, config.elevation) == (False, 1000, -5.0)
    assert (config.name, config.input) == ("777", "a=b.png")


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("stepz=3", "did you mean steps"),
        ("steps=abc", "steps=abc: a whole number"),
        ("steps=2.5", "a whole number"),
        ("steps=true x", "a whole number"),
        ("resume=maybe", "true or false"),
        ("steps=0", "below its least value, 1"),
        ("ema=1.5", "above its largest value, 1"),
        ("ema=nan", "not nan"),
        ("lambda_rgb=inf", "finite"),
        ("tail=front", "not one of momentum, copy"),
        ("t_min=0.99", "t_min=0.99 is above t_max"),
        ("position_lr_init=0", "must be above 0"),
        ("qqqqqqqqqq=1", "--help lists"),
        ("--steps", "key=value"),
    ],
)
def test_bad_options_are_named(pair: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        _load(pair)


def test_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="say which configuration"):
        load(["input=x.png"])
    with pytest.raises(UserError, match="needs a file"):
        load(["--config"])
    near = IMAGE.replace("image.yaml", "imagee.yaml")
    with pytest.raises(UserError, match=r"did you mean .*image\.yaml"):
        load([f"--config={near}"])
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [1")
    with pytest.raises(UserError, match="not valid YAML"):
        load(["--config", str(bad)])
    bad.write_text("- 1")
    with pytest.raises(UserError, match="key: value"):
        load(["--config", str(bad)])
    bad.write_text("stepz: 1")
    with pytest.raises(UserError, match=r"in .*bad\.yaml"):
        load(["--config", str(bad)])


def test_yaml_round_trip(tmp_path: Path) -> None:
    config = _load("prompt=a: [b], c=d", "seed=7", "resume=false")
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert load(["--config", str(file)])[0] == config


def test_flags_and_names() -> None:
    assert load(["--help"])[1].help
    assert load(["--config", IMAGE, "--dry-run"])[1].dry_run
    assert Config(input="a/b c.png").run_name == "b-c"
    assert Config(prompt="A red, red cube!").run_name == "A-red-red-cube"
    assert Config(name="x", outdir="y").run_folder == Path("y/x")
    assert Config(prompt="??").run_name == "asset"


def test_every_option_is_documented() -> None:
    rows = help_text()
    assert [row[1] for row in rows] == [f.name for f in fields(Config)]
    assert all(row[4] for row in rows)
    assert updated(Config(), {"name": None}).name == ""


@pytest.mark.parametrize(
    ("group", "ranks", "pictures", "size"),
    [
        (0, 1, 1, 1),
        (0, 8, 1, 8),
        (0, 8, 3, 2),
        (0, 8, 20, 1),
        (0, 6, 4, 1),
        (4, 8, 1, 4),
        (2, 8, 5, 2),
        (0, 7, 2, 1),
    ],
)
def test_groups_come_out_even(group: int, ranks: int, pictures: int, size: int) -> None:
    assert group_size(Config(group=group), ranks, pictures) == size


def test_uneven_groups_are_refused() -> None:
    with pytest.raises(UserError, match="group=3 does not divide the 8 ranks"):
        group_size(Config(group=3), 8, 1)
