"""The Blender add-on, in Blender itself: what the server sends stands in the scene, textured, upright, at its scale.

bpy is 370 MB, so it is no requirement: `make blender` sets it up in build/blender and runs this. PROPELLER_BPY_PYTHON
names another Python that has it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import trimesh

pytest.importorskip("fastapi", reason="fastapi is missing: pip install -r requirements-app.txt")

from gs_propeller.app.events import Event, Note
from gs_propeller.mesh.io import save_glb
from gs_propeller.mesh.surface import from_trimesh
from gs_propeller.mesh.texture import Textured, unwrap
from gs_propeller.studio.queue import PICTURE, Queue
from tests.served import serving

ROOT = Path(__file__).parent.parent
PYTHON = os.environ.get("PROPELLER_BPY_PYTHON") or (sys.executable if find_spec("bpy") else "")


def wedge() -> Textured:
    """Without symmetry, y up: 2 high, 1 broad; its only corner in front (z = 0.5) is at the left below (x = -0.5)."""
    corners = [[-0.5, -1.0, 0.5], [0.5, -1.0, -0.5], [-0.5, -1.0, -0.5], [-0.5, 1.0, -0.5]]
    mesh = from_trimesh(trimesh.convex.convex_hull(trimesh.Trimesh(corners)))
    texture = torch.tensor([0.8, 0.4, 0.2]).expand(32, 32, 3).contiguous()
    return Textured(mesh, *unwrap(mesh, 32), texture)


@pytest.mark.slow
@pytest.mark.skipif(
    not PYTHON, reason="bpy is missing: make blender, or PROPELLER_BPY_PYTHON=PYTHON_THAT_HAS_IT"
)
def test_an_asset_arrives_in_blender_textured_upright_and_at_scale(tmp_path: Path) -> None:
    save_glb(tmp_path / "wedge.glb", wedge())
    orders: list[tuple[dict[str, Any], bool]] = []

    def make(options: Mapping[str, Any], folder: Path, listen: Callable[[Event], None]) -> bytes:
        orders.append((dict(options), (folder / PICTURE).exists()))
        listen(Note("a word that nobody taught it"))
        return (tmp_path / "wedge.glb").read_bytes()

    with serving(Queue(make)) as server:
        command = [PYTHON, "tests/blender_check.py", "blender/propeller_addon.py", server, "data/cat.png"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert "FOUND" in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("Info: a word that nobody taught it") == len(orders)
    found = json.loads(done.stdout.split("FOUND ")[1].splitlines()[0])
    assert found["ended"] == ["FINISHED", "FINISHED"]
    assert orders == [({"seed": 0}, True), ({"seed": 0, "steps": 7, "prompt": "a red cube"}, False)]
    assert "give image=, a picture's file, or prompt=, a sentence" in found["said"]

    small, large = sorted(found["assets"], key=lambda asset: asset["height"])
    assert (small["name"], small["height"], large["name"], large["height"]) == ("cat", 0.5, "a red cube", 1.0)
    for asset, scale in ((small, 0.25), (large, 0.5)):
        assert asset["image"] == [32, 32] and asset["uvs"] == 1
        assert asset["pixel"] == pytest.approx([0.8, 0.4, 0.2], abs=0.004)  # half of 1 / 255, and rounding
        assert (asset["metallic"], asset["roughness"]) == (0.0, 1.0)
        # it stands on the cursor (1, 2, 3); z is up, and what was in front (+z) is towards -y
        wanted = [(-0.5, -0.5, 0.0), (0.5, 0.5, 0.0), (-0.5, 0.5, 0.0), (-0.5, 0.5, 2.0)]
        placed = {
            (round(1 + scale * x, 4), round(2 + scale * y, 4), round(3 + scale * z, 4)) for x, y, z in wanted
        }
        assert {tuple(corner) for corner in asset["corners"]} == placed
