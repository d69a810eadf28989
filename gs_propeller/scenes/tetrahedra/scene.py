"""A surface on a grid of tetrahedra as the solver sees it (distil/distillation.py): distances, colours and shifts on
the grids of a field, marched anew at each update, drawn by the mesh rasteriser.

Regularisers are of the surface, so they go where the novel views do: to the guess where gradients travel, else to the
roll-out. (The log has what the roll-out takes.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gs_propeller.base.camera import orbit
from gs_propeller.distil.distillation import DEAR, Group, Seen
from gs_propeller.mesh.antialias import edges_of
from gs_propeller.mesh.coloured import Edges, draw
from gs_propeller.mesh.rows import rows, summed
from gs_propeller.scenes.fields.march import Look, composed
from gs_propeller.scenes.fields.scene import FieldScene
from gs_propeller.scenes.fields.state import FieldState, Grids, first_state
from gs_propeller.scenes.tetrahedra.march import Surface, marched
from gs_propeller.scenes.tetrahedra.settings import TetSettings

CHANNELS = 7  # distance, raw colours, raw shifts
CHEAP = ("rgb", "mask", "laplacian", "consistency")
LOSSES = DEAR + CHEAP
TINY = 1e-7  # twice an area, world units squared, under which a normal fades


@dataclass(frozen=True)
class TetView:
    """image [V, 3, S, S]; alpha [V, 1, S, S]; the surface that was drawn, and its edges."""

    image: Tensor
    alpha: Tensor
    surface: Surface
    edges: Edges


def render(grids: Grids, look: Look, groups: Sequence[Group], shows: Sequence[str] = ()) -> list[TetView]:
    """Each group of views, differentiable in the grids; one surface for all. shows: of each, colours where none."""
    if not groups:
        return []
    surface = marched(composed(grids, look), look.extent)
    edges = edges_of(surface.faces)
    drawn = {"colours": lambda: surface.colours.sigmoid(), "normals": lambda: 0.5 + 0.5 * normals(surface)}
    shown = list(shows) or ["colours"] * len(groups)
    looks = {what: drawn[what]() for what in set(shown)}
    views = []
    for (cameras, size, background), what in zip(groups, shown, strict=True):
        values = looks[what]
        out = draw(surface.vertices, values, surface.faces, edges, cameras, size)
        backdrop = background.detach().to(out).expand(len(cameras), 3)[:, :, None, None]
        alpha = out[:, 3:]
        views.append(TetView(out[:, :3] + (1 - alpha) * backdrop, alpha, surface, edges))
    return views


def warm() -> None:
    """Compile every kernel, or load it from the cache, by rendering a tiny ball. Takes seconds once."""
    levels = (x.clone().requires_grad_() for x in first_state(4, 2, channels=CHANNELS).params.levels)
    look, eye = Look(1.0, 0.6, 1.0, 1.0, True), orbit([0.0], [0.0], 2.0, 0.857)
    (view,) = render(Grids(tuple(levels)), look, [(eye, 16, torch.ones(3))])
    (view.image.sum() + consistency(view.surface, view.edges)).backward()


def normals(surface: Surface) -> Tensor:
    """[Nv, 3] outward, faces weighted by their area; differentiable."""
    corners = rows(surface.vertices, surface.faces.reshape(-1)).reshape(-1, 3, 3)
    face = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    total = summed(face.repeat_interleave(3, 0), surface.faces.reshape(-1), len(surface.vertices))
    return total / (total.square().sum(1, keepdim=True) + TINY**2).sqrt()


def laplacian(surface: Surface, edges: Edges) -> Tensor:
    """Mean distance of a vertex from the mean of its neighbours, world units."""
    ends, count = edges[0], len(surface.vertices)
    there, back = ends.reshape(-1), ends.flip(1).reshape(-1)
    around = summed(rows(surface.vertices, back), there, count)
    valence = torch.bincount(there, minlength=count).clamp_min(1)[:, None]
    return ((around / valence - surface.vertices).square().sum(1) + TINY**2).sqrt().mean()


def consistency(surface: Surface, edges: Edges) -> Tensor:
    """Mean 1 - cos between the normals at the ends of an edge."""
    one, other = (rows(normals(surface), ends) for ends in edges[0].unbind(1))
    return 1 - (one * other).sum(1).mean()


@dataclass(frozen=True)
class TetScene(FieldScene):
    """One asset's distillation on tetrahedra."""

    tets: TetSettings
    cheap: ClassVar[tuple[str, ...]] = CHEAP

    def first(self, device: torch.device | str = "cpu") -> FieldState:
        return first_state(self.field.grid_cells, self.field.grid_levels, device, CHANNELS)

    def rendered(  # type: ignore[override]
        self, leaves: Grids, groups: Sequence[Group], update: int, known: bool = False
    ) -> list[TetView]:
        """The priors see what `shows` says; the input's view is compared with a picture, so by its colours."""
        shows = [self.tets.shows] * len(groups)
        if known:
            shows[-1] = "colours"
        return render(leaves, self.look(update), groups, shows)

    def regularised(self, seen: Seen, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        return losses if seen.novel is None else losses | self._folds(seen.novel)

    def novel_losses(self, view: TetView, share: float) -> list[Tensor]:  # type: ignore[override]
        return list(self._folds(view).values())

    def _folds(self, view: TetView) -> dict[str, Tensor]:
        """Losses of the surface, by name."""
        losses, t = dict[str, Tensor](), self.tets
        if not len(view.surface.faces) or t.learns == "colours":
            return losses
        if t.lambda_laplacian:
            losses["laplacian"] = t.lambda_laplacian * laplacian(view.surface, view.edges) / self.field.cell
        if t.lambda_consistency:
            losses["consistency"] = t.lambda_consistency * consistency(view.surface, view.edges)
        return losses

    def rates(self) -> list[float]:
        shape, colour = self.tets.learns != "colours", self.tets.learns != "shape"
        return (
            [shape * self.field.distance_lr]
            + 3 * [colour * self.field.colour_lr]
            + 3 * [shape * self.tets.shift_lr]
        )
