"""Ctrl-C on the command line: never swallowed, and never a traceback.

Python's own way is an exception at whatever line is running, which libraries swallow, or show as a page of their code,
above all while they are imported. Here the process ends at once with a message, as it may at any moment: what is
written appears whole or not at all. While it trains, the loop listens instead, and saves first. Nothing is imported
here that takes time.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

STATUS = 130  # of a process that Ctrl-C ended

_messages: list[Callable[[], str]] = [lambda: "Interrupted."]


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Within it, Ctrl-C ends the process with the message of the innermost `saying`, if this is the main thread."""
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if in_main else signal.SIG_IGN
    if before == signal.SIG_IGN:  # as the shell says of what runs in the background
        yield
        return
    signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def saying(message: Callable[[], str]) -> Iterator[None]:
    """Within it, what is said when the process is interrupted: by Ctrl-C at once, or once the loop has saved."""
    _messages.append(message)
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(message()) from None
    finally:
        _messages.pop()


def _end(number: int, frame: object) -> None:
    with contextlib.suppress(Exception):
        if atomic := sys.modules.get("flaxae.atomic"):
            atomic.abandon()
    message = "Interrupted."
    with contextlib.suppress(Exception):
        message = _messages[-1]()
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        os.write(2, f"\n{message}\n".encode(errors="backslashreplace"))
    os._exit(STATUS)
