"""The duties of a container's process 1: forward signals, reap orphans, report a killed child. Called by `train`.

`exec` in start.sh makes Python process 1. The kernel drops signals for which process 1 has no handler, and makes it the
parent of every orphan.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from robosat_pink.container import hardware
from robosat_pink.container.contract import Container
from robosat_pink.errors import RobosatError

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def run_as_init(main: Callable[[], int]) -> int:
    """Run `main`, in a child if this is process 1, and return its exit code. Call it before any thread starts."""
    if os.getpid() != 1:
        return main()
    child = os.fork()
    if child == 0:
        return main()
    for number in FORWARDED:
        signal.signal(number, lambda received, frame: os.kill(child, received))
    # start.sh has blocked SIGTERM and SIGINT; the child unblocks them in `StopRequest`.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    pid, status = os.wait()
    while pid != child:
        pid, status = os.wait()
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return code
    if code == -signal.SIGKILL:
        error = RobosatError(f"the training process was killed by SIGKILL, {hardware.KILLED_ADVICE}")
        Container.here().write_failure(error)
    elif -code not in FORWARDED:
        Container.here().write_failure(RobosatError(f"the training process died of {signal.Signals(-code).name}"))
    return 128 - code
