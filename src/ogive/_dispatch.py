"""Tasks on the workers of a Dask cluster whose workers come, go, die or turn out to be the wrong ones.

A task is sent only to workers that have been asked for their versions, never to one that joined since: a worker that
cannot import what a task names drops off the scheduler and takes the task with it. Every wait here ends: at a result,
at the next look at the cluster, or in a ClusterError.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from platform import python_version
from queue import Empty, SimpleQueue
from typing import Any
from uuid import uuid4

from . import options
from .cluster import SCHEDULER, described, differences, mismatch, workers_of
from .errors import ClusterError

log = logging.getLogger("ogive")

AHEAD = 2
"""Tasks per thread of the cluster that are handed out: one runs, the next waits beside it."""
LIVES = 3
"""How often a task may lose all its workers before it counts as the one that kills them."""
_LOOK = 1.0
"""Pause between two looks at the cluster [s]."""
_ASK = 10.0
"""Longest wait for a worker's versions [s]; it may die while it is asked."""
_AGAIN = 30.0
"""Pause until a worker that has not answered is asked again [s]."""
_FETCH = 10.0
"""Longest wait for a result that a worker has reported [s]; its worker may have died since."""


@dataclass
class _Given:
    """A task that was handed out, with all that it takes to hand it out again."""

    name: str
    arguments: tuple[Any, ...]
    workers: frozenset[str] = frozenset()
    lost: int = 0
    future: Any = field(default=None, repr=False)


