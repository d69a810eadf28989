"""A small field, signed distances or tetrahedra under toy_prior's prior in closed form, and a field whose options
change on the way. Run as a program it is the other rank."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from gs_propeller.distil.phases import Distilled, Phases
from gs_propeller.distil.pull import Guide, Pull
from gs_propeller.scenes.fields.scene import FieldScene
from gs_propeller.scenes.fields.settings import FieldLossSettings, FieldSettings, SdfSettings
from gs_propeller.scenes.fields.state import Grids, Slope
from gs_propeller.scenes.tetrahedra.scene import TetScene
from gs_propeller.scenes.tetrahedra.settings import TetSettings
from gs_propeller.solver.ranks import Ranks
from tests import toy_prior

UPDATES = 14
OF_FIELDS = {"field": FieldSettings, "sdf": SdfSettings, "shaping": FieldLossSettings, "tets": TetSettings}
COMMON = {name: kind for name, kind in toy_prior.SECTIONS.items() if name in toy_prior.SHARED}
ASKED: dict[str, Any] = {
    "batch_size": 2, "min_elevation": -20.0, "max_elevation": 25.0, "elevation": 6.0, "t_min": 0.1, "t_max": 0.9,
    "lambda_sds": 1.0, "lambda_rgb": 40.0, "lambda_mask": 20.0, "reference_size": 16, "scene": "field",
    "grid_cells": 8, "grid_levels": 2, "sharpness_last": 40.0, "distance_lr": 0.02,
    "lambda_eikonal": 0.1, "lambda_normal_smooth": 1.0, "lambda_orient": 1.0, "lambda_sparsity": 0.5,
    "lambda_opaque": 0.5, "lambda_laplacian": 1.0, "lambda_consistency": 1.0,
}  # fmt: skip
RANKED = [
    ("field", "pictures", 3),
    ("sdf", "pictures", 1),
    ("field", "gradients", 1),
    ("sdf", "gradients", 3),
    ("tetrahedra", "pictures", 1),
    ("tetrahedra", "gradients", 3),
    ("phases", "pictures", 3),
    ("phases", "gradients", 1),
]
LARGER = {
    "render_size": 14,
    "reference_size": 20,
    "batch_size": 3,
    "t_max": 0.5,
    "lambda_orient": 2.0,
}  # from update 4 on


def scene(updates: int = UPDATES, **options: Any) -> FieldScene:
    """The scene with these options, by their own names."""
    asked, kinds = ASKED | options, COMMON | OF_FIELDS
    sections = {
        name: kind(**{key: value for key, value in asked.items() if key in kind.__dataclass_fields__})
        for name, kind in kinds.items()
    }
    assert not set(asked) - {key for kind in kinds.values() for key in kind.__dataclass_fields__}
    if asked["scene"] != "tetrahedra":
        del sections["tets"]
    kind = TetScene if asked["scene"] == "tetrahedra" else FieldScene
    known = toy_prior.known(asked["reference_size"])
    return kind((Guide(toy_prior.Wavy(), toy_prior.COLOUR, 1.0),), known, updates, 4, **sections)


def phases(**options: Any) -> Phases:
    """A field whose views change in the middle of an evaluation of three updates, and again."""
    parts = scene(**options), scene(**options, **LARGER), scene(**options, **(LARGER | {"render_size": 9}))
    return Phases((0, 4, 10), parts)


def made(kind: str, travels: str, k: int) -> Distilled:
    options = {"travels": travels, "updates_per_evaluation": k}
    return phases(**options) if kind == "phases" else scene(scene=kind, **options)


def ranked(job: int) -> Distilled:
    return made(*RANKED[job])


def travellers(travels: str) -> tuple[Any, Any]:
    return Grids, Pull if travels == "pictures" else Slope


if __name__ == "__main__":
    torch.set_num_threads(1)
    Path(os.environ["READY"]).touch()
    with Ranks(timeout_s=90.0, kinds=travellers(sys.argv[1])) as ranks:
        ranks.serve(lambda job: ranked(job).compute)
