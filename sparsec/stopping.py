"""How the command line stops: SIGINT, SIGTERM and SIGHUP become exceptions that clean up."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# Seconds that the main thread has to heed a signal before it is sent again.
AGAIN = 0.05


@contextlib.contextmanager
def unwinding() -> Iterator[None]:
    """Make signals clean up while this is open: no compilers, no half-written folders stay.

    The first one raises KeyboardInterrupt (SIGINT) or SystemExit (128 plus its number) in the main
    thread, whatever it waits for; later ones do nothing.  Those that the process was told to ignore
    stay ignored.  Does nothing in other threads.
    """
    stopping = done = False

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal stopping
        # Cleaning up takes a moment, in which people press Ctrl-C again.
        if stopping:
            return
        stopping = True
        if signum == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signum)

    def remind() -> None:
        # The kernel may hand a signal to any thread, or to the main one a moment before that waits
        # for a lock.  Python's handler then runs when the wait ends, after all the work.
        while number := os.read(reader, 1):
            time.sleep(AGAIN)
            while number[0] in before and not (stopping or done):
                signal.pthread_kill(main.ident or 0, number[0])
                time.sleep(AGAIN)

    main = threading.main_thread()
    if threading.current_thread() is not main:
        yield
        return
    before = {
        number: handler
        for number in SIGNALS
        if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)
    }
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    watcher = threading.Thread(target=remind, name="signals", daemon=True)
    watcher.start()
    waker = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        for number in before:
            signal.signal(number, stop)
        yield
    finally:
        done = True
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(waker)
        os.close(writer)
        watcher.join()
        os.close(reader)
