"""Mesh files. Nv vertices, Nf faces, T texels along a side.

Written meshes: y up, front +z, world units, as glTF wants it. A file that cannot be written raises UserError with its
path, and what stood there stays.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import trimesh
from PIL import Image
from torch import Tensor

from gs_propeller.base.files import atomic
from gs_propeller.mesh.surface import vertex_normals
from gs_propeller.mesh.texture import Textured


def _picture(texture: Tensor) -> Image.Image:
    return Image.fromarray((texture.clamp(0, 1).numpy() * 255 + 0.5).astype(np.uint8))


def save_obj(path: str | Path, textured: Textured) -> None:
    """NAME.obj beside NAME.mtl and NAME.png, which go first, so that the .obj never points to nothing."""
    final = Path(path)
    with atomic(final.with_suffix(".png")) as temporary:
        _picture(textured.texture).save(temporary)
    material = f"newmtl surface\nKa 1 1 1\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {final.stem}.png\n"
    with atomic(final.with_suffix(".mtl")) as temporary:
        temporary.write_text(material, encoding="utf-8")
    mesh = textured.mesh
    lines = [f"mtllib {final.stem}.mtl", "usemtl surface"]
    lines += [f"v {x:.9g} {y:.9g} {z:.9g}" for x, y, z in mesh.vertices.tolist()]  # of any scale, to the bit
    lines += [f"vt {u:.6f} {v:.6f}" for u, v in textured.uvs.tolist()]
    lines += [f"vn {x:.4f} {y:.4f} {z:.4f}" for x, y, z in vertex_normals(mesh).tolist()]
    for corners, uv in zip((mesh.faces + 1).tolist(), (textured.uv_faces + 1).tolist(), strict=True):
        lines.append("f " + " ".join(f"{c}/{t}/{c}" for c, t in zip(corners, uv, strict=True)))
    with atomic(final) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def save_glb(path: str | Path, textured: Textured) -> None:
    """Binary glTF: texture inside as PNG (sRGB), metallic 0, roughness 1, smooth normals; seen from both sides where
    the mesh is open."""
    # glTF has one index for all: a vertex on a seam is written once for each of its texture coordinates.
    pairs = torch.stack([textured.mesh.faces.reshape(-1), textured.uv_faces.reshape(-1)], 1)
    unique, faces = torch.unique(pairs, dim=0, return_inverse=True)
    normals = vertex_normals(textured.mesh)[unique[:, 0]]
    material = trimesh.visual.material.PBRMaterial(
        baseColorTexture=_picture(textured.texture), metallicFactor=0.0, roughnessFactor=1.0,
        doubleSided=None if textured.mesh.trimesh().is_watertight else True,
    )  # fmt: skip
    scene = trimesh.Trimesh(
        textured.mesh.vertices[unique[:, 0]].numpy(),
        faces.reshape(-1, 3).numpy(),
        vertex_normals=normals.numpy(),
        visual=trimesh.visual.TextureVisuals(uv=textured.uvs[unique[:, 1]].numpy(), material=material),
        process=False,
    )
    with atomic(path) as temporary:
        temporary.write_bytes(scene.export(file_type="glb", include_normals=True))
