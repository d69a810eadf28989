"""Runs of the loop alone, scored against the truth: what bench.fidelity, speed and scaling share.

No mesh, no files: Gaussians at the end of the steps, their novel views and the input view at SCORE_PX.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from bench.truth import (
    SCORE_PX,
    Case,
    asset_cameras,
    mask_iou,
    novel_angles,
    over_white,
    psnr_db,
)
from gs_propeller.app.asset import Logged, Viewer, begun, problem, scene_of, slots_at_once, travellers
from gs_propeller.app.config import Config, load, to_yaml, updated
from gs_propeller.app.guides import Priors, picture_of
from gs_propeller.app.log import quiet_libraries
from gs_propeller.app.plan import stages_of
from gs_propeller.distil.phases import Distilled
from gs_propeller.scenes.gaussians.state import State
from gs_propeller.solver import checkpoint, picard
from gs_propeller.solver.picard import Problem, Report, Settings, Window, solve
from gs_propeller.solver.ranks import Ranks
from guidance import find_prior, find_text_prior
from guidance.stable_diffusion import StableDiffusion
from guidance.zero123 import Zero123


@dataclass(frozen=True)
class Trial:
    """A finished run: the solver's steps, passes and drifts it took, seconds in the loop, PSNR and IoU of 16 novel
    views, PSNR of the input view, states accepted by each pass, the last threshold."""

    steps: int
    passes: int
    evaluations: int
    seconds: float
    novel_psnr_db: float
    novel_iou: float
    input_psnr_db: float
    accepted: tuple[int, ...]
    last_threshold: float


@dataclass(frozen=True)
class Setup:
    """One picture ready to be solved in this process."""

    config: Config
    scene: Distilled
    logged: Logged
    problem: Problem[State, Any]
    settings: Settings

    def first(self) -> State:
        return begun(self.config, self.scene)  # type: ignore[no-any-return]


@cache
def priors_called(name: str, text: bool) -> Priors:
    """The prior of that name for pictures, or for sentences: loaded once a process."""
    quiet_libraries()
    if text:
        return Priors(None, StableDiffusion(find_text_prior(name)))
    return Priors(Zero123(find_prior(name)), None)


def configured(case: Case, pairs: dict[str, object]) -> Config:
    """The shipped image configuration for an object, changed by pairs."""
    folder = Path(tempfile.gettempdir()) / "bench-pictures"
    folder.mkdir(exist_ok=True)
    base, _ = load(["--config", "configs/image.yaml"])
    return updated(base, {**case.given(folder), "device": "cpu", "prior": "pocket", **pairs})


def prepared(config: Config, ranks: Ranks | None = None) -> Setup:
    """ranks: None computes every slot here."""
    priors = priors_called(config.prior if config.input else config.text_prior, not config.input)
    scene = scene_of(config, picture_of(config), priors)
    here = ranks or Ranks(kinds=travellers(config), at_once=slots_at_once(config, torch.device("cpu")))
    here.begin(0, scene.compute)
    logged = Logged()
    settings = replace(config.sections.solver, steps=scene.steps).among(here.world)
    return Setup(config, scene, logged, problem(scene, here, logged), settings)


@dataclass(frozen=True)
class Solved:
    """The last window, the splat's state, seconds until that was there, and how many states each pass accepted."""

    window: Window[State]
    state: State
    seconds: float
    accepted: tuple[int, ...]


def solving(setup: Setup) -> Solved:
    """From the first state to the last step, in this process."""
    accepted: list[int] = []

    def on_pass(window: Window[State], report: Report[Any]) -> None:
        setup.logged.rows(report)
        accepted.append(report.accepted)

    begun_s = time.perf_counter()
    window = solve(setup.problem, setup.settings, setup.first(), on_pass)
    state = setup.scene.finished(window.states[0])
    return Solved(window, state, time.perf_counter() - begun_s, tuple(accepted))


def in_stages(config: Config) -> list[tuple[Setup, Solved]]:
    """A run of one stage or several, each from the one before, whose states go through its folder."""
    found = []
    for stage in stages_of(config):
        setup = prepared(stage)
        found.append((setup, solving(setup)))
        folder, window = stage.run_folder, found[-1][1].window
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(to_yaml(stage))
        checkpoint.save(folder / checkpoint.FILE, window, "{}", found[-1][1].seconds)
    return found


def run(case: Case, pairs: dict[str, object], classic: bool = False) -> Trial:
    """A whole run of the loop and its score. classic: by Eq. 5's iteration, for settings that never change N."""
    setup = prepared(configured(case, pairs))
    if classic:
        setup = replace(setup, problem=picard.classic(setup.problem, _step_between, _stepped))
    done = solving(setup)
    novel, iou, known = scored(case, setup.config, done.state)
    return Trial(
        setup.settings.steps, done.window.passes, done.window.evaluations, done.seconds, novel, iou, known,
        done.accepted, done.window.threshold,
    )  # fmt: skip


def _step_between(new: State, old: State) -> dict[str, torch.Tensor]:
    was = old.tensors()
    return {name: value - was[name] for name, value in new.tensors().items() if name != "lineage"}


def _stepped(state: State, step: dict[str, torch.Tensor]) -> State:
    """A sum of steps that were taken elsewhere may leave a second moment below nought."""
    after = {name: value + step.get(name, 0) for name, value in state.tensors().items()}
    return State.from_tensors(
        {
            name: value.clamp_min(0) if name.startswith("exp_avg_sq") else value
            for name, value in after.items()
        }
    )


def scored(case: Case, config: Config, state: State) -> tuple[float, float, float]:
    """(PSNR and IoU of 16 novel views, PSNR of the input view)."""
    viewer = Viewer(state.params, config)
    azimuths, elevations = novel_angles(case.pose)
    truth = case.truth(azimuths, elevations)
    image, alpha = viewer.views(asset_cameras(azimuths, elevations), SCORE_PX)
    front, level = torch.zeros(1), torch.tensor([case.pose.elevation_rad])
    known = viewer.views(asset_cameras(front, level), SCORE_PX)[0]
    return (
        psnr_db(image, over_white(truth)),
        mask_iou(alpha, truth[:, 3:]),
        psnr_db(known, over_white(case.truth(front, level))),
    )
