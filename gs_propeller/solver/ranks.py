"""Ranks: one program on several devices, each of which takes its share of the window's drifts.

W ranks in a group, slots: the window's states, dealt round robin, slot j to rank j mod W. Several groups may
share the processes of a launch, each with its own rank 0, taking jobs from one queue. Rank 0 asks and takes its own
share; the others serve until told to stop. What travels, always between rank 0 and one other, for errors to name:
    to a rank     ASK, slots, columns         | rows and step of each slot | parameters, float32, flat
               or BEGIN, number of the job, 0
               or STOP, 0, 0
    and back      DONE, numbers, losses       | each slot's result, then all losses, float32, flat
               or FAILED, bytes, whether a gradient was not finite | the traceback, or what that says, utf-8
No lineage travels: rank 0 knows it, and a drift is a function of (parameters, step) alone, so the result does not
depend on the number of ranks. Nothing is pickled, and every wait ends at the timeout.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from gs_propeller.base.randomness import keyed_generator
from gs_propeller.scenes.gaussians.state import Evaluation, Gaussians

Compute = Callable[
    [Sequence[Any], Sequence[int]], Sequence[Any]
]  # a rank's slots, params and steps -> results
Sent = tuple[dist.Work | None, Tensor]  # a send under way, and the tensor that it still reads

ASK, BEGIN, STOP, DONE, FAILED = range(5)


class Result(Protocol):
    """What comes back, as gaussians.Evaluation: losses [L]; pack() -> any shape, as many numbers for each row of the
    parameters; unpack(flat, losses, params) its inverse; at(state) -> the drift that the solver is given."""

    losses: Tensor

    def pack(self) -> Tensor: ...

    def at(self, state: Any) -> Any: ...


class RankError(RuntimeError):
    """A rank failed, died or kept silent; the message says which, and holds its traceback if it sent one."""


class Ranks:
    """This process among the ranks of its group; alone where no launcher started it. A context manager.

    On rank 0 `begin` says which job comes and `evaluate` is the solver's dear call; leaving the context stops the
    others. On the others `serve` returns when it does. timeout_s: of every wait, so longer than any rank's longest
    computation or loading; also how long the others wait for rank 0's next request. group: ranks in a group, 0: all.
    kinds: the classes of the parameters, which pack() and unpack by rows, and of the results. deal_seed: slots are
    dealt to the ranks by turns, or where it is given, at random: ranks that learn (VSD) then all see the whole window.
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        timeout_s: float = 600.0,
        group: int = 0,
        kinds: tuple[Any, Any] = (Gaussians, Evaluation),
        deal_seed: int | None = None,
    ):
        self.kinds, self.deal_seed = kinds, deal_seed
        if timeout_s <= 0.0:
            raise ValueError(f"timeout_s must be above 0, got {timeout_s}")
        process, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.processes, self.world = processes, group or processes
        if processes % self.world:
            raise ValueError(f"{processes} ranks do not split into groups of {group}")
        self.first = process // self.world * self.world
        self.parent = os.getppid()  # the launcher
        self.rank = process - self.first
        self.compute: Compute = _no_job
        self.device = torch.device(device)
        self.claimed = 0
        self.store: dist.Store | None = None
        # NCCL refuses two ranks on one GPU; then, as on CPUs, what travels is staged through the host
        own_gpu = torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", processes))
        nccl = self.device.type == "cuda" and own_gpu and dist.is_nccl_available()
        self.wire = self.device if nccl else torch.device("cpu")
        if processes > 1:
            if nccl:
                os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")  # or its waits have no timeout
            backend, timeout = "cpu:gloo,cuda:nccl" if nccl else "gloo", timedelta(seconds=timeout_s)
            with _lost(0):
                store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
                self.store = _of_this_start(store, process, processes, timeout_s)
                dist.init_process_group(
                    backend, store=self.store, rank=process, world_size=processes, timeout=timeout
                )
                if self.rank == 0:
                    self.store.set(f"leader/{self.first}", f"{os.getpid()}@{socket.gethostname()}")

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Tell the others to stop, and leave. Twice does no harm."""
        if not dist.is_initialized():
            return
        if self.rank == 0:
            for other in range(1, self.world):
                try:
                    dist.send(torch.tensor([STOP, 0, 0]), self.first + other)
                except RuntimeError:
                    continue  # it is gone already
        dist.destroy_process_group()

    def claim(self) -> int:
        """The number of the next job that no group has taken, from 0; on rank 0 of a group."""
        if self.store is not None:
            return int(self.store.add("jobs", 1)) - 1
        self.claimed += 1
        return self.claimed - 1

    def all_done(self, skipped: int) -> int:
        """Jobs skipped by all groups, once every group is done: on the first rank 0; the others' answer is 0.

        A process that ended with an error would have the launcher end all others, so only the first may, and last.
        """
        if self.store is None:
            return skipped
        self.store.add("skipped", skipped)
        self.store.add("done", 1)
        if self.first:
            return 0
        while self.store.add("done", 0) < self.processes // self.world:
            time.sleep(0.1)  # a group that dies takes this process with it: the launcher sees to that
        return int(self.store.add("skipped", 0))

    def begin(self, job: int, compute: Compute) -> None:
        """What is asked next belongs to this job; compute: rank 0's own share of it."""
        self.compute = compute
        for other in range(1, self.world):
            self._send(torch.tensor([BEGIN, job, 0]), other)

    def evaluate(self, states: Sequence[Any], steps: Sequence[int]) -> list[Any]:
        """Drifts of all slots, in their order; on rank 0 alone. Raises RankError, or what compute raises."""
        if self.processes > 1 and os.getppid() != self.parent:
            raise RankError("the launcher died; its ranks end too, before another run takes their place")
        shares = self._dealt(steps)
        params = [state.params for state in states]
        sending = {rank: self._ask(rank, shares[rank], params, steps) for rank in range(1, self.world)}
        results: dict[int, Result] = {}
        failure: Exception | None = None
        try:
            own = self.compute([params[slot] for slot in shares[0]], [steps[slot] for slot in shares[0]])
            results |= zip(shares[0], own, strict=True)
        except Exception as error:
            failure = error  # after the others' answers: one left on the wire would pass for the next one
        for rank, sends in sending.items():
            answer = self._collect(rank, [params[slot] for slot in shares[rank]], sends)
            if isinstance(answer, Exception):
                failure = failure or answer
            else:
                results |= zip(shares[rank], answer, strict=True)
        if failure is not None:
            raise failure
        return [results[slot].at(state) for slot, state in enumerate(states)]

    def _dealt(self, steps: Sequence[int]) -> list[list[int]]:
        """Which slots each rank computes."""
        order = list(range(len(steps)))
        if self.deal_seed is not None and steps:
            generator = keyed_generator(self.deal_seed, steps[0], "deal")
            order = torch.randperm(len(steps), generator=generator).tolist()
        return [sorted(order[rank :: self.world]) for rank in range(self.world)]

    def serve(self, prepare: Callable[[int], Compute]) -> None:
        """Compute what rank 0 asks for, until it says stop. Raises RankError when rank 0 is lost.

        prepare(job) -> compute; what it raises goes to rank 0 with the first answer. Ctrl-C and TERM are rank
        0's to answer: it ends its pass, which needs this rank, and then says stop.
        """
        handlers = {sign: signal.signal(sign, signal.SIG_IGN) for sign in (signal.SIGINT, signal.SIGTERM)}
        served = threading.Event()
        threading.Thread(target=self._watch, args=(served,), daemon=True).start()
        try:
            while True:
                command, number, columns = self._recv(torch.empty(3, dtype=torch.int64), 0).tolist()
                if command == STOP:
                    return
                if command == BEGIN:
                    try:
                        self.compute = prepare(number)
                    except Exception as error:
                        self.compute = _failing(error)
                elif number:
                    self._answer(number, columns)
        finally:
            served.set()
            for sign, handler in handlers.items():
                signal.signal(sign, handler)

    def _watch(self, served: threading.Event) -> None:
        """Ends this process soon after rank 0 has died on the same machine.

        Mostly the wait for its next request fails at once, and says so better; but a connection that breaks at an
        unlucky moment leaves the wait to its timeout, minutes later.
        """
        if self.store is None:
            return
        pid, host = self.store.get(f"leader/{self.first}").decode().split("@", 1)
        while host == socket.gethostname() and not served.wait(1.0):
            try:
                os.kill(int(pid), 0)
            except ProcessLookupError:
                if not served.wait(3.0):
                    print(
                        f"error: rank {self.first} was lost: its process is gone", file=sys.stderr, flush=True
                    )
                    os._exit(3)
            except PermissionError:
                return  # it lives, as somebody else

    def _ask(self, rank: int, slots: list[int], params: list[Any], steps: Sequence[int]) -> list[Sent]:
        """Begin to send a rank its slots. No slots, no answer: the request then only says that we live."""
        parts = [params[slot].pack() for slot in slots]
        messages = [torch.tensor([ASK, len(slots), parts[0].shape[1] if parts else 0])]
        if parts:
            messages.append(torch.tensor([[len(params[slot]), steps[slot]] for slot in slots]))
            messages.append(torch.cat([part.reshape(-1) for part in parts]).float().to(self.wire))
        with _lost(self.first + rank):
            return [(dist.isend(message, self.first + rank), message) for message in messages]

    def _answer(self, slots: int, columns: int) -> None:
        """A rank's side of one request."""
        table = self._recv(torch.empty(slots, 2, dtype=torch.int64), 0).tolist()
        sizes = [rows * columns for rows, _ in table]
        flat = self._recv(torch.empty(sum(sizes), device=self.wire), 0).to(self.device)
        params = [self.kinds[0].unpack(part.reshape(-1, columns)) for part in flat.split(sizes)]
        try:
            results = self.compute(params, [step for _, step in table])
            losses = torch.stack([result.losses for result in results])
            body = torch.cat([*(result.pack().reshape(-1) for result in results), losses.reshape(-1)])
            body = body.float().to(self.wire)
            header = [DONE, len(body), losses.shape[1]]
        except Exception as error:  # whatever it is: rank 0 raises it with this traceback, and decides
            broken = isinstance(error, FloatingPointError)  # it says all there is to say
            text = (str(error) if broken else traceback.format_exc()).encode()
            body = torch.frombuffer(bytearray(text), dtype=torch.uint8)
            header = [FAILED, len(body), int(broken)]
        self._send(torch.tensor(header), 0)
        self._send(body, 0)

    def _collect(self, rank: int, params: list[Any], sends: list[Sent]) -> list[Result] | Exception:
        """The answer of a rank, or the failure that it reports; raises RankError when the rank is lost."""
        with _lost(self.first + rank):
            for work, _ in sends:
                if work is not None:
                    work.wait()
        if not params:
            return []
        status, size, terms = self._recv(torch.empty(3, dtype=torch.int64), rank).tolist()
        if status == FAILED:
            text = bytes(self._recv(torch.empty(size, dtype=torch.uint8), rank).tolist()).decode()
            name = f"rank {self.first + rank} of {self.processes}"
            return FloatingPointError(f"{name}: {text}") if terms else RankError(f"{name} failed:\n{text}")
        flat = self._recv(torch.empty(size, device=self.wire), rank).to(self.device)
        rows, numbers = [len(part) for part in params], size - len(params) * terms
        *parts, losses = flat.split([*(numbers * n // sum(rows) for n in rows), len(params) * terms])
        each = zip(parts, losses.reshape(len(params), terms), params, strict=True)
        return [self.kinds[1].unpack(part, loss, at) for part, loss, at in each]

    def _send(self, message: Tensor, rank: int) -> None:
        with _lost(self.first + rank):
            dist.send(message, self.first + rank)

    def _recv(self, into: Tensor, rank: int) -> Tensor:
        with _lost(self.first + rank):
            dist.recv(into, self.first + rank)
        return into


def _no_job(params: Sequence[Any], steps: Sequence[int]) -> list[Result]:
    raise RankError("no job has begun")


def _failing(error: Exception) -> Compute:
    """A compute that raises what preparing it raised."""

    def compute(params: Sequence[Any], steps: Sequence[int]) -> list[Result]:
        raise error

    return compute


def _of_this_start(store: dist.Store, process: int, processes: int, timeout_s: float) -> dist.Store:
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
def _lost(rank: int) -> Iterator[None]:
    """What torch.distributed raises when the other side died, hangs or was never there, by our name."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].split("] ", 1)[-1].split(". ")[0]
        message = f"rank {rank} was lost: it died, or was silent for longer than the timeout ({reason})"
        raise RankError(message) from error
