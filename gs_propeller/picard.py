"""The solver by its short name: `from gs_propeller.picard import Problem, Settings, solve`."""

from gs_propeller.solver.picard import (
    Problem,
    Report,
    Settings,
    Window,
    adapted,
    advance,
    classic,
    init,
    resume,
    solve,
)

__all__ = ["Problem", "Report", "Settings", "Window", "adapted", "advance"]
__all__ += ["classic", "init", "resume", "solve"]
