"""A run as a plan: its stages, each a run of its own that starts from the one before, the changes within one, and which
options nothing of it reads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import yaml

from gs_propeller.app.config import SECTION_OF, Config, unknown, updated
from gs_propeller.base.errors import UserError

# Sections that `changes` may change on the way, those that a stage may, and options that are the whole run's all the
# same.
ON_THE_WAY = ("views", "levels", "pull", "known", "density", "regularisers", "shaping", "tets")
STAGES_OWN = ("plan", "priors", "solver", "scene", "ball", "adam", "field", "sdf", "mesh", *ON_THE_WAY)
WHOLE = ("stages", "init", "prior", "text_prior", "camera_code", "window", "elevation")

# What decides whether an option is read, as the command line says it; the options, or sections, that want it.
WANTED: dict[str, tuple[Callable[[Config], object], tuple[str, ...]]] = {
    "scene=gaussians": (lambda config: config.scene == "gaussians", ("ball", "adam", "density", "regularisers")),
    "scene=field or scene=sdf or scene=tetrahedra": (lambda config: config.scene != "gaussians", ("field",)),
    "scene=field or scene=sdf": (lambda config: config.scene in ("field", "sdf"), ("shaping",)),
    "scene=sdf": (lambda config: config.scene == "sdf", ("sdf",)),
    "scene=tetrahedra": (lambda config: config.scene == "tetrahedra", ("tets",)),
    "input=PICTURE": (lambda config: config.input, (
        "cut", "known", "prior", "camera_code", "guidance_scale", "lambda_zero123", "mirror", "hue", "refine_guidance",
        "lambda_known")),
    "prompt=SENTENCE": (lambda config: config.prompt, (
        "text_prior", "text_guidance_scale", "csd_below", "csd_rest", "lambda_sd", "front_deg", "overhead_deg")),
    "loss=vsd": (lambda config: config.loss == "vsd", ("lora_rank", "lora_lr")),
}  # fmt: skip


def stages_of(config: Config) -> list[Config]:
    """The runs that a run is made of, one after the other: itself, where it names no stages. All but the last have
    folders of their own in the run's. Raises UserError."""
    if not config.stages:
        phases_of(config)
        return [config]
    entries = _read("stages", config.stages)
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise UserError("stages= wants a list of options: [{scene: field, steps: 300}, {scene: tetrahedra}]")
    base, found, before = config.but(stages="", name=config.run_name), list[Config](), config.init
    for number, entry in enumerate(entries, start=1):
        where = f" (in stage {number})"
        _allowed(entry, STAGES_OWN, where)
        stage = updated(base.but(init=before), entry, where)
        if number < len(entries):
            stage = stage.but(outdir=str(config.run_folder), name=f"{number}-{stage.scene}")
        phases_of(stage)
        found.append(stage)
        before = str(stage.run_folder)
    return found


def phases_of(config: Config) -> list[tuple[int, Config]]:
    """(the update that it begins with, the options from there on), from 0 on, by `changes`. Raises UserError."""
    found = [(0, config)]
    entries = _changes(config)
    wanted = "changes= wants options by the update that they hold from: {600: {render_size: 128}}"
    if not isinstance(entries, dict):
        raise UserError(wanted)
    for key, entry in sorted(entries.items(), key=lambda item: float(item[0]) if _number(item[0]) else 0.0):
        if not _number(key) or not isinstance(entry, dict):
            raise UserError(wanted)
        where = f" (in changes from {key})"
        _allowed(entry, ON_THE_WAY, where)
        if int(key) <= found[-1][0]:
            raise UserError(f"changes= at update {key}: updates must grow, from 1 on")
        found.append((int(key), updated(found[-1][1], entry, where)))
    return found


def in_vain(config: Config) -> list[str]:
    """What a user should know of `changes` that begin after the run's end, or that nothing of the run reads, a line
    each. Raises UserError."""
    late = [
        f"changes from update {first} on never hold: the run ends with update {config.steps}"
        for first, _ in phases_of(config)
        if first >= config.steps
    ]
    return late + unread([config], {str(name) for entry in _changes(config).values() for name in entry})


def unread(stages: Sequence[Config], names: Collection[str]) -> list[str]:
    """What a user should know of those of the named options that no stage of a run reads, a line for each reason."""
    notes = []
    for wanted, (holds, readers) in WANTED.items():
        idle = sorted(name for name in names if name in readers or SECTION_OF[name] in readers)
        if idle and not any(holds(stage) for stage in stages):
            notes.append(f"{', '.join(idle)}: without effect, read with {wanted}")
    return sorted(notes)


def _changes(config: Config) -> Any:
    """`changes` as YAML reads it, nothing checked. Raises UserError."""
    return _read("changes", config.changes) if config.changes else {}


def _number(key: Any) -> bool:
    return str(key).isdigit()


def _read(option: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{option}={text} is not valid YAML: {str(error).splitlines()[0]}") from error


def _allowed(entry: dict[str, Any], sections: tuple[str, ...], where: str) -> None:
    for name in entry:
        if name not in SECTION_OF:
            raise UserError(unknown(str(name), where))
        if SECTION_OF[name] not in sections or name in WHOLE:
            raise UserError(f"{name}={entry[name]}{where} holds for a whole run; give it outside")
