"""Splats of a tenth of the size, by packages that may be installed: .spz by gsply, .sog by splat-transform (npm)."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from torch.nn import functional as F

from gs_propeller.base.errors import UserError
from gs_propeller.base.files import atomic
from gs_propeller.scenes.gaussians.ply import save_ply
from gs_propeller.scenes.gaussians.state import Gaussians

INSTALL = {"spz": "pip install gsply", "sog": "npm install -g @playcanvas/splat-transform"}
LONGEST_S = 600.0  # of splat-transform


def check_installed(kind: str) -> None:
    """Raises UserError where what writes this kind is missing; "none" needs nothing."""
    there = {"none": True, "spz": importlib.util.find_spec("gsply"), "sog": shutil.which("splat-transform")}
    if not there[kind]:
        raise UserError(f"compressed={kind} needs a package that is not installed: {INSTALL[kind]}")


def save_compressed(path: str | Path, gaussians: Gaussians) -> None:
    """A .spz or .sog, by the path's ending. Raises UserError."""
    kind = Path(path).suffix[1:]
    check_installed(kind)
    with atomic(path) as temporary:
        _save_spz(temporary, gaussians) if kind == "spz" else _save_sog(temporary, gaussians)


def _save_spz(path: Path, gaussians: Gaussians) -> None:
    """SPZ's axes are ours, y up and z towards the viewer: no turn, unlike .ply."""
    import gsply

    cpu = Gaussians(*(tensor.detach().float().cpu().contiguous() for _, tensor in gaussians.items()))
    data = gsply.GSData(
        means=cpu.means.numpy(),
        scales=cpu.log_scales.numpy(),
        quats=F.normalize(cpu.quats, dim=1).numpy(),
        opacities=cpu.logit_opacities.numpy(),
        sh0=cpu.sh_dc[:, 0].contiguous().numpy(),
        shN=cpu.sh_rest.numpy(),
    )
    gsply.write_spz(path, data)


def _save_sog(path: Path, gaussians: Gaussians) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_ply(Path(folder) / "a.ply", gaussians)
        program = os.path.abspath(str(shutil.which("splat-transform")))  # PATH may name it from here
        command = [program, "-q", "-w", "-g", "cpu", "a.ply", "a.sog"]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=LONGEST_S)
        except subprocess.TimeoutExpired as error:
            raise UserError(
                f"splat-transform took longer than {LONGEST_S:.0f} s; compressed=none leaves it out"
            ) from error
        except OSError as error:
            raise UserError(
                f"splat-transform cannot be started ({error}); compressed=none leaves it out"
            ) from error
        if done.returncode or not (Path(folder) / "a.sog").is_file():
            said = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
            raise UserError(f"splat-transform failed ({said[-1]}); compressed=none leaves it out")
        shutil.copyfile(Path(folder) / "a.sog", path)
