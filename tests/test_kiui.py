"""kiui, the mesh tools that DreamGaussian's authors use, reads what is written: same surface, same colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from gs_propeller.mesh.io import save_glb, save_obj
from gs_propeller.mesh.surface import from_trimesh
from gs_propeller.mesh.texture import Textured, unwrap

kiui = pytest.importorskip(
    "kiui.mesh", reason="kiui is missing: pip install kiui==0.3.4 (0.3.5's wheel lacks files)"
)


@pytest.fixture
def textured() -> Textured:
    """A ring off the middle, each texel coloured by its place in the atlas."""
    mesh = from_trimesh(trimesh.creation.torus(0.35, 0.12).apply_translation([0.1, 0.0, 0.2]))
    line = torch.linspace(0, 1, 128)
    texture = torch.stack([*torch.meshgrid(line, line, indexing="ij"), torch.full((128, 128), 0.3)], 2)
    return Textured(mesh, *unwrap(mesh, 128), texture)


@pytest.mark.parametrize("kind", ["glb", "obj"])
def test_kiui_reads_it(kind: str, textured: Textured, tmp_path: Path) -> None:
    path = tmp_path / f"ring.{kind}"
    (save_glb if kind == "glb" else save_obj)(path, textured)
    read = kiui.Mesh.load(str(path), resize=False, device=torch.device("cpu"))
    corners, ours = read.v[read.f.long()], textured.mesh.vertices[textured.mesh.faces]
    assert corners.shape == ours.shape
    assert torch.allclose(corners, ours, atol=1e-6)  # .obj has six decimals
    # kiui's v runs down the texture, ours up it
    uv, wanted = read.vt[read.ft.long()], textured.uvs[textured.uv_faces]
    assert torch.allclose(torch.stack([uv[..., 0], 1 - uv[..., 1]], 2), wanted, atol=1e-6)
    albedo = read.albedo.numpy()
    assert albedo.shape == (128, 128, 3)
    assert np.abs(albedo - textured.texture.numpy()).max() <= 0.51 / 255
