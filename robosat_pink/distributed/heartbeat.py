"""Who of the processes of a run is alive, and why one that ended did. Called by `distributed`.

Every process counts up a number of its own in the store that the first one keeps, once a second, and looks at the
others'. One that fails leaves the cause there. A process that waits for one that is gone ends, and says which it was:
collective operations alone say no more than that a connection was closed, or nothing at all. The first process, which
writes what a run leaves, ends first: some launchers stop all hosts when one has ended.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore

from robosat_pink.container.contract import Container
from robosat_pink.container.failure_file import user_message
from robosat_pink.container.stop_request import Stopped, StopRequest
from robosat_pink.distributed.launcher import ProcessRank
from robosat_pink.errors import RobosatError

log = logging.getLogger(__name__)

BEAT_S = 1.0
SILENT_S = 5.0  # from which on a process is thought to be gone, if an operation with it failed
VANISHED_S = 60.0  # from which on it is, in any case
LINGER_S = 10.0  # that the first process, which keeps the store, waits for the others to read why it ends
STUCK_S = 20.0  # in which an operation that waits for a process that failed should end by itself


class PeerFailed(RobosatError):
    """Another process has failed or vanished. Its own error says more."""

    is_of_another = True


class Heartbeat:
    def __init__(self, store: Any, process: ProcessRank, host: str, timeout_s: float, container: Container) -> None:
        self._process, self._container = process, container
        self._timeout_s, self._vanished_s = timeout_s, min(VANISHED_S, timeout_s)
        # The main thread waits on its own connection, and whoever shares that waits with it.
        self._store = PrefixStore("peers", store.clone())
        self._store.set(f"host{process.rank}", host)
        self.hosts = [self._store.get(f"host{rank}").decode() for rank in range(process.size)]
        self._beats = dict.fromkeys(range(process.size), b"")
        self._heard = dict.fromkeys(range(process.size), time.monotonic())
        self._answered = self._looked = time.monotonic()  # when the store did last, and when this process did
        self._failure: dict[str, Any] | None = None
        self._failure_seen = 0.0
        self._is_alone = threading.Event()  # this process needs no other to go on
        self._is_closed = threading.Event()
        self._is_cut = threading.Event()  # the connection to the store is closed: the first process has ended
        # Who asks the store may wait for its answer for ever, and so somebody else looks at the clock.
        self._beating = threading.Thread(target=self._keep_beating, name="heartbeat", daemon=True)
        self._watching = threading.Thread(target=self._watch, name="peers", daemon=True)
        self._beating.start()
        self._watching.start()

    def release(self) -> None:
        """What is computed together is done: this process goes on even if others vanish."""
        self._is_alone.set()
        if self._process.rank:
            self._try_to_set(f"gone{self._process.rank}", "1")

    def end(self, error: BaseException | None, stop: StopRequest) -> BaseException | None:
        """What this process shall raise, given what its run raised, if anything. What is its own, the others are told.

        Where the work is done, or all have agreed to stop, this waits for the end of the first process.
        """
        if error is None or (isinstance(error, Stopped) and error.is_agreed):
            self.release()
            error = self._wait_for_first(stop) or error
        else:
            error = self._told(error)
            self._try_to_set(f"gone{self._process.rank}", "1")
        self.close()
        return error

    def close(self) -> None:
        """Neither beat nor watch any more."""
        self._is_closed.set()
        self._is_alone.set()
        self._watching.join()
        self._beating.join(SILENT_S)

    def _wait_for_first(self, stop: StopRequest) -> BaseException | None:
        """Until the first process ends, time is over, or this one shall stop: what the first failed by, if it did."""
        if self._process.rank == 0:
            self._try_to_set("gone0", "1")
            self._linger("left", SILENT_S)
            return None
        deadline = time.monotonic() + self._timeout_s
        while self._heard[0] < float("inf") and not stop.requested:
            if failure := self._found(SILENT_S if self._is_cut.is_set() else self._vanished_s):
                return failure
            if time.monotonic() > deadline:
                log.warning("warning: process 0 has not ended within runtime.peer_timeout_s = %g", self._timeout_s)
                break
            time.sleep(BEAT_S / 4)
        self.close()  # whoever asks a store that is gone leaves a page of torch's words in the log
        self._try_to_set(f"left{self._process.rank}", "1")
        if self._heard[0] == float("inf"):
            time.sleep(BEAT_S)  # it reads this, and ends
        return None

    def _told(self, error: BaseException) -> BaseException:
        if _is_of_others(error):
            deadline = time.monotonic() + 2 * SILENT_S
            while time.monotonic() < deadline and not (found := self._found(SILENT_S)):
                time.sleep(BEAT_S / 4)
            return found or PeerFailed(f"the processes of this run lost each other: {user_message(error)}")
        if self._failure is None:
            is_stop = isinstance(error, Stopped)
            cause = error.reason if isinstance(error, Stopped) else user_message(error)
            about = {"rank": self._process.rank, "cause": cause, "stopped": is_stop}
            self._try_to_set("failure", json.dumps(about))
            if self._process.rank == 0:
                self._linger("seen", LINGER_S)
        return error

    def _linger(self, answer: str, most_s: float) -> None:
        """Wait until the others have given this answer to what they read in the store."""
        deadline = time.monotonic() + most_s
        others = [f"{answer}{rank}" for rank in range(1, self._process.size)]
        while time.monotonic() < deadline and not all(self._store.check([each]) for each in others):
            time.sleep(BEAT_S / 4)

    def _keep_beating(self) -> None:
        while not self._is_closed.wait(BEAT_S):
            try:
                self._beat()
            except dist.DistNetworkError:  # the store is gone for good: who looks will see that it does not answer
                self._is_cut.set()
                return
            except Exception as error:
                log.debug("no heartbeat: %s", error)
            else:
                self._answered = time.monotonic()

    def _watch(self) -> None:
        while not self._is_alone.wait(BEAT_S):
            gone = self._found(self._vanished_s)
            if gone and (self._failure is None or time.monotonic() - self._failure_seen > STUCK_S):
                self._exit(gone)

    def _beat(self) -> None:
        now = time.monotonic()
        self._store.set(f"alive{self._process.rank}", str(now))
        for rank in self._beats:
            key = f"alive{rank}"
            if self._store.check([f"gone{rank}"]):
                self._heard[rank] = float("inf")
            elif self._store.check([key]) and (beat := self._store.get(key)) != self._beats[rank]:
                self._beats[rank], self._heard[rank] = beat, now
        if self._failure is None and self._store.check(["failure"]):
            failure = json.loads(self._store.get("failure"))
            if failure["rank"] != self._process.rank:
                self._failure, self._failure_seen = failure, now
            self._store.set(f"seen{self._process.rank}", "1")

    def _found(self, silent_s: float) -> BaseException | None:
        """What became of another process, if something did."""
        if self._failure:
            rank, cause = self._failure["rank"], self._failure["cause"]
            if self._failure["stopped"]:
                return Stopped(cause)
            return PeerFailed(f"process {rank} on host {self.hosts[rank]} failed: {cause}")
        before, self._looked = self._looked, time.monotonic()
        now = self._looked
        if now - before > SILENT_S:  # it was this process that stood still, and heard nobody
            self._answered = now
            self._heard.update({rank: max(heard, now) for rank, heard in self._heard.items()})
        silent = {rank: now - heard for rank, heard in self._heard.items() if now - heard > silent_s}
        if now - self._answered > silent_s:
            silent = {0: now - self._answered}
        silent.pop(self._process.rank, None)
        if not silent:
            return None
        rank, seconds = next(iter(silent.items()))
        return PeerFailed(
            f"host {self.hosts[rank]} has vanished: process {rank} was last heard of {seconds:.0f} s ago. Its own log "
            "may say why; the same command goes on from the last resume point"
        )

    def _exit(self, error: BaseException) -> None:
        """The main thread waits, and nothing can wake it."""
        if isinstance(error, Stopped):
            os._exit(0)
        log.error("error: %s", user_message(error))
        self._container.write_failure(error)
        logging.shutdown()
        os._exit(1)

    def _try_to_set(self, key: str, value: str) -> None:
        if time.monotonic() - self._answered > SILENT_S:  # whoever asks it now would wait, too
            return
        try:
            self._store.set(key, value)
        except Exception as error:
            log.debug("the other processes could not be told: %s", error)


def _is_of_others(error: BaseException) -> bool:
    """Whether it says that an operation of several processes came to nothing."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())
