"""An asset in the making: the problem that a picture or a sentence poses, and what is made of its solution.

V views. This is where the configuration meets the parts; none of them reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gs_propeller.app.config import Config, load
from gs_propeller.app.devices import scene_device
from gs_propeller.app.guides import Priors, guides
from gs_propeller.app.kinds.choice import kind_of
from gs_propeller.app.plan import phases_of
from gs_propeller.base.camera import Cameras, orbit
from gs_propeller.base.errors import UserError
from gs_propeller.base.paths import is_file
from gs_propeller.distil.distillation import Distillation, device_of
from gs_propeller.distil.draw import camera_deg
from gs_propeller.distil.known import Known
from gs_propeller.distil.phases import Distilled, Phases
from gs_propeller.distil.pull import Guide, Pull
from gs_propeller.mesh.raster import rasterize
from gs_propeller.mesh.surface import Mesh, extract
from gs_propeller.mesh.texture import Reference, Textured, bake
from gs_propeller.pictures.picture import Picture
from gs_propeller.scenes.gaussians.state import init_ball
from gs_propeller.solver import checkpoint
from gs_propeller.solver.picard import Problem, Report
from gs_propeller.solver.ranks import Ranks

NOTHING = torch.zeros(0)


def scene_of(config: Config, picture: Picture | None, priors: Priors) -> Distilled:
    """The distillation of this picture or prompt under these priors; the same on every rank."""
    found = guides(config, picture, priors)
    begins, configs = zip(*phases_of(config), strict=True)
    parts = tuple(_part(one, picture, scene_device(priors.first.device), found) for one in configs)
    return parts[0] if len(parts) == 1 else Phases(begins, parts)


def _part(
    config: Config, picture: Picture | None, device: torch.device, found: tuple[Guide, ...]
) -> Distillation:
    s, known = config.sections, None
    if picture is not None:
        known = Known.of(picture.rgb.to(device), picture.mask.to(device), s.known.reference_size)
    common = {
        "guides": found,
        "known": known,
        "updates": s.solver.steps,
        "seed": s.files.seed,
        "views": s.views,
        "levels": s.levels,
        "pull": s.pull,
        "knowing": s.known,
        "settings": s.scene,
        "batch_slots": slots_at_once(config, device),
        "measure": not config.batch_slots,
    }
    return kind_of(config).scene(s, common)


def slots_at_once(config: Config, device: torch.device) -> int:
    """Slots of a rank in one call, if its memory holds them. One by one a CPU loses nothing, and no bit depends on who
    computes a slot."""
    return int(config.batch_slots) or (1 if device.type == "cpu" else config.window or 1)


def travellers(config: Config) -> tuple[Any, Any]:
    """The classes of what goes to the ranks and of what comes back."""
    kind = kind_of(config)
    return kind.params, Pull if config.travels == "pictures" else kind.gradients


class Logged:
    """Of the updates last rolled out, what the log shows of them beside the drift's own losses: [L] by step, until the
    log has them."""

    def __init__(self) -> None:
        self.by_step: dict[int, Tensor] = {}

    def rolling(self, update: Callable[[Any, Any], tuple[Any, Tensor]], step_of: Callable[[Any], int]) -> Any:
        """update(state, drift) -> state, its losses kept."""

        def rolled(state: Any, drift: Any) -> Any:
            after, self.by_step[step_of(state)] = update(state, drift)
            return after

        return rolled

    def rows(self, report: Report[Any]) -> list[Tensor]:
        """The dear and the cheap losses of each accepted step; older ones are forgotten."""
        rows = [
            torch.cat([drift.losses, self.by_step.get(report.start + k, NOTHING).to(drift.losses)])
            for k, drift in enumerate(report.drifts)
        ]
        self.by_step = {k: v for k, v in self.by_step.items() if k >= report.start + report.accepted}
        return rows


def problem(scene: Distilled, ranks: Ranks, logged: Logged) -> Problem[Any, Any]:
    """What the solver integrates; the dear part runs on all ranks."""
    by_render = scene.pictures and scene.settings.distance == "render"
    every = scene.settings.updates_per_evaluation
    return Problem(
        ranks.evaluate,
        logged.rolling(scene.update, lambda state: state.step // every),
        scene.distance,
        scene.coast,
        scene.mismatch if by_render else None,
        ranks.expect,
    )


def orbit_camera(config: Config, azimuths_deg: Sequence[float], elevations_deg: Sequence[float]) -> Cameras:
    """V cameras at the configuration's distance; azimuth 0 is the input view's, elevations are absolute."""
    return camera_deg(config.sections.views, azimuths_deg, elevations_deg)


def reference_of(config: Config, picture: Picture | None) -> Reference | None:
    """The input picture, if there is one, with the camera that took it."""
    if picture is None:
        return None
    return Reference(picture.rgb[None], picture.mask[None], orbit_camera(config, [0.0], [config.elevation]))


@dataclass(frozen=True)
class Viewer:
    """Renders a solution from where its configuration puts the cameras."""

    params: Any
    config: Config

    def cameras(self, azimuths_deg: Sequence[float], elevations_deg: Sequence[float]) -> Cameras:
        """V cameras; azimuth 0 is the input view's, elevations are absolute."""
        return orbit_camera(self.config, azimuths_deg, elevations_deg).to(device_of(self.params))

    @torch.no_grad()
    def views(self, cameras: Cameras, size: int) -> tuple[Tensor, Tensor]:
        """(image [V, 3, S, S] over white, alpha [V, 1, S, S])."""
        return kind_of(self.config).views(self.config, self.params, cameras, size)

    def turntable(self, frames: int, size: int) -> Tensor:
        """[F, 3, S, S]: once round at the input's elevation, starting from its view."""
        return self.around([360.0 * k / frames for k in range(frames)], size)

    def around(self, azimuths_deg: Sequence[float], size: int) -> Tensor:
        """[V, 3, S, S] on the CPU, at the input's elevation."""
        cameras = self.cameras(azimuths_deg, [self.config.elevation] * len(azimuths_deg))
        return self.views(cameras, size)[0].clamp(0, 1).cpu()


