"""Programs run by processes that have loaded everything: a tenth of a second to start, not seconds.

They are forked from one that has imported the program and has done nothing else. That a process of its own can be
started is in tests/test_torchrun.py and in the launcher's tests.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import reduction
from multiprocessing.process import BaseProcess
from typing import Any

LOADED = [
    "gs_propeller.app.asset",
    "gs_propeller.app.refining",
    "guidance.zero123",
    "guidance.stable_diffusion",
    "main_propeller",
    "main2_mesh",
]
METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
CONTEXT = multiprocessing.get_context(METHOD)
CONTEXT.set_forkserver_preload(LOADED)


class Loaded:
    """`python program words` in a process forked from the loaded one, with this environment and this process's output;
    what a test asks of a subprocess.Popen."""

    def __init__(self, program: str, words: Sequence[str], environment: Mapping[str, str]) -> None:
        outputs = [reduction.DupFd(number) for number in (1, 2)] if METHOD == "forkserver" else []
        work: Any = (program, list(words), dict(environment), outputs)
        self.process: BaseProcess = CONTEXT.Process(target=_ran, args=work)
        self.process.start()

    def poll(self) -> int | None:
        """Its exit code, minus the signal that it died of; None while it lives."""
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """poll once it has ended; TimeoutError after so many seconds."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise TimeoutError(f"process {self.process.pid} has not ended in {timeout} s")
        return self.process.exitcode

    def terminate(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        self.process.kill()


def _ran(program: str, words: list[str], environment: dict[str, str], outputs: list[Any]) -> None:
    for number, output in enumerate(outputs, 1):
        os.dup2(output.detach(), number)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [program, *words]
    runpy.run_path(program, run_name="__main__")
