"""The elevation of a run's picture: as given, as the run's folder has it, or found out by the view prior."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gs_propeller.app.config import Config, load
from gs_propeller.app.events import Say
from gs_propeller.app.guides import Priors
from gs_propeller.base.errors import UserError
from gs_propeller.base.options import AUTO
from gs_propeller.pictures.elevation import AROUND, estimated_deg
from gs_propeller.pictures.picture import Picture

if TYPE_CHECKING:
    from guidance.zero123 import Zero123

STEPS = 20  # of DDIM, for views by a prior that predicts noise; one that predicts v has them in one
NEAR_DEG = 1.0  # two machines may round an estimate differently; a run goes on with the one it began with
PER_DEG = 1000  # what ranks tell each other is a whole number


def placed(config: Config, picture: Picture | None, priors: Priors, say: Say, own: bool = False) -> Config:
    """The configuration with its elevation in degrees. own: that of the run in its folder, where there is one, counts,
    whatever would be estimated now. Without a picture it is 0."""
    if config.elevation != AUTO:
        return config
    if picture is None or priors.zero123 is None:
        return config.but(elevation=0.0)
    kept = _kept(config)
    if own and kept is not None:
        return config.but(elevation=kept)
    found = estimated(config, picture, priors.zero123)
    if kept is not None and abs(kept - found) <= NEAR_DEG:
        found = kept
    what = f"{config.run_name}'s camera, in degrees above the horizon"
    say(f"elevation={found:g} by estimate: {what}; elevation= says otherwise")
    return config.but(elevation=found)


def assumed(config: Config) -> Config:
    """For what is looked at before there is a prior to ask: where the elevation is to be found out, that of the run in
    the folder, else level."""
    return config.but(elevation=_kept(config) or 0.0) if config.elevation == AUTO else config


def note_of(config: Config) -> int:
    """The elevation as rank 0 tells the others of it."""
    return round(config.elevation * PER_DEG)


def noted(config: Config, note: int) -> Config:
    """What `placed` gave on rank 0, by its note."""
    return config.but(elevation=note / PER_DEG) if config.elevation == AUTO else config


@torch.no_grad()
def estimated(config: Config, picture: Picture, prior: Zero123) -> float:
    """Degrees, by what the prior makes of the picture; the same whatever the seed. Stable-Zero123, which is told the
    elevation too, is told 0."""
    told = prior.embed(picture.rgb[None])
    noise = torch.randn(AROUND, *prior.latent_shape, generator=torch.Generator().manual_seed(0))
    steps = 1 if prior.scheduler.config.prediction_type == "v_prediction" else STEPS
    nothing = torch.zeros(AROUND, 3, prior.size_px, prior.size_px, device=prior.device)

    def views(codes: Tensor) -> Tensor:
        return prior.refine(nothing, told, codes.to(prior.device), noise, 1.0, steps, config.guidance_scale)

    at = config.sections.views
    return float(estimated_deg(picture.mask, views, at.radius, at.fov_y_rad))


def _kept(config: Config) -> float | None:
    """The elevation of the run in this configuration's folder."""
    options = config.run_folder / "config.yaml"
    if config.mesh or not options.is_file():
        return None
    try:
        found = load(["--config", str(options)])[0].elevation
    except UserError:  # of a version with other options
        return None
    return None if found == AUTO else round(float(found) * PER_DEG) / PER_DEG
