"""One thread at a time, for what belongs to the whole process: Pyro's handlers, torch's random numbers and settings.

Two threads that run Pyro models at once mix their handlers, and two that draw from torch's global generator take each
other's numbers. So the estimators and the trainer take one lock for every training step, every block of rows of an
inference, and every draw. In between, other threads have their turn: while a model trains in one thread, it predicts in
another, or another model trains there. Each gets the numbers that it would get alone.

Your own code that runs Pyro or draws from torch at the same time takes the same lock: ``with exclusive(): ...``.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from pyro_vmm.runtime.threads import threads_of_environment


class FairLock:
    """A reentrant lock that threads get in the order in which they asked for it.

    ``threading.RLock`` gives no order: a thread that releases it and asks again at once, as training does, gets it
    again, and the others wait until training ends.
    """

    def __init__(self):
        self._reset()

    def _reset(self) -> None:
        self._guard = threading.Lock()
        self._owner: int | None = None
        self._depth = 0
        self._waiting: deque[tuple[int, threading.Event]] = deque()

    def __enter__(self) -> None:
        me, turn = threading.get_ident(), threading.Event()
        with self._guard:
            if self._owner in (None, me):
                self._owner = me
                self._depth += 1
                return
            self._waiting.append((me, turn))
        try:
            turn.wait()
        except BaseException:  # after Ctrl-C the thread has to leave the queue: it would never release the lock
            self._give_up(me, turn)
            raise

    def __exit__(self, *_) -> None:
        with self._guard:
            self._release()

    def _release(self) -> None:
        self._depth -= 1
        if self._depth:
            return
        self._owner = None
        if self._waiting:
            self._owner, turn = self._waiting.popleft()
            self._depth = 1
            turn.set()

    def _give_up(self, me: int, turn: threading.Event) -> None:
        with self._guard:
            if turn.is_set():
                self._release()
            else:
                self._waiting.remove((me, turn))


_LOCK = FairLock()
# A process that is forked while another thread has its turn would wait for a thread that it does not have.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_LOCK._reset)


@contextmanager
def exclusive() -> Iterator[None]:
    """A context for one thread at a time, in which torch has the number of threads that the environment names."""
    with _LOCK, threads_of_environment():
        yield


class Shared:
    """A context that several threads share: the first one enters it, and the last one leaves it.

    Arguments:
        context: makes the context, anew for each entry.
    """

    def __init__(self, context: Callable[[], AbstractContextManager]):
        self._context, self._inside = context, 0

    def __enter__(self) -> None:
        with _LOCK:
            if not self._inside:
                self._entered = self._context()
                self._entered.__enter__()
            self._inside += 1

    def __exit__(self, *_) -> None:
        with _LOCK:
            self._inside -= 1
            if not self._inside:
                self._entered.__exit__(None, None, None)
