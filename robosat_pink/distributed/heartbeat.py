"""Which ranks are alive, and why a rank failed. Called by `process_group`.

Once a second, each rank updates its own key in rank 0's store and reads the other ranks' keys. A rank that fails writes
the cause to the store, because a collective on the other ranks reports only a closed connection, or waits forever.
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
from robosat_pink.container.quantities import duration
from robosat_pink.container.stop_request import Stopped, StopRequest
from robosat_pink.distributed.launcher import ProcessRank
from robosat_pink.errors import RobosatError

log = logging.getLogger(__name__)

BEAT_S = 1.0
SILENT_S = 5.0  # after this time without a beat, a rank counts as vanished if a collective has failed
VANISHED_S = 60.0  # after this time without a beat, a rank counts as vanished even if no collective has failed
LINGER_S = 10.0  # how long rank 0, which holds the store, waits for the other ranks to read its failure
STUCK_S = 20.0  # after a rank's failure, time for a collective to end by itself; then this process exits
GONE = float("inf")  # in `_heard_at`: announced its end, so it is never silent


class RankFailed(RobosatError):
    """Another rank has failed or vanished. That rank's own log may explain it."""

    is_of_another_rank = True


class Heartbeat:
    def __init__(self, store: Any, process: ProcessRank, host: str, timeout_s: float, container: Container) -> None:
        self._process, self._container = process, container
        self._timeout_s, self._vanished_s = timeout_s, min(VANISHED_S, timeout_s)
        # A separate connection, because the main thread may be blocked on the connection of `store`.
        self._store = PrefixStore("heartbeat", store.clone())
        self._store.set(f"host{process.rank}", host)
        self.hosts = [self._store.get(f"host{rank}").decode() for rank in range(process.size)]
        self._beats = dict.fromkeys(range(process.size), b"")
        self._heard_at = dict.fromkeys(range(process.size), time.monotonic())
        self._answered_at = time.monotonic()  # when the store last answered
        self._checked_at = time.monotonic()  # when this process last looked for failures
        self._failure: dict[str, Any] | None = None  # the failure of another rank
        self._failure_seen_at = 0.0
        self._is_released = threading.Event()  # this rank no longer needs the others
        self._is_closed = threading.Event()
        self._is_store_closed = threading.Event()  # rank 0 has ended
        # Two threads: one asks the store, and may wait forever for the answer; the other watches the clock.
        self._beating = threading.Thread(target=self._keep_beating, name="heartbeat", daemon=True)
        self._watching = threading.Thread(target=self._watch, name="heartbeat watch", daemon=True)
        self._beating.start()
        self._watching.start()

    def release(self) -> None:
        """Declare all collectives done: from now on, rank 0 continues even if others vanish."""
        self._is_released.set()
        if self._process.rank:
            self._try_to_set(f"gone{self._process.rank}", "1")

    def end(self, error: BaseException | None, stop: StopRequest) -> BaseException | None:
        """The error that this process must raise, given its run's error. Reports a failure to the other ranks.

        Without a failure or a signal, waits until rank 0 has written the outputs.
        """
        if error is None or (isinstance(error, Stopped) and error.is_agreed):
            self.release()
            if self._process.rank:
                error = self._wait_for_rank_zero(stop) or error
            else:
                self._say_goodbye_to_all()
        else:
            error = self._share_failure(error)
            self._try_to_set(f"gone{self._process.rank}", "1")
        self.close()
        return error

    def close(self) -> None:
        """Stop both threads."""
        self._is_closed.set()
        self._is_released.set()
        self._watching.join()
        self._beating.join(SILENT_S)

    def _say_goodbye_to_all(self) -> None:
        self._try_to_set("gone0", "1")
        self._wait_for_keys("left", SILENT_S)

    def _wait_for_rank_zero(self, stop: StopRequest) -> BaseException | None:
        """Wait until rank 0 announces its end, for a timeout or a stop. Returns the failure of another rank.

        Rank 0 must end first, because some launchers stop all hosts when one has ended.
        """
        deadline = time.monotonic() + self._timeout_s
        while self._heard_at[0] < GONE and not stop.requested:
            if failure := self._failure_of_others(SILENT_S if self._is_store_closed.is_set() else self._vanished_s):
                return failure
            if time.monotonic() > deadline:
                log.warning("warning: rank 0 has not ended within runtime.peer_timeout_s = %g", self._timeout_s)
                break
            time.sleep(BEAT_S / 4)
        self.close()  # before rank 0 ends, because beats to a closed store fill the log with torch's messages
        self._try_to_set(f"left{self._process.rank}", "1")
        if self._heard_at[0] == GONE:
            time.sleep(BEAT_S)  # time for rank 0 to read this key and end
        return None

    def _share_failure(self, error: BaseException) -> BaseException:
        """Report the error to the other ranks and return it, or return the failure of another rank that caused it."""
        if _is_collective_failure(error):
            deadline = time.monotonic() + 2 * SILENT_S
            while time.monotonic() < deadline and not (failure := self._failure_of_others(SILENT_S)):
                time.sleep(BEAT_S / 4)
            return failure or RankFailed(f"the ranks of this run lost their connection: {user_message(error)}")
        if self._failure is None:
            is_stop = isinstance(error, Stopped)
            cause = error.reason if isinstance(error, Stopped) else user_message(error)
            failure_of_this = {"rank": self._process.rank, "cause": cause, "stopped": is_stop}
            self._try_to_set("failure", json.dumps(failure_of_this))
            if self._process.rank == 0:
                self._wait_for_keys("seen", LINGER_S)
        return error

    def _wait_for_keys(self, prefix: str, most_s: float) -> None:
        """Wait, for `most_s` at most, until every other rank has set its key with this prefix."""
        deadline = time.monotonic() + most_s
        keys = [f"{prefix}{rank}" for rank in range(1, self._process.size)]
        while time.monotonic() < deadline and not all(self._store.check([key]) for key in keys):
            time.sleep(BEAT_S / 4)

    def _keep_beating(self) -> None:
        while not self._is_closed.wait(BEAT_S):
            try:
                self._beat()
            except dist.DistNetworkError:  # the store is closed for good; the watching thread will notice
                self._is_store_closed.set()
                return
            except Exception as error:
                log.debug("no heartbeat: %s", error)
            else:
                self._answered_at = time.monotonic()

    def _beat(self) -> None:
        now = time.monotonic()
        self._store.set(f"alive{self._process.rank}", str(now))
        for rank in self._beats:
            key = f"alive{rank}"
            if self._store.check([f"gone{rank}"]):
                self._heard_at[rank] = GONE
            elif self._store.check([key]) and (beat := self._store.get(key)) != self._beats[rank]:
                self._beats[rank], self._heard_at[rank] = beat, now
        if self._failure is None and self._store.check(["failure"]):
            failure = json.loads(self._store.get("failure"))
            if failure["rank"] != self._process.rank:
                self._failure, self._failure_seen_at = failure, now
            self._store.set(f"seen{self._process.rank}", "1")

    def _watch(self) -> None:
        while not self._is_released.wait(BEAT_S):
            failure = self._failure_of_others(self._vanished_s)
            if failure and (self._failure is None or time.monotonic() - self._failure_seen_at > STUCK_S):
                self._exit(failure)

    def _failure_of_others(self, silent_s: float) -> BaseException | None:
        """The failure of another rank, or a RankFailed for a rank that was silent for longer than `silent_s`."""
        if self._failure:
            rank, cause = self._failure["rank"], self._failure["cause"]
            if self._failure["stopped"]:
                return Stopped(cause)
            return RankFailed(f"rank {rank} on host {self.hosts[rank]} failed: {cause}")
        before, self._checked_at = self._checked_at, time.monotonic()
        now = self._checked_at
        if now - before > SILENT_S:  # this process was suspended, and has read no beats
            self._answered_at = now
            self._heard_at.update({rank: max(heard_at, now) for rank, heard_at in self._heard_at.items()})
        silent = {rank: now - heard_at for rank, heard_at in self._heard_at.items() if now - heard_at > silent_s}
        if now - self._answered_at > silent_s:
            silent = {0: now - self._answered_at}
        silent.pop(self._process.rank, None)
        if not silent:
            return None
        rank, seconds = next(iter(silent.items()))
        return RankFailed(
            f"host {self.hosts[rank]} has vanished: rank {rank} was last heard of {duration(seconds)} ago. Its own log "
            "may say why; the same command resumes from the last resume point"
        )

    def _exit(self, error: BaseException) -> None:
        """End the process: its main thread is blocked in a collective, and cannot be woken."""
        if isinstance(error, Stopped):
            os._exit(0)
        log.error("error: %s", user_message(error))
        self._container.write_failure(error)
        logging.shutdown()
        os._exit(1)

    def _try_to_set(self, key: str, value: str) -> None:
        if time.monotonic() - self._answered_at > SILENT_S:  # the store would block this thread, too
            return
        try:
            self._store.set(key, value)
        except Exception as error:
            log.debug("no report to the other ranks: %s", error)


def _is_collective_failure(error: BaseException) -> bool:
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())
