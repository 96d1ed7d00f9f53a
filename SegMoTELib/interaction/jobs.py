"""Jobs: a thread for clicks and one for long work; the newest request with a key replaces older ones.

Results are delivered on the thread that asks for them. Long work waits between its steps while a click is answered.
"""

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
        key: a newer job with an equal key replaces this one. work: called on a worker thread with the job.
        done, failed: called by ``Jobs.deliver`` with the result, or the exception.
        urgent: answered at once, on a thread of its own; other jobs wait between their steps meanwhile.
        label: what is being done, for a status line. progress: 0 to 1, or None while unknown; see ``step``.
        shown: called by ``Jobs.deliver`` with what ``work`` gave to ``step``.
    """

    key: Hashable
    work: Callable[[Job], Any]
    done: Callable[[Any], None]
    failed: Callable[[Exception], None]
    urgent: bool = True
    label: str = ""
    progress: float | None = None
    shown: Callable[[Any], None] | None = None
    started: float = 0.0
    _jobs: Jobs | None = field(default=None, repr=False)
    _cancelled: threading.Event = field(default_factory=threading.Event, repr=False)

    def step(self, progress: float | None = None, partial: Any = None) -> bool:
        """For ``work`` to call between its steps: report, and let clicks go first.

        Args:
            progress: 0 to 1. partial: for ``shown``.

        Returns:
            False once the job is cancelled: ``work`` should end.
        """
        if progress is not None:
            self.progress = progress
        if self._jobs is not None:
            self._jobs.between_steps(self, partial)
        return not self.cancelled()

    @property
    def remaining(self) -> float | None:
        """Seconds left at the speed so far; None while unknown."""
        if not self.progress or not self.started:
            return None
        return (time.monotonic() - self.started) * (1 - self.progress) / self.progress

    def cancelled(self) -> bool:
        """True once the result is no longer wanted; ``work`` asks between steps."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Want the result no longer: neither ``done`` nor ``failed`` will be called."""
        self._cancelled.set()


class Jobs:
    """Two daemon threads, started with their first job: one for urgent jobs, one for the others.

    ``submit``, ``deliver`` and ``cancel`` are for one thread, the one that owns the scene; callbacks run there.
    """

    def __init__(self) -> None:
        self._waiting: deque[Job] = deque()
        self._running: dict[bool, Job] = {}  # by urgency
        self._finished: deque[tuple[Callable[[Any], None], Job, Any]] = deque()
        self._condition = threading.Condition()
        self._threads: dict[bool, threading.Thread] = {}
        self._stopped = False

    def submit(self, key: Hashable, work: Callable[[Job], Any], done: Callable[[Any], None],
               failed: Callable[[Exception], None], urgent: bool = True, label: str = "",
               progress: float | None = None, shown: Callable[[Any], None] | None = None) -> Job:
        """Queue work, in place of an older job with the same key.

        Raises:
            RuntimeError: after ``stop``.
        """
        if self._stopped:
            raise RuntimeError("the jobs were stopped")
        job = Job(key, work, done, failed, urgent, label, progress, shown, _jobs=self)
        with self._condition:
            for other in self._all():
                if other.key == key:
                    other.cancel()
            self._waiting = deque(other for other in self._waiting if not other.cancelled())
            self._waiting.append(job)
            self._condition.notify_all()
        if urgent not in self._threads:
            thread = threading.Thread(target=self._run, args=(urgent,), daemon=True,
                                      name="SegMoTE clicks" if urgent else "SegMoTE background")
            self._threads[urgent] = thread
            thread.start()
        return job

    def between_steps(self, job: Job, partial: Any) -> None:
        """Called by ``Job.step`` on the worker thread."""
        with self._condition:
            if partial is not None and job.shown is not None:
                self._finished.append((job.shown, job, partial))
                self._condition.notify_all()
            if not job.urgent:
                self._condition.wait_for(lambda: job.cancelled() or self._stopped or not self._urgent_work())

    def deliver(self, wait: float = 0.0) -> int:
        """Call back for finished jobs; a callback may submit new ones.

        Args:
            wait: seconds to wait for a result. Waiting lets the workers have the interpreter, which an idle Slicer
                holds: its timer calls this with a few milliseconds.

        Returns:
            How many callbacks were made.
        """
        with self._condition:
            if wait and not self._finished and self._wanted():
                self._condition.wait_for(lambda: self._finished, timeout=wait)
            finished, self._finished = self._finished, deque()
        count = 0
        for callback, job, result in finished:
            if not job.cancelled():
                count += 1
                try:
                    callback(result)
                except Exception as error:
                    if callback == job.failed:
                        raise
                    job.failed(error)  # the other results of this call must not be lost
        return count

    def finish(self, timeout: float = 3600.0) -> None:
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
        """True while something that is wanted waits, runs or is to be delivered."""
        with self._condition:
            return bool(self._wanted() or self._finished)

    def current(self) -> Job | None:
        """The job that runs now and is still wanted; a click rather than long work."""
        with self._condition:
            running = [self._running[urgent] for urgent in (True, False) if urgent in self._running]
            return next((job for job in running if not job.cancelled()), None)

    def cancel(self, key: Hashable | None = None) -> None:
        """Cancel the jobs with a key, or all; nothing of them is delivered any more."""
        with self._condition:
            for job in [*self._all(), *(job for _, job, _ in self._finished)]:
                if key is None or job.key == key:
                    job.cancel()
            self._waiting = deque(job for job in self._waiting if not job.cancelled())
            self._condition.notify_all()

    def stop(self, timeout: float = 5.0) -> None:
        """Cancel everything and end the threads; each is waited for, up to ``timeout`` seconds."""
        self.cancel()
        with self._condition:
            self._stopped = True
            self._condition.notify_all()
        for thread in self._threads.values():
            thread.join(timeout)

    def _all(self) -> list[Job]:
        return [*self._waiting, *self._running.values()]

    def _wanted(self) -> list[Job]:
        return [job for job in self._all() if not job.cancelled()]

    def _urgent_work(self) -> bool:
        return any(job.urgent for job in self._wanted())

    def _next(self, urgent: bool) -> Job | None:
        if not urgent and self._urgent_work():
            return None
        return next((job for job in self._waiting if job.urgent == urgent), None)

    def _run(self, urgent: bool) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._stopped or self._next(urgent) is not None)
                job = self._next(urgent)
                if self._stopped or job is None:
                    return
                self._waiting.remove(job)
                self._running[urgent] = job
            job.started = time.monotonic()
            try:
                callback, result = job.done, job.work(job)
            except Exception as raised:
                callback, result = job.failed, raised
            with self._condition:
                del self._running[urgent]
                self._finished.append((callback, job, result))
                self._condition.notify_all()
