"""Options of fields: their grids and first state, learning rates, how rays are marched, regularisers, distances."""

from __future__ import annotations

from dataclasses import dataclass

from gs_propeller.base.errors import UserError
from gs_propeller.base.options import Section, option


@dataclass(frozen=True)
class FieldSettings(Section):
    """Grids, rays and rates of a field. threestudio's systems have a hash grid of 16 levels under two small networks,
    512 samples a ray and Adam(0.9, 0.99) at a rate of 0.01."""

    # fmt: off
    grid_cells: int = option(64, "along a side of the finest grid", "cells", 2, 1024)
    grid_levels: int = option(3, "grids, each with half the cells of the next, added up", "", 1, 10)
    grid_extent: float = option(1.0, "half side of the cube that they fill", "world units", 0.01, 100)
    blob_density: float = option(10.0, "of the density at the centre before training, as all the systems", "", 0)
    blob_radius: float = option(0.5, "where it falls to nothing; of an SDF's first ball", "world units", 0.01, 100)
    ray_step: float = option(0.75, "between samples on a ray", "finest cells", 0.05, 4)
    density_lr: float = option(0.3, "learning rate of the raw density", "", 0)
    distance_lr: float = option(0.004, "of an SDF's distance", "world units", 0)
    colour_lr: float = option(0.05, "of the raw colour", "", 0)
    grid_lr_share: float = option(0.1, "of these rates that is left at the last step, log-linear; the systems: 1", "",
                                  1e-6, 1)
    grid_beta_2: float = option(0.99, "decay of Adam's second moment; of the first 0.9", "", 0, 0.999999)
    grid_eps: float = option(1e-8, "Adam's epsilon; a cell that hardly counts then hardly moves", "", 1e-30)
    # fmt: on

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.grid_cells % 2 ** (self.grid_levels - 1):
            raise UserError(
                f"grid_cells={self.grid_cells} cannot be halved {self.grid_levels - 1} times; "
                f"grid_levels={self.grid_levels} needs a multiple of {2 ** (self.grid_levels - 1)}"
            )

    @property
    def betas(self) -> tuple[float, float]:
        return 0.9, self.grid_beta_2

    @property
    def cell(self) -> float:
        """Side of a finest cell, world units."""
        return 2 * self.grid_extent / self.grid_cells


@dataclass(frozen=True)
class SdfSettings(Section):
    """How an SDF's distance becomes opacity (NeuS). There the sharpness is learnt; here it is a function of the step,
    so that a guess at any step is judged as it will be rendered."""

    # fmt: off
    sharpness_first: float = option(20.0, "of the surface at step 0; NeuS: exp(3)", "1 / world unit", above=0.0)
    sharpness_last: float = option(150.0, "and at the last step, log-linear", "1 / world unit", above=0.0)
    lambda_eikonal: float = option(1000.0, "of slopes other than 1, as TextMesh", "", 0)
    # fmt: on


@dataclass(frozen=True)
class FieldLossSettings(Section):
    """Losses on a field's renders, of the novel views and of the known one, as the systems have them."""

    # fmt: off
    lambda_normal_smooth: float = option(0.0, "of normals that differ from pixel to pixel; Zero-1-to-3: 8", "", 0)
    lambda_orient: float = option(0.0, "of normals that face away from the view; DreamFusion: 10 to 1000", "", 0)
    lambda_sparsity: float = option(0.0, "of opacity, mean sqrt(o^2 + 0.01); DreamFusion: 1", "", 0)
    lambda_opaque: float = option(0.0, "of half opacity, its entropy; ProlificDreamer: to 1000", "", 0)
    # fmt: on

    @property
    def normals(self) -> bool:
        """Whether any of them needs the normals."""
        return self.lambda_normal_smooth > 0 or self.lambda_orient > 0
