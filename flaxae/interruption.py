"""Ctrl-C on the command line: it is never swallowed, and never gives a traceback.

By default, Python raises an exception at the line that is running. Libraries may swallow it, or show a page of their
code, especially while they are imported. Here the process ends at once with a message. That is safe at any moment,
because files appear whole or not at all. During training, the loop handles Ctrl-C instead, and saves first. This module
imports nothing that takes time.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

STATUS = 130  # the exit status of a process that Ctrl-C ended

_messages: list[Callable[[], str]] = [lambda: "Interrupted."]


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """In this context, Ctrl-C ends the process with the message of the innermost `saying`. For the main thread only."""
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if in_main else signal.SIG_IGN
    if before == signal.SIG_IGN:  # the shell sets this for processes in the background
        yield
        return
    signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def saying(message: Callable[[], str]) -> Iterator[None]:
    """Set the message of an interruption in this context, by Ctrl-C at once or after the training loop has saved."""
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