def orbit_angles(count: int) -> tuple[list[float], list[float]]:
    """(azimuths, elevations) [V] degrees that see all sides: a spiral over three heights."""
    return [360.0 * k / count for k in range(count)], [(0.0, 30.0, -30.0, 65.0)[k % 4] for k in range(count)]


def warm() -> None:
    """Compiles every kernel that leads from Gaussians to a textured mesh, or loads it from the cache. Seconds, once."""
    mesh = extract(init_ball(20, 0.5, 0, 0).params, 16, 100)

    def grey(at: Cameras, size: int) -> tuple[Tensor, Tensor]:
        return torch.full((len(at), 3, size, size), 0.5), torch.ones(len(at), 1, size, size)

    bake(mesh, grey, orbit([0.0], [0.0], 2.0, 0.857), 64, 16)


def fitting(viewer: Viewer) -> Callable[[Mesh], float]:
    """silhouettes(mesh): how well it fits a solution's renders, from all round."""
    config = viewer.config
    judged = orbit_camera(config, [0, 60, 120, 180, 240, 300, 0, 90], [config.elevation] * 6 + [60, -40])
    alphas = viewer.views(judged.to(device_of(viewer.params)), 96)[1][:, 0].cpu() > 0.5

    def silhouettes(mesh: Mesh) -> float:
        seen = rasterize(mesh, judged, 96).mask
        return float((seen & alphas).sum() / (seen | alphas).sum().clamp_min(1))

    return silhouettes


def begun(config: Config, scene: Distilled) -> Any:
    """The state of step 0: the scene's own, or one that starts from the run of `init`. Raises UserError."""
    return seeded(config) if config.init else scene.first()


def seeded(config: Config) -> Any:
    """The state of step 0 that starts from the run of `init`, of any kind. Raises UserError where there is none."""
    check_seed(config)
    folder = Path(config.init)
    was = load(["--config", str(folder / "config.yaml")])[0]
    there, here = kind_of(was), kind_of(config)
    params = checkpoint.first_state(folder / checkpoint.FILE, there.read).params
    if was.scene == config.scene:
        return here.again(was, params, config.sections)
    return here.started(config.sections, there.volume(was, params, fitting(Viewer(params, was))))


def check_seed(config: Config) -> None:
    """Raises UserError where `init` is no folder of another run."""
    folder = Path(config.init)
    if not is_file(folder / checkpoint.FILE) or not is_file(folder / "config.yaml"):
        raise UserError(
            f"init={config.init} is no folder of a run: it wants a {checkpoint.FILE} and a config.yaml"
        )
    if folder.resolve() == config.run_folder.resolve():
        raise UserError(f"init={config.init} is this run's own folder; name=... gives it another")


def textured_mesh(viewer: Viewer, picture: Picture | None) -> Textured:
    """Mesh and texture of a solution: the one of those tried that fits the renders, colours from all round."""
    config = viewer.config
    device = device_of(viewer.params)
    mesh = kind_of(config).mesh(config, viewer.params.map(lambda x: x.detach().cpu()), fitting(viewer))

    def render_views(cameras: Cameras, size: int) -> tuple[Tensor, Tensor]:
        image, alpha = viewer.views(cameras.to(device), size)
        return image.cpu(), alpha.cpu()

    cameras = orbit_camera(config, *orbit_angles(config.bake_views))
    reference = reference_of(config, picture)
    return bake(
        mesh, render_views, cameras, config.texture_size, config.bake_size, reference, config.recolour
    )
