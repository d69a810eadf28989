"""Options of distillation: where its views stand, how much noise they get, how renders, priors and the picture are
compared; and what of a scene the solver moves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from gs_propeller.base.errors import UserError
from gs_propeller.base.options import AUTO, Section, option

SCENES = ("gaussians", "field", "sdf", "tetrahedra")


@dataclass(frozen=True)
class ViewSettings(Section):
    """Where the cameras stand: options in degrees, properties in radians."""

    # fmt: off
    elevation: float | Literal["auto"] = option(
        0.0, "of the camera that took the picture, above the horizon; auto: the prior's views of it tell", "deg", -80,
        80, auto=True)
    radius: float = option(2.0, "camera distance", "world units", 0.5, 100)
    fov_y_deg: float = option(49.1, "vertical field of view", "deg", 5, 150)
    batch_size: int = option(4, "novel views a step; the paper: 16, four times dearer on a CPU", "views", 1, 256)
    render_size: int = option(0, "of novel views; 0: the prior's own side", "px", 0, 2048)
    min_elevation: float = option(-30.0, "of novel views, from the input's", "deg", -90, 90)
    max_elevation: float = option(30.0, "of novel views, from the input's", "deg", -90, 90)
    mirror: float = option(
        0.0, "probability that the picture's prior sees a novel view, and the picture, in the mirror: its answers "
        "differ by its errors, which cancel, at no cost in time", "", 0, 1)
    hue: float = option(
        0.0, "probability that it sees them in other colours: red, green and blue moved round by one place or two", "",
        0, 1)
    invert_background: float = option(
        0.0, "probability of a black backdrop; DreamGaussian: 0.5. The pocket prior has seen white only", "", 0, 1)
    # fmt: on

    def __post_init__(self) -> None:
        super().__post_init__()
        self.ordered("min_elevation", "max_elevation")

    @property
    def elevation_rad(self) -> float:
        """Raises UserError while it is to be found out: a run of a picture does so, see app/guides.py."""
        if self.elevation == AUTO:
            raise UserError(
                "elevation=auto is found out by a run of a picture; here it must be a number of degrees"
            )
        return math.radians(self.elevation)

    @property
    def fov_y_rad(self) -> float:
        return math.radians(self.fov_y_deg)

    @property
    def novel_elevations_rad(self) -> tuple[float, float]:
        """(lowest, highest) elevation of a novel view, from the input's."""
        return math.radians(self.min_elevation), math.radians(self.max_elevation)


@dataclass(frozen=True)
class LevelSettings(Section):
    """How much noise a step's views get."""

    # fmt: off
    t_min: float = option(
        0.6, "lowest noise level, share of all; DreamGaussian: 0.02. The pocket prior is best at high noise", "", 0, 1)
    t_max: float = option(0.98, "highest noise level, share of all", "", 0, 1)
    anneal_t: bool = option(True, "go down from t_max to t_min over the steps; false draws uniformly")
    # fmt: on

    def __post_init__(self) -> None:
        super().__post_init__()
        self.ordered("t_min", "t_max")


@dataclass(frozen=True)
class PullSettings(Section):
    """How renders and priors are compared; and what of a scene the solver moves."""

    # fmt: off
    lambda_sds: float = option(1.0, "weight of score distillation", "", 0)
    sds_weight: str = option(
        "noise", "of the noise levels: noise has sigma^2, DreamGaussian's; clean pulls as hard at every level",
        choices=("noise", "clean"))
    sds_space: str = option(
        "latent", "where renders meet what the prior makes of them: latents (DreamGaussian) or pictures, which keeps a "
        "small VAE's colours true; with vsd, pictures beside latents", choices=("latent", "pixel"))
    follows: str = option(
        "measured", "how much of a render's change the prior's clean picture follows, in a window: measured for the "
        "prior, abar of the noise level, none or all of it", choices=("measured", "abar", "none", "all"))
    # fmt: on


@dataclass(frozen=True)
class KnownSettings(Section):
    """How the input picture is fitted."""

    # fmt: off
    lambda_rgb: float = option(10000.0, "of the input view's colour, as DreamGaussian", "", 0)
    lambda_mask: float = option(1000.0, "of the input view's mask, as DreamGaussian", "", 0)
    reference_size: int = option(128, "side at which the input view is fitted", "px", 16, 1024)
    closing_updates: int = option(
        0, "after the last step, that see the input view alone, for the splat; DreamGaussian: 0", "", 0, 100_000)
    recolour: float = option(
        0.0, "share of the way that colours which the input view does not show go to that picture's own at their "
        "height, at a stage's end; splats and textures", "", 0, 1)
    # fmt: on


@dataclass(frozen=True)
class SceneSettings(Section):
    """What of a scene the solver moves, and how it judges a guess."""

    # fmt: off
    scene: str = option(
        "gaussians", "what the asset is made of on its way to a mesh: 3D Gaussians, a radiance field (NeRF), an sdf, "
        "signed distances under NeuS' opacity, or tetrahedra, a surface marched through them (DMTet)", choices=SCENES)
    travels: str = option(
        "pictures", "what the ranks send back: pictures, the prior's pull on the renders, or gradients of the "
        "parameters (the paper)", choices=("pictures", "gradients"))
    updates_per_evaluation: int = option(
        1, "k, Adam steps that one evaluation of the prior serves; the paper: 1", "", 1, 1000)
    distance: str = option(
        "render", "d of a guess: render is the mean squared difference of the step's own renders; paper that of the "
        "parameters, the older iterate un-projected; scaled is the worst field's rms, weighed by atol and rtol "
        "(threshold near 1). With travels=gradients render is paper", choices=("render", "paper", "scaled"))
    atol: float = option(0.01, "of distance=scaled: what counts as 1 of a parameter near 0", "", 1e-9)
    rtol: float = option(0.01, "of distance=scaled: and the share of a large one", "", 0)
    nonfinite: str = option(
        "stop", "what a gradient that is not finite does; skip takes zero instead, counted", choices=("stop", "skip"))
    # fmt: on
