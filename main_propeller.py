"""One picture or sentence in, one textured 3D asset out: score distillation on Gaussians, parallel in time.

    python main_propeller.py --config configs/image.yaml input=data/cat.png
    python main_propeller.py --config configs/text.yaml prompt="a red cube on a blue cylinder"

A door: arguments here, the work in app/first_stage.py, imported once they are read. `torchrun main_propeller.py ...`
spans machines; a folder or a pattern as input is a queue of pictures, worked off by groups of ranks.
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
    from gs_propeller.app.job import Asset


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code, see command.py; 2 also where one of many pictures was skipped."""
    return run(__file__, argv, _checked, _made)


def _checked(config: Config) -> None:
    from gs_propeller.app.first_stage import checked

    checked(config)


def _made(config: Config) -> int:
    from gs_propeller.app.events import Audience
    from gs_propeller.app.first_stage import jobs_of, make_assets
    from gs_propeller.app.log import Log

    return make_assets(jobs_of(config, announce=True), Audience(Log()))


def make_asset(
    config: Config, quiet: bool = False, on_event: Listener | None = None, stop: threading.Event | None = None
) -> Asset:
    """The whole job for one picture or prompt, in this process or as rank 0 of a launch, as Python calls it.

    Its files are written to config.run_folder. quiet: print nothing. on_event(event): told of everything, see
    gs_propeller/app/events.py. stop: once it is set, by whomever, the asset is made of what there is. The other ranks
    of a launch work until rank 0 has no more to ask, and end there (SystemExit). Raises UserError.
    """
    from gs_propeller.app.first_stage import make_assets
    from gs_propeller.app.log import audience_of

    assets: list[Asset] = []
    make_assets([config], audience_of(quiet, on_event, stop), assets)
    return assets[0]


if __name__ == "__main__":
    sys.exit(main())
