"""How ranks find one another at a start, and what is said when one is lost."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from gs_propeller.base.errors import RankError


class Lost(RankError):
    """A rank died or kept silent: nothing more comes from it."""


def of_this_start(store: dist.Store, process: int, processes: int, timeout_s: float) -> dist.Store:
    """The part of the launcher's store that belongs to this start of the ranks, after a handshake of them all.

    torchrun restarts ranks on one and the same store, with the dead ones' addresses and counters still in it, and
    numbers the restarts differently on each node. So every process writes a word of its own, the first gathers
    the words under a new name, again until each has found its word there, and that name is the prefix.
    Raises RuntimeError at the timeout.
    """
    word = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"
    until = time.monotonic() + timeout_s
    store.set(f"propeller/word/{process}", word)
    while time.monotonic() < until:
        if process == 0:
            words = [store.get(f"propeller/word/{rank}").decode() for rank in range(processes)]
            store.set("propeller/start", "\n".join(words))
            if store.add(f"propeller/seen/{word}", 0) == processes - 1:
                return dist.PrefixStore(f"propeller/{word}", store)
        elif store.check(["propeller/start"]):
            words = store.get("propeller/start").decode().split("\n")
            if words[process:] and words[process] == word:
                store.add(f"propeller/seen/{words[0]}", 1)
                return dist.PrefixStore(f"propeller/{words[0]}", store)
        time.sleep(0.05)
    raise RuntimeError(f"not all {processes} ranks came within {timeout_s:.0f} s")


@contextmanager
def lost(rank: int) -> Iterator[None]:
    """What torch.distributed raises when the other side died, hangs or was never there, by our name."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].split("] ", 1)[-1].split(". ")[0]
        message = f"rank {rank} was lost: it died, or was silent for longer than the timeout ({reason})"
        raise Lost(message) from error