class Dispatch:
    """One run of tasks on a cluster.

    Parameters
    ----------
    function : callable
        The body of every task.
    client : distributed.Client
    resources : dict of str to float
        What one task takes of its worker, `{"GPU": 1}`; workers that have none of it get no task.

    Raises
    ------
    ClusterError
        The scheduler, or every worker that is there, has other versions than the client.
    """

    def __init__(self, function: Callable[..., Any], client: Any, resources: dict[str, float]) -> None:
        self._function, self._client, self._resources = function, client, resources
        # A name of its own for each run: the scheduler would answer a known one with the result of the run before.
        self._run = uuid4().hex
        self._patience = options.current().patience
        self._slots: dict[str, int] = {}
        self._refused: dict[str, list[str]] = {}
        self._silent: dict[str, float] = {}
        self._known: set[str] = set()
        self._paused: set[str] = set()
        self._given: dict[str, _Given] = {}
        self._done: SimpleQueue[Any] = SimpleQueue()
        self._looked = -_LOOK
        self._usable = time.monotonic()
        self._call: Any = None
        self._look()
        if SCHEDULER in self._refused or (self._refused and not self._slots):
            raise mismatch(self._refused)

    def outcomes(self, tasks: Iterator[tuple[str, tuple[Any, ...]]]) -> Iterator[tuple[str, Any]]:
        """Hand out tasks as others finish; their names and results in the order in which they finish."""
        try:
            for name, arguments in tasks:
                while len(self._given) >= AHEAD * sum(self._slots.values()):
                    yield from self._next()
                self._hand_out(_Given(name, arguments))
            while self._given:
                yield from self._next()
        finally:
            for given in self._given.values():
                given.future.release()

    def _hand_out(self, given: _Given) -> None:
        key = f"block-{self._run}-{given.name}-{given.lost}"
        given.workers = frozenset(self._slots)
        given.future = self._client.submit(
            self._function, *given.arguments, key=key, retries=2, workers=sorted(given.workers),
            resources=self._resources or None,
        )  # fmt: skip
        self._given[key] = given
        given.future.add_done_callback(self._done.put)

    def _next(self) -> list[tuple[str, Any]]:
        """The next result, or what a look at the cluster brings when it is time for one."""
        rest = self._looked + _LOOK - time.monotonic()
        if rest > 0:
            with suppress(Empty):
                return self._outcome(self._done.get(timeout=rest))
        self._look()
        return self._rescue()

    def _outcome(self, future: Any) -> list[tuple[str, Any]]:
        given = self._given.get(future.key)
        if given is None:
            return []
        if future.status == "cancelled":
            raise self._lost("cancelled the tasks")
        try:
            result = future.exception() if future.status == "error" else future.result(timeout=_FETCH)
        except TimeoutError:
            # The result died with its worker; the scheduler computes it anew.
            future.add_done_callback(self._done.put)
            return []
        except Exception as error:
            result = error
        del self._given[future.key]
        self._usable = time.monotonic()
        return [(given.name, result)]

    def _rescue(self) -> list[tuple[str, Any]]:
        """Tasks whose workers are all gone are handed out anew, to those that came instead."""
        dead = []
        for key, given in list(self._given.items()):
            if given.workers & self._known or not self._slots:
                continue
            del self._given[key]
            given.future.release()
            given.lost += 1
            if given.lost < LIVES:
                self._hand_out(given)
            else:
                dead.append((given.name, ClusterError("block", rule=f"lost all its workers {LIVES} times")))
        return dead

    def _look(self) -> None:
        """See who is there, ask those who are new for their versions, and count what each can run at once."""
        if self._client.status != "running":
            raise self._lost(f"client {self._client.status}")
        try:
            workers = workers_of(self._client, self._patience)
            if new := {SCHEDULER, *workers} - self._known - self._waiting():
                self._ask(new)
        except OSError as error:  # TimeoutError is one
            raise self._lost(repr(error)) from error
        self._known = {SCHEDULER, *workers} - self._silent.keys()
        self._refused = {place: found for place, found in self._refused.items() if place in self._known}
        fit = self._known - self._refused.keys()
        # A paused worker has too little memory left and begins nothing; it may come back.
        self._paused = {worker for worker, about in workers.items() if about.get("status") == "paused"}
        room = {worker: self._room(about) for worker, about in workers.items() if worker in fit - self._paused}
        self._slots = {worker: count for worker, count in room.items() if count}
        self._looked = time.monotonic()
        if self._slots:
            self._usable, self._call = self._looked, None
        elif self._looked > self._usable + self._patience:
            raise self._no_worker()
        elif self._call is None:
            # An adaptive cluster that has shrunk to nothing starts a worker only when a task waits for one; this one
            # any worker can run.
            self._call = self._client.submit(python_version, pure=False, resources=self._resources or None)

    def _waiting(self) -> set[str]:
        """Those that have not answered a moment ago."""
        return {place for place, asked in self._silent.items() if asked + _AGAIN > time.monotonic()}

    def _ask(self, new: set[str]) -> None:
        """Compare the versions of those who are new."""
        found = differences(self._client, new, timeout=min(_ASK, options.current().timeout))
        for place, said in found.items():
            log.warning("%s gets no block: %s", place, described({place: said}))
        silent = {place for place, said in found.items() if said[-1].startswith("no answer")}
        self._silent = {place: t for place, t in self._silent.items() if place not in new}
        self._silent |= dict.fromkeys(silent, time.monotonic())
        self._refused |= {place: said for place, said in found.items() if place not in silent}

    def _room(self, worker: dict[str, Any]) -> int:
        """How many tasks a worker runs at once."""
        has = worker["resources"]
        return min([int(worker["nthreads"]), *(int(has.get(k, 0) / need) for k, need in self._resources.items())])

    def _no_worker(self) -> ClusterError:
        needs = ",".join(f"{name}={need:g}" for name, need in self._resources.items())
        workers = f"{len(self._known) - 1} workers"
        fix = f"start workers with --resources {needs}" if needs else "look at the logs of scheduler and workers"
        if self._paused:
            workers += f", {len(self._paused)} of them paused for want of memory"
            fix = "give each more memory, or fewer threads"
        return ClusterError(
            "cluster", rule=f"must have a worker {f'with {needs} ' if needs else ''}within {self._patience:g} s",
            value=f"{workers}; {described(self._refused)}" if self._refused else workers, fix=fix,
        )  # fmt: skip

    def _lost(self, reason: str) -> ClusterError:
        return ClusterError(
            "scheduler", rule="must answer until the last block is done", value=reason,
            fix="what is done is kept: connect again and run the same line",
        )  # fmt: skip
