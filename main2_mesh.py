"""The second stage: the mesh's texture follows what the prior makes of its own views, parallel in time too.

    python main2_mesh.py --config configs/image.yaml input=data/cat.png

Starts from the first stage's run folder, or from any mesh given by mesh=FILE. A door: arguments here, the work in
app/second_stage.py, imported once they are read. A folder or a pattern as input is a queue, as in main_propeller.py.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gs_propeller.app.config import Config
from gs_propeller.command import run

if TYPE_CHECKING:
    from gs_propeller.app.events import Listener
    from gs_propeller.app.second_stage import Refined


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code, see command.py; 2 also where one of many pictures was skipped."""
    return run(__file__, argv, _checked, _refined, splats=False)


def _checked(config: Config) -> None:
    from gs_propeller.app.second_stage import checked

    checked(config)


def _refined(config: Config) -> int:
    from gs_propeller.app.events import Audience
    from gs_propeller.app.log import Log
    from gs_propeller.app.second_stage import jobs_of, refine_assets

    return refine_assets(jobs_of(config, announce=True), Audience(Log()))


def refine_asset(
    config: Config, quiet: bool = False, on_event: Listener | None = None, stop: threading.Event | None = None
) -> Refined:
    """Refines the texture of config.mesh, or of the first stage's mesh; returns it with the files written.

    The mesh that it starts from stays as it is: the result is NAME_refined. quiet, on_event and stop are
    main_propeller.make_asset's. The other ranks of a launch work until
    rank 0 has no more to ask, and end there (SystemExit). Raises UserError.
    """
    from gs_propeller.app.log import audience_of
    from gs_propeller.app.second_stage import refine_assets

    made: list[Refined] = []
    refine_assets([config], audience_of(quiet, on_event, stop), made)
    return made[0]


if __name__ == "__main__":
    sys.exit(main())
