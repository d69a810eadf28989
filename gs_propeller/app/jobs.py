"""What one command is asked for: a job for each picture, or for the prompt, and a queue for the groups of ranks."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from gs_propeller.app.config import Config
from gs_propeller.app.guides import find_priors
from gs_propeller.base.errors import UserError
from gs_propeller.base.names import told_apart
from gs_propeller.base.picture import passed_over, picture_files
from gs_propeller.solver.ranks import Ranks


def jobs_of(config: Config, announce: bool = False) -> list[Config]:
    """A configuration for each picture, or for the prompt. announce: say on stderr what a folder holds besides. Raises
    UserError."""
    find_priors(config)
    if not config.input:
        return [config]
    files, others = picture_files(config.input), passed_over(config.input)
    if announce and others and int(os.environ.get("RANK", 0)) == 0:
        print(f"note: passed over in {config.input}: {', '.join(others)}", file=sys.stderr)
    if len(files) == 1:
        return [config.but(input=files[0])]
    if config.mesh:
        raise UserError(
            f"mesh={config.mesh} is one mesh, but input={config.input} means {len(files)} pictures"
        )
    prefix = f"{config.name}-" if config.name else ""
    names = told_apart(files)
    return [config.but(input=file, name=prefix + name) for file, name in zip(files, names, strict=True)]


def work_off(jobs: Sequence[Config], ranks: Ranks, one: Callable[[int], None]) -> int:
    """one(index) for every job that this group of ranks claims, on its rank 0; the exit code. What cannot be used among
    several is named and skipped."""
    skipped = 0
    while (index := ranks.claim()) < len(jobs):
        try:
            one(index)
        except (UserError, FloatingPointError) as error:
            if len(jobs) == 1:
                raise
            print(f"skipped {jobs[index].input}: {error}", file=sys.stderr)
            skipped += 1
    return 2 if ranks.all_done(skipped) else 0
