"""The configuration: sections, each the settings record that its module takes, under one flat set of option names.

YAML holds differences, key=value overrides both. Angles are degrees here and radians past it. 0 or "" means "decide
for me" where the remark says so.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import Field, dataclass, fields, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError, safe_load

from gs_propeller.app.settings import (
    CutSettings,
    DeviceSettings,
    FileSettings,
    MediaSettings,
    PlanSettings,
    PriorSettings,
)
from gs_propeller.base.errors import UserError
from gs_propeller.base.names import clean
from gs_propeller.base.options import AUTO, within
from gs_propeller.base.paths import is_file
from gs_propeller.distil.settings import (
    KnownSettings,
    LevelSettings,
    PullSettings,
    SceneSettings,
    ViewSettings,
)
from gs_propeller.mesh.settings import MeshSettings, RefineSettings
from gs_propeller.places import shipped
from gs_propeller.scenes.fields.settings import FieldLossSettings, FieldSettings, SdfSettings
from gs_propeller.scenes.gaussians.settings import (
    AdamSettings,
    BallSettings,
    DensifySettings,
    RegulariserSettings,
)
from gs_propeller.scenes.tetrahedra.settings import TetSettings
from gs_propeller.solver.picard import Settings

HERE = shipped()  # configs/ and data/ are in it


@dataclass(frozen=True)
class Sections:
    """Every option by its section. Defaults suit two CPU cores and the pocket prior; what DreamGaussian or the paper
    use stands in the remark."""

    files: FileSettings
    plan: PlanSettings
    cut: CutSettings
    devices: DeviceSettings
    priors: PriorSettings
    views: ViewSettings
    levels: LevelSettings
    pull: PullSettings
    known: KnownSettings
    scene: SceneSettings
    solver: Settings
    ball: BallSettings
    adam: AdamSettings
    density: DensifySettings
    regularisers: RegulariserSettings
    field: FieldSettings
    sdf: SdfSettings
    shaping: FieldLossSettings
    tets: TetSettings
    mesh: MeshSettings
    refine: RefineSettings
    media: MediaSettings


TITLES = {
    "files": "input and output",
    "plan": "from coarse to fine",
    "cut": "the picture's cut-out",
    "devices": "devices",
    "priors": "priors",
    "views": "views",
    "levels": "noise levels",
    "pull": "score distillation",
    "known": "the input view",
    "scene": "what the solver moves",
    "solver": "window",
    "ball": "Gaussians at the start",
    "adam": "learning rates",
    "density": "clone, split, prune",
    "regularisers": "regularisers",
    "field": "fields (scene=field, sdf, tetrahedra)",
    "sdf": "distances (scene=sdf)",
    "shaping": "regularisers of fields",
    "tets": "tetrahedra (scene=tetrahedra)",
    "mesh": "mesh and texture",
    "refine": "refinement (main2_mesh.py)",
    "media": "pictures of the result",
}
# steps: DreamGaussian has 500; the pocket prior gains nothing past 300
DEFAULTS = Sections(
    FileSettings(), PlanSettings(), CutSettings(), DeviceSettings(), PriorSettings(), ViewSettings(), LevelSettings(),
    PullSettings(), KnownSettings(), SceneSettings(), Settings(steps=300, window=0), BallSettings(), AdamSettings(),
    DensifySettings(), RegulariserSettings(), FieldSettings(), SdfSettings(), FieldLossSettings(), TetSettings(),
    MeshSettings(), RefineSettings(), MediaSettings(),
)  # fmt: skip
SECTION_OF = {f.name: title for title in TITLES for f in fields(getattr(DEFAULTS, title))}
FOUND_OUT = {f.name for title in TITLES for f in fields(getattr(DEFAULTS, title)) if f.metadata.get("auto")}


class Config:
    """Every option, by its own name (`config.window`) or as its section's record (`config.sections.solver`).

    Config(input="cat.png", steps=100) has the defaults for all others. Immutable; `but` makes another. Raises UserError
    for a name that is no option, and for a value out of range or not among the choices.
    """

    sections: Sections

    def __init__(self, **options: Any) -> None:
        object.__setattr__(self, "sections", DEFAULTS)
        object.__setattr__(self, "sections", self.but(**options).sections if options else DEFAULTS)

    def but(self, **options: Any) -> Config:
        """The same but for these options."""
        changed: dict[str, dict[str, Any]] = {}
        for name, value in options.items():
            if name not in SECTION_OF:
                raise UserError(unknown(name))
            changed.setdefault(SECTION_OF[name], {})[name] = value
        try:
            records = {
                section: replace(getattr(self.sections, section), **values)
                for section, values in changed.items()
            }
        except ValueError as error:
            raise UserError(str(error)) from error
        for record in records.values():
            within(record)  # the solver's is no Section: it knows nothing of ours
        made = object.__new__(Config)
        object.__setattr__(made, "sections", replace(self.sections, **records))
        return made

    def __getattr__(self, name: str) -> Any:
        if name == "sections" or name not in SECTION_OF:
            raise AttributeError(name)
        return getattr(getattr(self.sections, SECTION_OF[name]), name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a configuration is immutable: config.but({name}=...)")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self.sections == other.sections

    def __hash__(self) -> int:
        return hash(self.sections)

    def __repr__(self) -> str:
        changed = {name: value for name, value in self.flat().items() if value != getattr(DEFAULT, name)}
        return f"Config({', '.join(f'{name}={value!r}' for name, value in changed.items())})"

    def flat(self) -> dict[str, Any]:
        """Every option with its value."""
        return {name: getattr(self, name) for name in SECTION_OF}

    @property
    def run_name(self) -> str:
        """The run's name: given, or from the input's stem, or from the prompt's first words."""
        if self.name:
            return clean(self.name)
        return clean(Path(self.input).stem if self.input else self.prompt) or "asset"

    @property
    def run_folder(self) -> Path:
        return Path(self.outdir) / self.run_name


