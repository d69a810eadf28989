"""Splat files: the layout of 3DGS, binary little endian, and its axes. N Gaussians.

3DGS's scenes have y down, and viewers turn each such file by half a turn about z to stand it up. So ours are written
turned, with a remark in the header; a file without it is taken as it is: ours were written so once.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gs_propeller.base.errors import UserError
from gs_propeller.base.files import atomic
from gs_propeller.scenes.gaussians.state import Gaussians

Y_DOWN = "comment y down, as 3DGS has it"


def half_turn(gaussians: Gaussians, back: bool = False) -> Gaussians:
    """The scene turned about z by half a turn, or back; changes of sign and place alone, so bits come back."""
    way = 1.0 if back else -1.0
    w, x, y, z = gaussians.quats.unbind(1)
    # Of the harmonics' products of x, y and z, those with an odd number of x and y: every other one from y itself.
    signs = torch.ones(gaussians.sh_rest.shape[1], 1).to(gaussians.sh_rest)
    signs[::2] = -1.0
    return replace(
        gaussians,
        means=gaussians.means * gaussians.means.new_tensor([-1.0, -1.0, 1.0]),
        quats=torch.stack([way * z, way * y, -way * x, -way * w], 1),
        sh_rest=gaussians.sh_rest * signs,
    )


def save_ply(path: str | Path, gaussians: Gaussians) -> None:
    """The layout of 3DGS, binary little endian: raw parameters, f_rest channel by channel, normals zero."""
    gaussians = half_turn(gaussians)
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
        Y_DOWN,
        f"element vertex {n}",
        *(f"property float {x}" for x in names),
    ]
    with atomic(path) as temporary:
        temporary.write_bytes("\n".join([*header, "end_header\n"]).encode() + table.tobytes())


def load_ply(path: str | Path) -> Gaussians:
    """A .ply in the layout of save_ply, its properties in any order, y up. Raises UserError."""
    try:
        data = Path(path).read_bytes()
        head, body = data.split(b"end_header\n", 1)
        lines = head.decode("ascii").splitlines()
        if "format binary_little_endian 1.0" not in lines:
            raise ValueError("not binary little endian")
        count = next(int(line.split()[2]) for line in lines if line.startswith("element vertex"))
        named = [line.split()[1:] for line in lines if line.startswith("property ")]
        odd = [" ".join(words) for words in named if words[0] not in ("float", "float32")]
        if odd:
            raise ValueError(f"its property {odd[0]!r} is no float, as all of a splat's are")
        names = [words[-1] for words in named]
        table = torch.from_numpy(np.frombuffer(body, "<f4", count * len(names)).reshape(count, -1).copy())
        column = {name: table[:, i] for i, name in enumerate(names)}

        def take(*keys: str) -> Tensor:
            return torch.stack([column[key] for key in keys], 1)

        rest = sum(name.startswith("f_rest_") for name in names)
        if rest % 3:
            raise ValueError(f"it has {rest} properties f_rest_, which is no multiple of 3")
        sh_rest = take(*(f"f_rest_{i}" for i in range(rest))) if rest else torch.zeros(count, 0)
        loaded = Gaussians(
            take("x", "y", "z"),
            take("scale_0", "scale_1", "scale_2"),
            take("rot_0", "rot_1", "rot_2", "rot_3"),
            column["opacity"].clone(),
            take("f_dc_0", "f_dc_1", "f_dc_2")[:, None],
            sh_rest.reshape(count, 3, rest // 3).transpose(1, 2).contiguous(),
        )
        return half_turn(loaded, back=True) if Y_DOWN in lines else loaded
    except (OSError, ValueError, KeyError, StopIteration, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a Gaussian splat .ply: {error}") from error
