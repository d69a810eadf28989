"""Configuration: literal text, types, ranges, nearest names."""

import copy
import pickle
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gs_propeller.app.config import TITLES, Config, Sections, help_text, load, to_yaml, updated
from gs_propeller.app.devices import group_size
from gs_propeller.base.errors import UserError
from gs_propeller.base.names import told_apart
from gs_propeller.scenes.gaussians.settings import DensifySettings
from gs_propeller.solver.picard import Settings

IMAGE = str(Path(__file__).parent.parent / "configs" / "image.yaml")


def _load(*pairs: str) -> Config:
    return load(["--config", IMAGE, *pairs])[0]


@given(st.text(min_size=1, alphabet=st.characters(blacklist_categories=["Cs"], blacklist_characters="\0")))
def test_text_is_taken_literally(text: str) -> None:
    """But for a reference in a configuration file, which is refused (below)."""
    assume("${" not in text)
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
        ("window=2000", "above its largest value, 1024"),
        ("ema=1.5", r"ema must be in 0\.\.1, got 1.5"),
        ("ema=nan", "got nan"),
        ("lambda_rgb=nan", "not nan"),
        ("lambda_rgb=inf", "finite"),
        ("tail=front", "one of copy, momentum, got 'front'"),
        ("t_min=0.99", "t_min=0.99 is above t_max"),
        ("position_lr_init=0", "must be above 0"),
        ("eps=1e-60", "below its least value, 1e-30"),  # nought in float32
        ("grid_eps=1e-60", "below its least value, 1e-30"),
        ("qqqqqqqqqq=1", "--help lists"),
        ("cutout_box=1,0,0,1", "is not left,top,right,bottom"),
        ("cutout_box=a,b", "is not left,top,right,bottom"),
        ("cutout=no", "one of auto, search, keep"),
        ("--steps", "key=value"),
    ],
)
def test_bad_options_are_named(pair: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        _load(pair)


def test_sections_are_the_records_that_modules_take() -> None:
    config = Config(window=6, steps=40, densify_every=9)
    assert config.sections.solver == Settings(steps=40, window=6)
    assert config.sections.density == DensifySettings(densify_every=9)
    assert (config.window, config.densify_every, config.seed) == (6, 9, 0)
    records = [getattr(config.sections, f.name) for f in fields(Sections)]
    names = [f.name for record in records for f in fields(record)]
    assert len(names) == len(set(names)) == len(config.flat())  # a name belongs to one section
    assert set(TITLES) == {f.name for f in fields(Sections)}
    assert config.flat() == {name: getattr(config, name) for name in names}


def test_but_makes_another() -> None:
    one = Config(seed=3)
    other = one.but(window=4, prompt="a cup")
    assert (one.window, one.prompt) == (0, "") and (other.window, other.prompt, other.seed) == (4, "a cup", 3)
    assert one == other.but(window=0, prompt="") and hash(one) == hash(Config(seed=3)) and one != other
    assert one.but() == one and one != "another thing"
    assert repr(other) == "Config(prompt='a cup', seed=3, window=4)"
    assert copy.deepcopy(other) == pickle.loads(pickle.dumps(other)) == other
    with pytest.raises(UserError, match="unknown option 'windw'; did you mean window"):
        one.but(windw=3)
    with pytest.raises(UserError, match="unknown option 'sections'"):
        Config(sections=3)
    with pytest.raises(AttributeError, match="immutable"):
        one.seed = 4
    with pytest.raises(AttributeError, match="windw"):
        one.windw  # noqa: B018
    with pytest.raises(UserError, match=r"ema must be in 0\.\.1, got 2"):
        one.but(ema=2)


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
    assert [row[1] for row in rows] == list(Config().flat())
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


def test_names_of_runs() -> None:
    assert Config(input="my cat.png").run_name == Config(name="my cat").run_name == "my-cat"
    assert Config(prompt="\N{CAT FACE}\N{VARIATION SELECTOR-16} \N{ROCKET}").run_name == "cat-face-rocket"
    assert Config(prompt="\N{SNOWMAN}\N{EMOJI MODIFIER FITZPATRICK TYPE-3}").run_name == "snowman"
    hindi = "\u0939\u093f\u0928\u094d\u0926\u0940"  # with vowel signs, which are no letters
    assert Config(prompt=hindi).run_name == hindi
    assert len(Config(prompt="\U00020000" * 99).run_name.encode()) <= 120
    for name in ("..", "a/b", "a\\b", "-", "?"):
        with pytest.raises(UserError, match="cannot be a folder's name"):
            Config(name=name)


def test_files_of_one_name_are_told_apart() -> None:
    assert told_apart(["shots/cat/rgba.png", "shots/dog/rgba.png"]) == ["cat-rgba", "dog-rgba"]
    assert told_apart(["x/cat/img/a.png", "x/dog/img/a.png", "b.png"]) == ["cat-img-a", "dog-img-a", "b"]
    assert told_apart(["a.png", "a.jpg", "A b.png"]) == ["a.png", "a.jpg", "A-b"]
    assert told_apart(["p/Cat.png", "q/cat.png"]) == ["p-Cat", "q-cat"]
    mixed = told_apart(["p/a.png", "p/a.jpg", "q/a.png"])
    assert mixed == ["p-a.png", "p-a.jpg", "q-a.png"]
    for files in (["my cat.png", "my-cat.png"], ["p/a.png", "q/a.png", "p-a.png"]):
        with pytest.raises(UserError, match=r"rename one of them"):
            told_apart(files)


def test_a_home_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    config = _load("input=~/a.png", "outdir=~/runs", "mesh=~/a.glb", "prior=~/weights")
    assert (config.input, config.mesh, config.prior) == (
        "/somewhere/a.png",
        "/somewhere/a.glb",
        "/somewhere/weights",
    )
    assert config.run_folder == Path("/somewhere/runs/a")
    assert Config(input="~/a.png").input == "/somewhere/a.png"


def test_a_value_without_quotes() -> None:
    with pytest.raises(UserError, match=r'wants quotes: prompt="a red \.\.\.'):
        _load("prompt=a", "red", "cube")
    with pytest.raises(UserError, match=r'wants quotes: input="my photo\.png \.\.\.'):
        _load("input=my", "photo.png")
    with pytest.raises(UserError, match="key=value"):
        _load("steps=3", "red")


def test_a_shipped_configuration_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(["--config", "configs/text.yaml"])[0].t_min == 0.3
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "text.yaml").write_text("t_min: 0.4")  # the nearer one first
    assert load(["--config", "configs/text.yaml"])[0].t_min == 0.4


@pytest.mark.parametrize("text", ["a ${cube", "caf\udce9"])
def test_a_text_that_a_file_cannot_hold_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"stands for another option|is not UTF-8"):
        load(["--config", IMAGE, f"prompt={text}"])
