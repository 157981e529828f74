"""How a sweep is, what its jobs print, and the end of it, from its files alone."""

import math
import os
import platform
import re
import signal
import time
from collections import Counter
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from hydratune.config.schema import ConfigError
from hydratune.run.console import say
from hydratune.run.job import CANCELLED, STATES, Record, is_cancelled, look_at
from hydratune.run.layout import RunDir, is_held, write_atomically
from hydratune.sweep.folder import Entry, SweepDir
from hydratune.sweep.ranking import least_is_best
from hydratune.sweep.slurm_queue import ENDING, Queued, in_queue, living
from hydratune.sweep.slurm_queue import cancel as end_in_slurm

SHOWN = 20  # jobs that are told of, of each state
SLURMS_OWN = r"(srun|slurmstepd\S*): "  # begins lines that tell nothing of the job's progress


def show_status(folder: SweepDir, everything: bool) -> None:
    """Print what `status_lines` says."""
    for line in status_lines(folder, everything):
        say(line)


def status_lines(folder: SweepDir, everything: bool = False) -> list[str]:
    """States, progress, the best so far, and the time left; each job where `everything` is asked for."""
    info, counts = folder.info, Counter[str]()
    seconds, done, running = 0.0, list[tuple[Entry, Record]](), 0.0
    lines: dict[str, list[str]] = {}
    queued, trouble = _asked_of_slurm(folder)
    queue = living(queued)
    for entry, record, state in folder.states():
        slurm = queue.get(entry.number)
        is_starting = _is_starting(state, slurm)
        if slurm and slurm.state != ENDING and state in ("waiting", "stopped", "interrupted", "failed"):
            state = "queued"
        counts[state] += 1
        if record and state == "done":
            seconds += record.seconds
            done.append((entry, record))
        if record and state == "running":
            running += time.time() - record.started + record.seconds
        if everything or (
            state in ("running", "queued", "failed", "interrupted", "stopped") and counts[state] <= SHOWN
        ):
            words = "starting" if is_starting else state
            lines.setdefault(state, []).append(_line(entry, record, words, folder.run_of(entry.number), slurm))
    total = sum(counts.values())
    told = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    said = [f"{folder.root}: {total} job{'s' * (total != 1)}, {told}"]
    for state in STATES:
        said += lines.get(state, [])
        if not everything and state in lines and counts[state] > SHOWN:
            said.append(f"  and {counts[state] - SHOWN} more {state}: all=true shows each")
    if best := _best(folder, done, info["direction"]):
        said.append(f"best so far: {best[0].label}: {_value(best[1])}   (what it can be told from: sweep report)")
    left = counts["queued"] + counts["waiting"] + counts["running"] + counts["stopped"] + counts["interrupted"]
    if left and done and counts["running"]:
        mean = seconds / len(done)
        rest = max(0.0, mean * left - running) / counts["running"]
        said.append(
            f"about {timedelta(seconds=round(rest))} left, {mean:.0f} s a job and {counts['running']} at a time"
        )
    elif left and not counts["running"] and not counts["queued"] and not trouble:
        said.append(f"none is running: hydratune sweep resume {folder.root} goes on")
    if folder.is_cancelled():
        said.append(f"cancelled: hydratune sweep resume {folder.root} goes on")
    said += [f"preparation for job {one.number} and others {one.words}" for one in queued if one.prepares]
    if trouble:
        said.append(f"of jobs that wait nothing is known: {trouble}")
    return said


def _asked_of_slurm(folder: SweepDir) -> tuple[list[Queued], str]:
    """What is in its queue; where it doesn't answer, the files are left, and a sentence."""
    try:
        return in_queue(folder), ""
    except ConfigError as error:
        return [], error.sentences[0]


def _is_starting(state: str, slurm: Queued | None) -> bool:
    """Slurm has begun the job, which is in its site's lines, or waits for the process before it."""
    return slurm is not None and slurm.state == "RUNNING" and state in ("waiting", "stopped", "interrupted")


def _best(folder: SweepDir, done: list[tuple[Entry, Record]], direction: str) -> tuple[Entry, Record] | None:
    """Of those with the most frequent objective; none is where nothing tells which way it is better."""
    known = [one for one in done if one[1].value is not None and math.isfinite(one[1].value)]
    if not known:
        return None
    ((objective, _),) = Counter(record.objective for _, record in known).most_common(1)
    same = [(entry, record) for entry, record in known if record.objective == objective]
    least = least_is_best(objective or "", direction, (folder.run_of(entry.number) for entry, _ in same))
    if least is None:
        return None
    return (min if least else max)(same, key=lambda one: one[1].value or 0.0)


