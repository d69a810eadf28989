"""A surface of tetrahedra to a closed triangle mesh: its own triangles, without what floats, smoothed and decimated."""

from __future__ import annotations

import numpy as np
import torch
import trimesh
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from gs_propeller.base.errors import UserError
from gs_propeller.mesh.surface import KEPT_SHARE, Mesh, clean
from gs_propeller.scenes.fields.march import Look, composed
from gs_propeller.scenes.fields.state import Grids
from gs_propeller.scenes.tetrahedra.march import marched


@torch.no_grad()
def extract_tets(grids: Grids, look: Look, faces: int = 10_000) -> Mesh:
    """A watertight mesh of about `faces` faces; never empty. Raises UserError where the distances are not finite."""
    grid = composed(grids.map(lambda x: x.detach().cpu()), look)
    if not bool(grid.isfinite().all()):
        raise UserError(
            "there is nothing to make a mesh of: the tetrahedra are not finite; run again with resume=false"
        )
    surface = marched(grid, look.extent)
    if not len(surface.faces):
        return clean(trimesh.creation.icosphere(3, radius=2 * look.extent / grids.cells), faces)
    corners = surface.faces.numpy()
    first, others = np.tile(corners[:, 0], 2), np.concatenate([corners[:, 1], corners[:, 2]])
    table = coo_array((np.ones(len(first)), (first, others)), shape=(len(surface.vertices),) * 2)
    _, part = connected_components(table, directed=False)
    places = surface.vertices.double().numpy()
    a, b, c = (places[corners[:, k]] for k in range(3))
    volumes = np.bincount(part[corners[:, 0]], (a * np.cross(b, c)).sum(1), minlength=part.max() + 1) / 6
    kept = volumes >= KEPT_SHARE * volumes.max()  # a cavity's volume is below 0: nobody sees into it
    mesh = trimesh.Trimesh(places, corners[kept[part[corners[:, 0]]]], process=False)
    mesh.remove_unreferenced_vertices()
    return clean(mesh, faces)
