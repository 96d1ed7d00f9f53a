"""The job thread: order, replacement, cancelling, errors."""

from __future__ import annotations

import threading
import time

import pytest

from SegMoTELib.interaction.jobs import Jobs


@pytest.fixture
def jobs():
    """Jobs that are stopped again."""
    jobs = Jobs()
    yield jobs
    jobs.stop()


@pytest.fixture
def results():
    """What came back."""
    return []


@pytest.fixture
def gate(jobs, results):
    """A running job that ends once the gate is set."""
    gate, started = threading.Event(), threading.Event()

    def work(job):
        started.set()
        gate.wait(5)
        return "gate"

    jobs.submit("gate", work, results.append, results.append)
    assert started.wait(5)
    yield gate
    gate.set()


def test_results_come_back_on_the_thread_that_delivers(jobs, results):
    threads = []
    jobs.submit("a", lambda job: threads.append(threading.current_thread()) or 7,
                lambda value: results.append((value, threading.current_thread())), results.append)
    jobs.finish()
    assert results == [(7, threading.main_thread())]
    assert threads[0] is not threading.main_thread()


def test_the_newest_request_replaces_older_ones_with_its_key(jobs, results, gate):
    for value in range(5):
        jobs.submit("click", lambda job, value=value: value, results.append, results.append)
    gate.set()
    jobs.finish()
    assert results == ["gate", 4]


def test_a_running_job_is_told_when_it_is_replaced_and_its_result_is_dropped(jobs, results):
    started, saw = threading.Event(), []

    def slow(job):
        started.set()
        while not job.cancelled():
            time.sleep(0.001)
        saw.append(True)
        return "old"

    jobs.submit("click", slow, results.append, results.append)
    assert started.wait(5)
    jobs.submit("click", lambda job: "new", results.append, results.append)
    jobs.finish()
    assert results == ["new"]
    assert saw == [True]


def test_a_click_goes_before_prefetching(jobs, results, gate):
    for number in (1, 2):
        jobs.submit(f"prefetch {number}", lambda job, number=number: number, results.append, results.append,
                    urgent=False)
    jobs.submit("click", lambda job: "clicked", results.append, results.append)
    gate.set()
    jobs.finish()
    assert results == ["gate", "clicked", 1, 2]


def test_errors_are_delivered_and_the_thread_goes_on(jobs, results):
    jobs.submit("bad", lambda job: 1 / 0, results.append, lambda error: results.append(type(error)))
    jobs.submit("good", lambda job: "fine", results.append, results.append)
    jobs.finish()
    assert results == [ZeroDivisionError, "fine"]


def test_a_callback_that_fails_is_told_and_the_next_results_still_come(jobs, results):
    def fails(result):
        raise ValueError("no place for it")

    errors = []
    jobs.submit("one", lambda job: 1, fails, errors.append)
    jobs.submit("two", lambda job: 2, results.append, results.append)
    jobs.finish()
    assert [str(error) for error in errors] == ["no place for it"]
    assert results == [2]


def test_cancelling_all_delivers_nothing_even_what_was_finished(jobs, results, gate):
    jobs.submit("next", lambda job: "next", results.append, results.append)
    jobs.cancel()
    gate.set()
    jobs.finish()
    assert results == []


def test_cancelling_one_key_leaves_the_others(jobs, results, gate):
    jobs.submit("a", lambda job: "a", results.append, results.append)
    jobs.submit("b", lambda job: "b", results.append, results.append)
    jobs.cancel("a")
    gate.set()
    jobs.finish()
    assert results == ["gate", "b"]


def test_a_callback_may_submit_the_next_job(jobs, results):
    def again(value):
        results.append(value)
        if value < 3:
            jobs.submit("count", lambda job: value + 1, again, results.append)

    jobs.submit("count", lambda job: 1, again, results.append)
    jobs.finish()
    assert results == [1, 2, 3]


def test_progress_and_label_can_be_read_while_it_runs(jobs, results):
    reached, go_on = threading.Event(), threading.Event()

    def work(job):
        job.progress = 0.5
        reached.set()
        go_on.wait(5)

    jobs.submit("a", work, results.append, results.append, label="Segmenting")
    assert reached.wait(5)
    assert (jobs.current().label, jobs.current().progress) == ("Segmenting", 0.5)
    go_on.set()
    jobs.finish()
    assert jobs.current() is None
    assert not jobs.busy()


def test_stopping_ends_the_thread_and_refuses_more(jobs):
    jobs.submit("a", lambda job: None, lambda _: None, lambda _: None)
    jobs.stop()
    assert not any(thread.is_alive() for thread in jobs._threads.values())
    with pytest.raises(RuntimeError, match="stopped"):
        jobs.submit("b", lambda job: None, lambda _: None, lambda _: None)


def test_waiting_for_work_that_never_ends_gives_up(jobs, gate):
    with pytest.raises(TimeoutError):
        jobs.finish(0.1)


def test_a_click_is_answered_while_long_work_is_in_the_middle_of_a_step(jobs, results):
    inside, leave = threading.Event(), threading.Event()

    def long(job):
        inside.set()
        leave.wait(5)
        return "long"

    jobs.submit("long", long, results.append, results.append, urgent=False)
    assert inside.wait(5)
    jobs.submit("click", lambda job: "click", results.append, results.append)
    while not results:
        jobs.deliver(0.05)
    assert results == ["click"]
    leave.set()
    jobs.finish()
    assert results == ["click", "long"]


def test_long_work_waits_between_its_steps_while_a_click_is_answered(jobs, results):
    order, clicking, leave = [], threading.Event(), threading.Event()

    def long(job):
        for number in range(3):
            order.append(number)
            if number == 0:
                assert clicking.wait(5)
            if not job.step((number + 1) / 3, number):
                return None
        return "long"

    def click(job):
        clicking.set()
        leave.wait(0.2)
        order.append("click")

    jobs.submit("long", long, results.append, results.append, urgent=False, shown=results.append)
    jobs.submit("click", click, lambda _: None, results.append)
    jobs.finish()
    assert order == [0, "click", 1, 2]
    assert results == [0, 1, 2, "long"]


def test_a_cancelled_job_ends_at_its_next_step_and_the_panel_is_free_at_once(jobs, results):
    started, ended = threading.Event(), threading.Event()

    def long(job):
        started.set()
        while job.step(0.5, "part"):
            time.sleep(0.001)
        ended.set()

    jobs.submit("long", long, results.append, results.append, urgent=False, shown=results.append)
    assert started.wait(5)
    jobs.cancel("long")
    assert not jobs.busy() or jobs.deliver() == 0
    assert ended.wait(5)
    jobs.deliver()
    assert results == []


def test_the_time_left_follows_from_the_progress(jobs, results):
    gate, running = threading.Event(), []

    def long(job):
        job.started -= 3.0  # as if it had run for three seconds
        job.step(0.75)
        running.append(job)
        gate.wait(5)

    jobs.submit("long", long, results.append, results.append, urgent=False, progress=0.0)
    while not running:
        time.sleep(0.001)
    assert running[0].remaining == pytest.approx(1.0, abs=0.2)
    gate.set()
    jobs.finish()
