"""Options of Gaussians: the first state, Adam, density control, regularisers."""

from __future__ import annotations

from dataclasses import dataclass

from gs_propeller.base.options import Section, option


@dataclass(frozen=True)
class BallSettings(Section):
    """The first state."""

    # fmt: off
    num_points: int = option(1500, "Gaussians at the start; DreamGaussian: 5000", "", 4, 10_000_000)
    init_radius: float = option(0.5, "of the ball that they fill", "world units", 0.01, 10)
    sh_degree: int = option(0, "of the colours' spherical harmonics", "", 0, 3)
    # fmt: on


@dataclass(frozen=True)
class AdamSettings(Section):
    """Learning rates by field. That of the means is log-linear from init to final over position_lr_steps, times a
    spatial_lr_scale that is a constant in DreamGaussian's code, not in its config. Their position_lr_delay_mult is left
    out: no delay steps go with it, so it does nothing there."""

    # fmt: off
    position_lr_init: float = option(0.001, "learning rate of means at first, times spatial_lr_scale", above=0.0)
    position_lr_final: float = option(0.00002, "and after position_lr_steps", above=0.0)
    position_lr_steps: int = option(300, "steps from the first to the last; DreamGaussian: 500", "", 1)
    spatial_lr_scale: float = option(10.0, "scale of the scene in the rate of means", above=0.0)
    feature_lr: float = option(0.01, "of colours; the higher harmonics learn at a twentieth of it, as 3DGS", "", 0)
    opacity_lr: float = option(0.05, "of opacities", "", 0)
    scaling_lr: float = option(0.005, "of log-scales", "", 0)
    rotation_lr: float = option(0.005, "of quaternions", "", 0)
    lr_share: float = option(1.0, "of these four that is left after position_lr_steps, log-linear from halfway; "
                             "DreamGaussian: 1", "", 0.0001, 1)
    beta_1: float = option(0.9, "decay of Adam's first moment", "", 0, 0.9999)
    beta_2: float = option(0.999, "and of its second", "", 0, 0.999999)
    eps: float = option(1e-15, "Adam's epsilon", "", 1e-30)
    # fmt: on

    @property
    def betas(self) -> tuple[float, float]:
        return self.beta_1, self.beta_2


@dataclass(frozen=True)
class DensifySettings(Section):
    """When and what is cloned, split and pruned: after update number s, densify_from <= s <= densify_until, where
    densify_every divides s; the same for the opacity reset. A Gaussian whose gradient (mean over views of
    StepStats.grad2d) reaches the threshold is cloned up to split_scale, split above."""

    # fmt: off
    densify_from: int = option(50, "first densification; 3DGS: 100", "step", 0)
    densify_until: int = option(210, "last densification", "step", 0)
    densify_every: int = option(50, "between densifications; DreamGaussian: 100", "steps", 1)
    densify_grad_threshold: float = option(0.5, "2D gradient from which a Gaussian is cloned or split", above=0.0)
    split_scale: float = option(0.4, "largest axis that is cloned, else split; a tenth of extent 4", "world units",
                                above=0.0)
    opacity_reset_every: int = option(700, "between opacity resets", "steps", 1)
    reset_opacity: float = option(0.01, "what a reset lowers opacities to", "", 0.0001, 0.9)
    min_opacity: float = option(0.01, "below it a Gaussian is pruned", "", 0.0001, 0.9)
    max_scale: float = option(0.4, "largest axis that is not pruned; a tenth of extent 4", "world units", above=0.0)
    max_radius: float = option(1.0, "radius that is not pruned, share of a picture's longer side", above=0.0)
    max_gaussians: int = option(8000, "bound on their number: no clones and splits past it", "", 16, 100_000_000)
    min_gaussians: int = option(16, "pruning leaves the most opaque of so many", "", 1)
    # fmt: on

    def __post_init__(self) -> None:
        super().__post_init__()
        self.ordered("min_gaussians", "max_gaussians")


@dataclass(frozen=True)
class RegulariserSettings(Section):
    """Losses on the parameters themselves, and on how they look from elsewhere."""

    # fmt: off
    lambda_opacity: float = option(0.0, "of half-transparency, mean o (1 - o)", "", 0)
    lambda_scale: float = option(0.0, "of large Gaussians, mean squared scale", "", 0)
    lambda_haze: float = option(
        0.0, "half-transparency of novel views, mean a (1 - a), times the square of the share of steps that is over: "
        "outlines where the prior leaves fog", "", 0)
    # fmt: on
