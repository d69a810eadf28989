"""Files: splats, meshes, tensors; each appears under its name only when it is whole.

N Gaussians, Nv vertices, Nf faces, T texels along a side. Written meshes: y up, front +z, world units, as glTF
wants it. A file that cannot be written raises UserError with its path, and what stood there stays.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gs_propeller.errors import UserError
from gs_propeller.gaussians import Gaussians
from gs_propeller.mesh import Mesh, vertex_normals
from gs_propeller.texture import Textured


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Write to the path this yields; it takes the final name at the end, if nothing was raised. Raises UserError."""
    final = Path(path)
    temporary: Path | None = None
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{final.stem}.", suffix=final.suffix, dir=final.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp's own mode would keep others from reading it
        temporary.replace(final)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"cannot write {final}: {reason}; free some space or choose another outdir="
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def save_tensors(path: str | Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Tensors and JSON metadata in one safetensors file: whole or not at all."""
    # Copies: states of one window share what did not change, and the format wants each name its own memory.
    plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    with atomic(path) as temporary:
        save_file(plain, temporary, {"json": json.dumps(meta)})


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Inverse of save_tensors. Raises UserError for a file that is not one."""
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["json"])  # noqa: SIM118 - not a dict
    except (OSError, RuntimeError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); start anew with resume=false") from error


