"""The viewer of a run's folder, in a browser: splat beside mesh, the states on the way on a slider, cameras, a film.

    python -m gs_propeller.studio.view runs/cat          # http://127.0.0.1:8080
    python -m gs_propeller.studio.view runs/cat host=0.0.0.0 port=8000

A run that is going is followed: its snapshots (snapshots=30), its checkpoint, its mesh as they come. N Gaussians.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from gs_propeller.app.asset import Viewer
from gs_propeller.app.config import Config, load
from gs_propeller.app.job import snapshots
from gs_propeller.base.camera import Cameras
from gs_propeller.base.errors import UserError
from gs_propeller.base.files import load_meta, load_tensors
from gs_propeller.base.media import turntable
from gs_propeller.distil.draw import camera_of, known_camera, where
from gs_propeller.places import checkout, install
from gs_propeller.scenes.gaussians.density import rotations
from gs_propeller.scenes.gaussians.ply import load_ply
from gs_propeller.scenes.gaussians.state import SH_C0, Gaussians, State
from gs_propeller.solver import checkpoint
from gs_propeller.studio.address import address
from gs_propeller.studio.runs import latest_mesh

if TYPE_CHECKING:
    import viser

POLL_S = 1.0
APART = 0.6  # of splat and mesh from the middle, world units
BLUE, GREY = (13, 148, 136), (120, 120, 130)


def view(argv: Sequence[str] | None = None) -> int:
    """Serves until Ctrl-C; returns the exit code, 2 for bad arguments. argv: the run's folder, host=, port=."""
    try:
        host, port, folders = address(sys.argv[1:] if argv is None else argv, 8080)
        if len(folders) != 1 or "=" in folders[0]:
            raise UserError("say which run: view runs/cat [host=127.0.0.1] [port=8080]")
        shown = Shown(Run(folders[0]), host, port)
        print(
            f"http://{shown.server.get_host()}:{shown.server.get_port()} shows {folders[0]}; Ctrl-C ends it"
        )
        while True:
            shown.follow()
            time.sleep(POLL_S)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0


class Run:
    """What a run's folder holds now. Raises UserError where that is no run's."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).resolve()  # of "." too there is a name
        options = self.folder / "config.yaml"
        if not options.is_file():
            raise UserError(f"{folder} is no run's folder: there is no config.yaml in it")
        self.config: Config = load(["--config", str(options)])[0]
        self.name = self.config.run_name  # of its files, wherever the folder has been put
        self.last, self.splat = self.folder / checkpoint.FILE, self.folder / f"{self.name}.ply"

    def states(self) -> dict[int, Path]:
        """Where the parameters are, by updates done: snapshots, and last the asset's splat, or while there is none of
        it yet the checkpoint; of Gaussians alone."""
        if self.config.scene != "gaussians":
            return {}
        found = snapshots(self.folder)
        if self.last.is_file():
            done = load_meta(self.last)["start"] * self.config.updates_per_evaluation
            saved = self.splat.is_file() and self.splat.stat().st_mtime >= self.last.stat().st_mtime
            found[min(done, self.config.steps)] = self.splat if saved else self.last
        return dict(sorted(found.items()))

    def params(self, file: Path) -> Gaussians:
        if file == self.splat:
            return load_ply(file)
        if file == self.last:
            return checkpoint.first_state(file, State.from_tensors).params
        return Gaussians(**load_tensors(file)[0])

    def mesh(self) -> Path | None:
        """The latest there is."""
        return latest_mesh(self.folder, self.name)

    def picture(self) -> np.ndarray | None:
        """[S, S, 3] over white: what the program saw."""
        file = self.folder / f"{self.name}_input.png"
        if not file.is_file():
            return None
        with Image.open(file) as opened:
            rgba = opened.convert("RGBA").resize((256, 256))
        white = Image.new("RGBA", rgba.size, "white")
        return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))


def ellipsoids(params: Gaussians) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What the page draws: (centres [N, 3], covariances [N, 3, 3], colours [N, 3], the same from all sides, opacities
    [N, 1])."""
    axes = rotations(params.quats) * params.log_scales.exp()[:, None, :]
    covariances = axes @ axes.transpose(1, 2)
    colours = (0.5 + SH_C0 * params.sh_dc[:, 0]).clamp(0, 1)
    opacities = params.logit_opacities.sigmoid()[:, None]
    return params.means.numpy(), covariances.numpy(), colours.numpy(), opacities.numpy()


