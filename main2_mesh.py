"""The second stage: the mesh's texture follows what the prior makes of its own views, parallel in time too.

    python main2_mesh.py --config configs/image.yaml input=data/cat.png

Starts from the first stage's run folder, or from any textured .obj or .glb given by mesh=FILE. Read downwards:
arguments, ranks, solve, save.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from gs_propeller.app.command import run
from gs_propeller.app.config import Config
from gs_propeller.app.devices import device_of
from gs_propeller.app.fingerprint import given_bytes
from gs_propeller.app.guides import find_priors, load_priors, picture_of
from gs_propeller.app.job import solved
from gs_propeller.app.log import quiet_libraries, summary
from gs_propeller.app.refining import TRAVELLERS, refinement, refining, saved
from gs_propeller.mesh.io import load_mesh
from gs_propeller.mesh.texture import Textured
from gs_propeller.solver import checkpoint
from gs_propeller.solver.launcher import share_cores
from gs_propeller.solver.ranks import Ranks


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code, see command.py."""
    return run(__file__, argv, _checked, lambda config: 0 if refine_asset(config) else 1)


def _checked(config: Config) -> None:
    """What is wrong with the input is said once, not by every rank. Raises UserError."""
    picture_of(config)
    find_priors(config)
    load_mesh(mesh_file(config))


def mesh_file(config: Config) -> Path:
    """The mesh to refine."""
    return Path(config.mesh) if config.mesh else config.run_folder / f"{config.run_name}.obj"


def refine_asset(config: Config, quiet: bool = False) -> tuple[Textured, dict[str, Path]]:
    """Refines the texture of config.mesh, or of the first stage's mesh; returns it with the files written.

    The mesh that it starts from stays as it is: the result is NAME_refined. The other ranks of a launch work until
    rank 0 has no more to ask, and end there (SystemExit). Raises UserError.
    """
    begun_s = time.monotonic()
    find_priors(config)
    picture, textured = picture_of(config), load_mesh(mesh_file(config))
    quiet_libraries()
    share_cores(int(os.environ.get("LOCAL_WORLD_SIZE", 1)), config.threads)
    device = device_of(config)
    task = refinement(config, textured, picture, load_priors(config, device, quiet))
    with Ranks(task.device, config.timeout_s, kinds=TRAVELLERS, rollout=config.rollout_device) as ranks:
        if ranks.rank > 0:
            ranks.serve(lambda job: task.compute)
            raise SystemExit(0)
        with checkpoint.lock(config.run_folder):
            ranks.begin(0, task.compute)
            given = given_bytes(config) + mesh_file(config).read_bytes()
            stage = refining(config, ranks, task, given)
            window, seconds = solved(config, stage, ranks.device, quiet)
            ranks.close()  # the others need not wait for the files
            refined = task.result(window.states[0])
            files = saved(config, refined)
            (config.run_folder / stage.checkpoint).unlink(missing_ok=True)  # done: the next call starts anew
    if not quiet:
        total_s = time.monotonic() - begun_s
        rows = [
            (
                "steps",
                f"{window.start * stage.every} in {window.passes} passes, {window.evaluations} evaluations",
            ),
            ("time", f"{seconds:.0f} s solving, {total_s:.0f} s in this call"),
        ]
        shown = rows + [(kind, str(path)) for kind, path in files.items()]
        summary(f"{config.run_name}: texture refined", shown)
    return refined, files


if __name__ == "__main__":
    sys.exit(main())