def save_ply(path: str | Path, gaussians: Gaussians) -> None:
    """The layout of 3DGS, binary little endian: raw parameters, f_rest channel by channel, normals zero."""
    n, rest = len(gaussians), gaussians.sh_rest.shape[1]
    columns = [
        gaussians.means,
        torch.zeros(n, 3),
        gaussians.sh_dc[:, 0],
        gaussians.sh_rest.transpose(1, 2).reshape(n, -1),
        gaussians.logit_opacities[:, None],
        gaussians.log_scales,
        gaussians.quats,
    ]
    names = [
        "x",
        "y",
        "z",
        "nx",
        "ny",
        "nz",
        *(f"f_dc_{i}" for i in range(3)),
        *(f"f_rest_{i}" for i in range(3 * rest)),
    ]
    names += ["opacity", *(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]
    table = torch.cat([c.detach().cpu().float() for c in columns], 1).numpy().astype("<f4")
    header = [
        "ply",
        "format binary_little_endian 1.0",
        f"element vertex {n}",
        *(f"property float {x}" for x in names),
    ]
    with atomic(path) as temporary:
        temporary.write_bytes("\n".join([*header, "end_header\n"]).encode() + table.tobytes())


def load_ply(path: str | Path) -> Gaussians:
    """A .ply in the layout of save_ply, its properties in any order. Raises UserError."""
    try:
        data = Path(path).read_bytes()
        head, body = data.split(b"end_header\n", 1)
        lines = head.decode("ascii").splitlines()
        if "format binary_little_endian 1.0" not in lines:
            raise ValueError("not binary little endian")
        count = next(int(line.split()[2]) for line in lines if line.startswith("element vertex"))
        names = [line.split()[2] for line in lines if line.startswith("property float")]
        table = torch.from_numpy(np.frombuffer(body, "<f4", count * len(names)).reshape(count, -1).copy())
        column = {name: table[:, i] for i, name in enumerate(names)}

        def take(*keys: str) -> Tensor:
            return torch.stack([column[key] for key in keys], 1)

        rest = sum(name.startswith("f_rest_") for name in names)
        sh_rest = take(*(f"f_rest_{i}" for i in range(rest))) if rest else torch.zeros(count, 0)
        return Gaussians(
            take("x", "y", "z"),
            take("scale_0", "scale_1", "scale_2"),
            take("rot_0", "rot_1", "rot_2", "rot_3"),
            column["opacity"].clone(),
            take("f_dc_0", "f_dc_1", "f_dc_2")[:, None],
            sh_rest.reshape(count, 3, rest // 3).transpose(1, 2).contiguous(),
        )
    except (OSError, ValueError, KeyError, StopIteration, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a Gaussian splat .ply: {error}") from error


def _picture(texture: Tensor) -> Image.Image:
    return Image.fromarray((texture.clamp(0, 1).numpy() * 255 + 0.5).astype(np.uint8))


def save_obj(path: str | Path, textured: Textured) -> None:
    """NAME.obj beside NAME.mtl and NAME.png, which go first, so that the .obj never points to nothing."""
    final = Path(path)
    with atomic(final.with_suffix(".png")) as temporary:
        _picture(textured.texture).save(temporary)
    material = f"newmtl surface\nKa 1 1 1\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {final.stem}.png\n"
    with atomic(final.with_suffix(".mtl")) as temporary:
        temporary.write_text(material)
    mesh = textured.mesh
    lines = [f"mtllib {final.stem}.mtl", "usemtl surface"]
    lines += [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in mesh.vertices.tolist()]
    lines += [f"vt {u:.6f} {v:.6f}" for u, v in textured.uvs.tolist()]
    lines += [f"vn {x:.4f} {y:.4f} {z:.4f}" for x, y, z in vertex_normals(mesh).tolist()]
    for corners, uv in zip((mesh.faces + 1).tolist(), (textured.uv_faces + 1).tolist(), strict=True):
        lines.append("f " + " ".join(f"{c}/{t}/{c}" for c, t in zip(corners, uv, strict=True)))
    with atomic(final) as temporary:
        temporary.write_text("\n".join(lines) + "\n")


def save_glb(path: str | Path, textured: Textured) -> None:
    """Binary glTF: texture inside as PNG (sRGB), metallic 0, roughness 1, smooth normals."""
    # glTF has one index for all: a vertex on a seam is written once for each of its texture coordinates.
    pairs = torch.stack([textured.mesh.faces.reshape(-1), textured.uv_faces.reshape(-1)], 1)
    unique, faces = torch.unique(pairs, dim=0, return_inverse=True)
    normals = vertex_normals(textured.mesh)[unique[:, 0]]
    material = trimesh.visual.material.PBRMaterial(
        baseColorTexture=_picture(textured.texture), metallicFactor=0.0, roughnessFactor=1.0
    )
    scene = trimesh.Trimesh(
        textured.mesh.vertices[unique[:, 0]].numpy(),
        faces.reshape(-1, 3).numpy(),
        vertex_normals=normals.numpy(),
        visual=trimesh.visual.TextureVisuals(uv=textured.uvs[unique[:, 1]].numpy(), material=material),
        process=False,
    )
    with atomic(path) as temporary:
        temporary.write_bytes(scene.export(file_type="glb", include_normals=True))


def load_mesh(path: str | Path) -> Textured:
    """A textured .obj or .glb. Raises UserError when it is none, or has no texture."""
    if not Path(path).is_file():
        raise UserError(f"no mesh {path}; run main_propeller.py first, or give mesh=FILE.obj or .glb")
    try:
        loaded = trimesh.load(path, force="mesh", process=False)
        material = loaded.visual.material
        image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
        uvs = loaded.visual.uv
        if image is None or uvs is None:
            raise ValueError("it has no texture")
        texture = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
        faces = torch.from_numpy(np.array(loaded.faces, dtype=np.int64))
        vertices = np.array(loaded.vertices, dtype=np.float32)
        if not len(faces):
            raise ValueError("it has no faces")
    except (ValueError, AttributeError, OSError, IndexError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a textured .obj or .glb: {error}") from error
    # Vertices that a seam doubled are one again, so that normals are smooth across it.
    points, index = np.unique(vertices, axis=0, return_inverse=True)
    mesh = Mesh(torch.from_numpy(points), torch.from_numpy(index.reshape(-1))[faces])
    return Textured(
        mesh, torch.from_numpy(np.array(uvs, dtype=np.float32)), faces, torch.from_numpy(texture.copy())
    )