DEFAULT = Config()


def unknown(name: str, where: str = "") -> str:
    """What is said of a name that is no option."""
    near = difflib.get_close_matches(name, SECTION_OF, 1, 0.5)
    hint = f"; did you mean {near[0]}?" if near else "; --help lists all options"
    return f"unknown option '{name}'{where}{hint}"


@dataclass(frozen=True)
class Flags:
    """What the command line asks for besides options; given: the names of those that it has."""

    dry_run: bool = False
    help: bool = False
    given: tuple[str, ...] = ()


def load(argv: Sequence[str]) -> tuple[Config, Flags]:
    """The configuration that the arguments describe: `--config FILE [key=value ...] [--dry-run] [--help]`.

    Raises UserError: no --config, no such file, an unknown key (with the nearest one), a wrong type or value, an option
    that every stage of the file has its own of.
    """
    path, pairs, dry_run = "", [], False
    words = list(argv)
    while words:
        word = words.pop(0)
        if word in ("-h", "--help"):
            return Config(), Flags(help=True)
        if word == "--dry-run":
            dry_run = True
        elif word == "--config":
            if not words:
                raise UserError("--config needs a file, such as configs/image.yaml")
            path = words.pop(0)
        elif word.startswith("--config="):
            path = word.removeprefix("--config=")
        elif "=" in word and not word.startswith("-"):
            pairs.append(word.split("=", 1))
        else:
            raise UserError(f"'{word}' is not an option; {_meant(word, pairs)}")
    if not path:
        raise UserError("say which configuration: --config configs/image.yaml input=PICTURE")
    if not is_file(path) and is_file(HERE / path):
        path = str(HERE / path)  # from any working folder
    config = updated(Config(), _read_yaml(path), f" (in {path})")
    _not_in_vain(dict(pairs), config.stages, path)
    return updated(config, dict(pairs)), Flags(dry_run, given=tuple(dict(pairs)))


