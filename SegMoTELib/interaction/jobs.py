"""Jobs: one worker thread; the newest request with a key replaces older ones; results are delivered where asked for."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Job:
    """One piece of work.

    Attributes:
        key: a newer job with an equal key replaces this one. work: called on the worker thread with the job.
        done, failed: called by ``Jobs.deliver`` with the result, or the exception.
        urgent: goes before all that are not.
        label: what is being done, for a status line. progress: 0 to 1, or None while unknown; written by ``work``.
    """

    key: Hashable
    work: Callable[[Job], Any]
    done: Callable[[Any], None]
    failed: Callable[[Exception], None]
    urgent: bool = True
    label: str = ""
    progress: float | None = None
    _cancelled: threading.Event = field(default_factory=threading.Event, repr=False)

    def cancelled(self) -> bool:
        """True once the result is no longer wanted; ``work`` asks between steps."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Want the result no longer: neither ``done`` nor ``failed`` will be called."""
        self._cancelled.set()


class Jobs:
    """A queue with one daemon thread, started with the first job.

    ``submit``, ``deliver`` and ``cancel`` are for one thread, the one that owns the scene; callbacks run there.
    """

    def __init__(self) -> None:
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._finished: deque[tuple[Job, Any, Exception | None]] = deque()
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def submit(self, key: Hashable, work: Callable[[Job], Any], done: Callable[[Any], None],
               failed: Callable[[Exception], None], urgent: bool = True, label: str = "",
               progress: float | None = None) -> Job:
        """Queue work, in place of an older job with the same key.

        Raises:
            RuntimeError: after ``stop``.
        """
        if self._stopped:
            raise RuntimeError("the jobs were stopped")
        job = Job(key, work, done, failed, urgent, label, progress)
        with self._condition:
            for other in self._all():
                if other.key == key:
                    other.cancel()
            self._waiting = deque(other for other in self._waiting if not other.cancelled())
            self._waiting.append(job)
            self._condition.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="SegMoTE", daemon=True)
            self._thread.start()
        return job

    def deliver(self, wait: float = 0.0) -> int:
        """Call back for finished jobs; a callback may submit new ones.

        Args:
            wait: seconds to wait for a result. Waiting lets the worker have the interpreter, which an idle Slicer
                holds: its timer calls this with a few milliseconds.

        Returns:
            How many callbacks were made.
        """
        with self._condition:
            if wait and not self._finished and self._all():
                self._condition.wait_for(lambda: self._finished, timeout=wait)
            finished, self._finished = self._finished, deque()
        count = 0
        for job, result, error in finished:
            if job.cancelled():
                continue
            count += 1
            if error is None:
                job.done(result)
            else:
                job.failed(error)
        return count

    def finish(self, timeout: float = 600.0) -> None:
        """Deliver until nothing is left to do, for scripts and tests.

        Raises:
            TimeoutError: it took longer.
        """
        end = time.monotonic() + timeout
        while self.busy():
            if time.monotonic() > end:
                raise TimeoutError("the jobs did not finish in time")
            self.deliver(0.05)

    def busy(self) -> bool:
        """True while something waits, runs or is to be delivered."""
        with self._condition:
            return bool(self._all() or self._finished)

    def current(self) -> Job | None:
        """The job that runs now and is still wanted."""
        with self._condition:
            return self._running if self._running is not None and not self._running.cancelled() else None

    def cancel(self, key: Hashable | None = None) -> None:
        """Cancel the jobs with a key, or all; nothing of them is delivered any more."""
        with self._condition:
            for job in [*self._all(), *(job for job, _, _ in self._finished)]:
                if key is None or job.key == key:
                    job.cancel()
            self._waiting = deque(job for job in self._waiting if not job.cancelled())

    def stop(self, timeout: float = 5.0) -> None:
        """Cancel everything and end the thread; it is waited for, up to ``timeout`` seconds."""
        self.cancel()
        with self._condition:
            self._stopped = True
            self._condition.notify_all()
        if self._thread is not None:
            self._thread.join(timeout)

    def _all(self) -> list[Job]:
        return [*self._waiting, *([self._running] if self._running is not None else [])]

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._waiting or self._stopped)
                if self._stopped:
                    return
                job = next((job for job in self._waiting if job.urgent), self._waiting[0])
                self._waiting.remove(job)
                self._running = job
            result, error = None, None
            try:
                result = job.work(job)
            except Exception as raised:
                error = raised
            with self._condition:
                self._running = None
                self._finished.append((job, result, error))
                self._condition.notify_all()
