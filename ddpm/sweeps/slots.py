"""Jobs side by side, each in a process of its own: one for each GPU, or for each so many CPU cores.

The processes are those of `multiprocessing`: they are told by the run itself (`ddpm.signals`) when
this one dies, and may start processes of their own, as hardware=ddp does. A job's process ends with
it, so that a crash takes nothing with it but the job.
"""

import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

from ddpm import run_dir
from ddpm.perform import Preempted
from ddpm.signals import GracefulStop
from ddpm.sweeps.child import work
from ddpm.sweeps.freeze import Job
from ddpm.sweeps.overview import Overview
from ddpm.sweeps.places import Place, environment
from ddpm.sweeps.queue import Queue

LOOK_SECONDS = 1.0  # between two looks at the jobs


@dataclass
class Running:
    """A job in its slot."""

    job: Job
    place: Place
    process: BaseProcess
    log: Path


def run(queue: Queue, places: Sequence[Place], sweep: Path) -> None:
    """Run all jobs that are not over in the places there are.

    Args:
        sweep: its folder, for the logs of jobs that have no folder of their own.

    Raises:
        Preempted: we were asked to stop, and all jobs have stopped and saved.
    """
    free, busy, more = deque(places), [], True
    with GracefulStop() as stop, Overview() as overview:
        overview.say(f"slots    {len(places)}: {', '.join(place.name for place in places)}")
        try:
            while busy or (more and not stop.received):
                while more and free and not stop.received:
                    job = queue.next()
                    more = job is not None
                    if job is not None and _is_to_run(job, overview):
                        busy.append(_start(job, free.popleft(), sweep))
                        overview.say(f"start    {job.text} on {busy[-1].place.name}")
                    elif job is not None:
                        queue.ended(job)
                connection.wait([one.process.sentinel for one in busy], timeout=LOOK_SECONDS)
                for one in [one for one in busy if not one.process.is_alive()]:
                    busy.remove(one)
                    free.append(one.place)
                    overview.say(_reap(one))
                    queue.ended(one.job)
                if stop.received:
                    _ask_to_stop(busy, stop.received, overview)
                overview.draw()
        except BaseException:
            _end(busy)
            raise
    if stop.received:
        raise Preempted(stop.received)


def _is_to_run(job: Job, overview: Overview) -> bool:
    """Whether a job has to begin here; says why, if it has not."""
    overview.add(job)
    state = job.state
    if job.plan is None:
        overview.say(f"refused  {job.text}\n{job.error}")
    elif job.over:
        overview.say(f"{state:8} {job.folder} was {state} before: {job.text}")
    elif state == "running":
        overview.say(f"elsewhere  {job.folder} is being worked on by another process")
    else:
        return True
    return False


def _start(job: Job, place: Place, sweep: Path) -> Running:
    """A process for a job, which sees the devices of its place alone."""
    log = (job.folder if job.folder is not None else sweep / str(job.number)) / "job.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    process = get_context("spawn").Process(target=work, args=(job, str(log)))
    with environment(place.variables):
        process.start()
    return Running(job, place, process, log)


def _reap(one: Running) -> str:
    """Take note of a process that has ended; what to say of it."""
    one.process.join()
    code, job = one.process.exitcode, one.job
    if code == 0:
        job.succeeded = True
        return f"done     {job.text}"
    if job.state == "preempted":
        return f"stopped  {job.text}"
    if code == 1:  # it has told its folder itself
        error = run_dir.read_status(job.folder).get("error") if job.folder else None
        job.error = error or "failed"
    else:
        how = f"by signal {-code}" if code < 0 else f"with status {code}"
        job.error = f"its process was ended {how}"
        if job.folder is not None:
            run_dir.change_status(job.folder, state="failed", error=job.error)
    return f"failed   {job.text}: {job.error.splitlines()[0]} (its log: {one.log})"


def _ask_to_stop(busy: Sequence[Running], number: int, overview: Overview) -> None:
    """Hand a signal on to all jobs, and wait until they have saved. A second one ends the wait."""
    overview.say(f"stopping {len(busy)} jobs; each finishes its step and saves")
    for one in busy:
        if one.process.is_alive():
            os.kill(one.process.pid, number)
    while any(one.process.is_alive() for one in busy):
        connection.wait([one.process.sentinel for one in busy], timeout=LOOK_SECONDS)
        overview.draw()
        time.sleep(0.05)
    for one in busy:
        overview.say(_reap(one))
    busy.clear()


def _end(busy: Sequence[Running]) -> None:
    """Leave no process behind, whatever happened."""
    for one in busy:
        one.process.kill()
        one.process.join()