def _not_in_vain(pairs: dict[str, str], stages: str, path: str) -> None:
    """Raises UserError for an option of the command line that every stage has a value of its own for; stages: the
    file's."""
    try:
        entries = safe_load(pairs.get("stages", stages))
    except YAMLError:
        return  # said by plan.py, as is whatever else is wrong with them
    where = "that are given here" if "stages" in pairs else f"of {path}"
    for name, value in pairs.items() if isinstance(entries, list) else ():
        own = [str(entry[name]) for entry in entries if isinstance(entry, dict) and name in entry]
        if own and len(own) == len(entries):
            raise UserError(
                f"{name}={value} would change nothing: the stages {where} have their own, {', '.join(own)}; change it "
                "there, in a copy of the file or in stages="
            )


def _meant(word: str, pairs: list[list[str]]) -> str:
    """What to do about a word that stands alone."""
    texts = {f.name for f, _ in _options() if isinstance(f.default, str) and not f.metadata["choices"]}
    if pairs and pairs[-1][0] in texts and not word.startswith("-"):
        key, value = pairs[-1]
        return f'a value with spaces wants quotes: {key}="{value} {word} ..."'
    return "options look like key=value, see --help"


def updated(config: Config, values: dict[str, Any], where: str = "") -> Config:
    """The configuration with these values; text is parsed to the option's type. Raises UserError."""
    for key in values:
        if key not in SECTION_OF:
            raise UserError(unknown(key, where))
    parsed = {key: _typed(key, value, type(getattr(DEFAULT, key)), where) for key, value in values.items()}
    return config.but(**parsed)


def to_yaml(config: Config) -> str:
    """Every option with its value."""
    return OmegaConf.to_yaml(OmegaConf.create(config.flat()))


def help_text() -> list[tuple[str, str, str, str, str]]:
    """(section, option, default, unit, remark) for each option."""
    rows = []
    for f, section in _options():
        remark = f.metadata["help"]
        if f.metadata.get("choices"):
            remark += f" ({' | '.join(f.metadata['choices'])})"
        value = getattr(DEFAULT, f.name)
        default = str(value).lower() if isinstance(value, bool) else str(value)
        rows.append((TITLES[section], f.name, default or '""', f.metadata.get("unit", ""), remark))
    return rows


def _options() -> list[tuple[Field[Any], str]]:
    """(the field, its section) of every option."""
    return [(f, section) for section in TITLES for f in fields(getattr(DEFAULTS, section))]


def _read_yaml(path: str) -> dict[str, Any]:
    file = Path(path)
    if not is_file(file):
        near = difflib.get_close_matches(
            file.name, [p.name for p in file.parent.glob("*.yaml")] if file.parent.is_dir() else [], 1
        )
        hint = (
            f"; did you mean {file.parent / near[0]}?"
            if near
            else "; there are configs/image.yaml and configs/text.yaml"
        )
        raise UserError(f"no configuration file {path}{hint}")
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(file))
    except (OmegaConfBaseException, OSError, ValueError, YAMLError) as error:
        raise UserError(f"{path} is not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path} must hold key: value lines")
    return {str(k): v for k, v in loaded.items()}


def _typed(key: str, value: Any, kind: type, where: str) -> Any:
    """value as the option's type; command-line text is taken literally where a text is wanted."""
    if kind is str:
        return json.dumps(value) if isinstance(value, (list, dict)) else "" if value is None else str(value)
    text = str(value).strip()
    if key in FOUND_OUT and text.lower() == AUTO:
        return AUTO
    if kind is bool:
        if text.lower() in ("true", "yes", "on", "1"):
            return True
        if text.lower() in ("false", "no", "off", "0"):
            return False
    elif not isinstance(value, bool):
        try:
            number = float(text)
            if kind is float:
                return number
            if number == int(number):
                return int(number)
        except (ValueError, OverflowError):
            pass  # said below, in the user's words
    wanted = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
    wanted += f" or {AUTO}" if key in FOUND_OUT else ""
    raise UserError(f"{key}={value}{where}: {wanted} is wanted")
