"""The kinds that `scene=` chooses among."""

from __future__ import annotations

from gs_propeller.app.config import Config
from gs_propeller.app.kinds.gaussians import GAUSSIANS
from gs_propeller.app.kinds.grids import FIELDS, TETRAHEDRA
from gs_propeller.app.kinds.kind import Kind

KINDS = {"gaussians": GAUSSIANS, "field": FIELDS, "sdf": FIELDS, "tetrahedra": TETRAHEDRA}


def kind_of(config: Config) -> Kind:
    return KINDS[config.scene]
