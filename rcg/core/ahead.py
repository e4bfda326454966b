"""Making things ahead of time in a thread. A leaf: anyone may import it."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable
from queue import Full, Queue
from typing import TypeVar

T = TypeVar("T")


def read_ahead(items: Iterable[T], depth: int) -> Generator[T, None, None]:
    """The same items, made up to `depth` ahead in a thread; its errors are raised here.

    Closing the generator ends the thread.
    """
    ready: Queue[tuple[list[T], BaseException | None]] = Queue(depth)
    stopped = threading.Event()

    def put(found: list[T], error: BaseException | None = None) -> None:
        while not stopped.is_set():
            try:
                return ready.put((found, error), timeout=0.1)
            except Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put([item])
                if stopped.is_set():
                    return
            put([])
        except BaseException as e:  # raised again in the caller's thread
            put([], e)

    thread = threading.Thread(target=work, name="read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            found, error = ready.get()
            if error is not None:
                raise error
            if not found:
                return
            yield found[0]
    finally:
        stopped.set()
        thread.join(timeout=10)