def _value(record: Record) -> str:
    if record.value is None:
        return "no objective"
    return f"{record.objective} {record.value:.4g}" + ("" if record.stderr is None else f" ± {record.stderr:.2g}")


def _line(entry: Entry, record: Record | None, state: str, root: Path, slurm: Queued | None) -> str:
    words = [f"  {entry.label} {state}"]
    if slurm:
        words.append(slurm.words)
    if record and state == "running":
        words.append(f"on {record.host} for {timedelta(seconds=round(time.time() - record.started))}")
        words += [f"attempt {record.attempt}"] if record.attempt > 1 else []
        words += (
            ["is cancelled, saves its state and ends"] if is_cancelled(root) else _last_lines(RunDir(root).screen, 1)
        )
    elif record and state == "done":
        words.append(f"in {record.seconds:.0f} s: {_value(record)}")
    elif record and state == "failed":
        words.append(f"(attempt {record.attempt}): {record.cause}")
    elif record and state == "interrupted":
        words.append(f"on {record.host}: {record.cause or 'killed without a word'}")
    return ", ".join(words).replace(f"{state}, (", f"{state} (") if state == "failed" else ", ".join(words)


def show_logs(folder: SweepDir, numbers: list[int], lines: int) -> None:
    """Print the last `lines` lines of what each job has printed; without numbers, of those at work or failed."""
    shown, queue = 0, living(_asked_of_slurm(folder)[0])
    for entry, _, state in folder.states():
        screen = RunDir(folder.run_of(entry.number)).screen
        if _is_starting(state, queue.get(entry.number)):
            state = "starting"
        if entry.number in numbers or (not numbers and state in ("running", "starting", "failed", "interrupted")):
            shown += 1
            say(f"{entry.label} {state}, {screen}:")
            say("\n".join(f"  {line}" for line in _last_lines(screen, lines)) or "  it has printed nothing yet")
    if not shown:
        say("no job is at work or failed: name one by its number, hydratune sweep logs DIR 0")


def _last_lines(path: Path, count: int) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 400 * count))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    lines = [line for line in text.splitlines() if line.strip() and not (count == 1 and re.match(SLURMS_OWN, line))]
    return [line.strip() if count == 1 else line for line in lines[-count:]]


def cancel(folder: SweepDir, numbers: list[int]) -> None:
    """Mark the jobs, or the sweep: what is at work saves its state and ends, and nothing goes on until resume."""
    states = {entry.number: state for entry, _, state in folder.states()}
    if all(states[n] in ("done", "failed") for n in numbers or states) and not living(in_queue(folder)):
        raise ConfigError(
            f"{folder.root} has no job that runs or waits{' among those' if numbers else ''}: nothing to cancel."
        )
    try:
        for root in [folder.run_of(number) for number in numbers] or [folder.root]:
            write_atomically(root / CANCELLED, "")
    except OSError as error:
        raise ConfigError(f"{folder.root} can't be written: {error.strerror}.") from None
    counts: Counter[str] = Counter()
    queue = [one for one in in_queue(folder) if one.state != ENDING]
    asked = [one for one in queue if one.number in numbers and not one.prepares] if numbers else queue
    at_work = {one.task for one in asked if one.state == "RUNNING" and is_held(folder.run_of(one.number))}
    end_in_slurm([one.task for one in asked if one.task not in at_work], sorted(at_work))
    in_slurm = {one.number for one in queue}
    for entry in folder.entries():
        if numbers and entry.number not in numbers:
            continue
        record, state = look_at(folder.run_of(entry.number))
        counts[state] += 1
        # the sweep's process sees the mark within a second; a job that has none left is asked from here, where it is here
        if record and state == "running" and record.host == platform.node() and entry.number not in in_slurm:
            _ask(record.pid)
    ending = f"{counts['running']} at work save their state and end" if counts["running"] else "none was at work"
    say(f"cancelled: {ending}, {counts[CANCELLED]} do not begin; hydratune sweep resume {folder.root} goes on")


def _ask(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGTERM)


def allow(folder: SweepDir, numbers: list[int]) -> None:
    """Take back what was cancelled: of these jobs, while the others of a cancelled sweep stay it, or of all."""
    entries = [entry.number for entry in folder.entries()]
    try:
        if numbers and folder.is_cancelled():
            for number in set(entries) - set(numbers):
                if look_at(folder.run_of(number))[1] not in ("done", "failed"):  # one at work has yet to save
                    write_atomically(folder.run_of(number) / CANCELLED, "")
        for root in [folder.root, *(folder.run_of(number) for number in numbers or entries)]:
            (root / CANCELLED).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder.root} can't be written: {error.strerror}.") from None
