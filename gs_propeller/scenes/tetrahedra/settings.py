"""Options of tetrahedra: what of them learns and is shown, rates, regularisers of the surface."""

from __future__ import annotations

from dataclasses import dataclass

from gs_propeller.base.options import Section, option


@dataclass(frozen=True)
class TetSettings(Section):
    """A surface on a grid of tetrahedra (DMTet), whose grids and rates are a field's: grid_cells, grid_levels,
    grid_extent, distance_lr, colour_lr."""

    # fmt: off
    shift_lr: float = option(0.02, "learning rate of the corners' raw shifts", "", 0)
    learns: str = option(
        "all", "what moves: shape and colours; or one alone, as in ProlificDreamer's second and third stage",
        choices=("all", "shape", "colours"))
    shows: str = option(
        "colours", "what the priors are shown: colours, or normals as colours, as in ProlificDreamer's second stage",
        choices=("colours", "normals"))
    lambda_laplacian: float = option(
        0.0, "of vertices off the mean of their neighbours, in cells; ProlificDreamer: 1e4, world units", "", 0)
    lambda_consistency: float = option(
        0.0, "of normals that differ along edges, mean 1 - cos; Magic3D, ProlificDreamer: 1e4", "", 0)
    # fmt: on