class Shown:
    """The page of a run."""

    def __init__(self, run: Run, host: str, port: int) -> None:
        try:
            import viser
        except ModuleNotFoundError as error:
            raise UserError(
                f"the viewer needs viser: {'make app' if checkout() else install('app')}"
            ) from error
        self.run = run
        self.server = viser.ViserServer(host, port, label=f"Propeller: {run.folder.name}", verbose=False)
        gui, scene = self.server.gui, self.server.scene
        gui.configure_theme(
            control_layout="collapsible", show_logo=False, show_share_button=False, brand_color=BLUE
        )
        scene.set_up_direction("+y")
        self.server.initial_camera.position = (0.0, 0.7, 2.6)
        self.server.initial_camera.look_at = (0.0, 0.0, 0.0)
        gui.set_panel_label(run.folder.name)
        self.status = gui.add_markdown("")
        self.slider = gui.add_slider("Step", 0, 1, 1, 0, disabled=True)
        self.cameras = gui.add_checkbox("Cameras of the step", False)
        self.film = gui.add_button("Turntable (.mp4)", disabled=True)
        self.slider.on_update(lambda _: self.show_state())
        self.cameras.on_update(lambda _: self.show_cameras())
        self.film.on_click(self.export)
        self.states: dict[int, Path] = {}
        self.seen: dict[str, Any] = {}
        self.params: Gaussians | None = None
        scene.add_grid("/ground", 4, 4, plane="xz", position=(0.0, -0.62, 0.0), cell_color=(228, 228, 231))
        self.follow()

    def follow(self) -> None:
        """What is new in the folder is shown; the slider stays at the end if it stood there."""
        mesh = self.run.mesh()
        if mesh is not None and self._changed("mesh", mesh):
            data = mesh.read_bytes()
            self.server.scene.add_glb("/mesh", data, position=(APART, 0.0, 0.0), cast_shadow=False)
        places = {"last": self.run.last, "splat": self.run.splat, "states": self.run.folder / "snapshots"}
        changed = [
            self._changed(name, place) for name, place in places.items()
        ]  # of each, not up to the first
        if not any(changed):
            return
        at_end = self.slider.value == self.slider.max or not self.states
        self.states = self.run.states()
        if self.states:
            self.slider.disabled = len(self.states) < 2
            self.slider.max = max(self.states)
            self.film.disabled = False
            if at_end:
                self.slider.value = max(self.states)  # type: ignore[misc]
            self.show_state()

    def _changed(self, name: str, path: Path) -> bool:
        stamp = path.stat().st_mtime_ns if path.exists() else None
        before, self.seen[name] = self.seen.get(name), (path, stamp)
        return stamp is not None and before != (path, stamp)

    def nearest(self) -> int:
        """The step of the state that is nearest to where the slider stands."""
        return min(self.states, key=lambda step: abs(step - self.slider.value))

    def show_state(self) -> None:
        if not self.states:
            return
        step = self.nearest()
        if self._changed("state", self.states[step]):
            self.params = self.run.params(self.states[step])
            self.server.scene.add_gaussian_splats(
                "/splat", *ellipsoids(self.params), position=(-APART, 0.0, 0.0)
            )
        said = f"{self.run.config.steps}, {len(self.params or ())} Gaussians; states kept: {len(self.states)}"
        self.status.content = f"step **{step}** of {said}"
        self.show_cameras()

    def show_cameras(self) -> None:
        """The input's with its picture, and those of the step's novel views."""
        views = self.run.config.sections.views
        picture = self.run.picture()
        if picture is not None:
            self._frustum("/cameras/input", known_camera(views), 0, BLUE, picture)
        every = self.run.config.updates_per_evaluation
        step = (self.nearest() if self.states else 0) // every * every
        azimuths, elevations, _ = where(step, views, self.run.config.seed)
        for k in range(views.batch_size):
            self._frustum(f"/cameras/{k}", camera_of(views, azimuths, elevations), k, GREY, None)

    def _frustum(
        self, name: str, cameras: Cameras, k: int, colour: tuple[int, int, int], image: np.ndarray | None
    ) -> None:
        x, y, z, w = Rotation.from_matrix(cameras.w2c[k, :3, :3].numpy().T).as_quat()
        place = cameras.centres[k].numpy() + np.array([-APART, 0.0, 0.0])
        self.server.scene.add_camera_frustum(
            name, cameras.fov_y_rad, 1.0, scale=0.12, thickness=0.006, color=colour, image=image,
            wxyz=(w, x, y, z), position=place, visible=self.cameras.value, cast_shadow=False, receive_shadow=False,
        )  # fmt: skip

    def export(self, event: viser.GuiEvent) -> None:
        """A film of the state on the slider, as the run itself would make it."""
        if self.params is None or event.client is None:
            return
        config = self.run.config
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "turntable.mp4"
            frames = Viewer(self.params, config).turntable(
                config.turntable_frames or 60, config.turntable_size
            )
            turntable(file, frames, config.fps)
            name = f"{self.run.folder.name}_{self.nearest()}.mp4"
            event.client.send_file_download(name, file.read_bytes(), save_immediately=True)


if __name__ == "__main__":
    sys.exit(view())
