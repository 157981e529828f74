"""`python -m hydratune.sweep.in_slurm begin|end …`: what the batch script of a sweep's job asks before and after."""

import json
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from hydratune.config.schema import RunError
from hydratune.run.job import CANCELLED, Record, cause_of, is_cancelled, read_record, write_record
from hydratune.run.layout import RunDir, alone_in, is_held, write_json
from hydratune.run.signals import ASKED_TO_STOP, SAVED
from hydratune.run.train_log import last_step
from hydratune.sweep.code import differences, snapshot
from hydratune.sweep.slurm_queue import PREPARE

LEASE = 180  # seconds after which file systems let go of the lock of a machine that has died
ENDS_WITHIN = 10  # seconds in which the processes of a job that has ended are gone
ASKED_AGAIN = 10  # times that Slurm is asked to start a job again, where it doesn't answer
STOPPED = (SAVED, *(128 + number for number in ASKED_TO_STOP))  # by a signal, also before there was anything to save


def main() -> None:
    """`begin JOB SCRIPT strict|lenient`, and `end JOB SCRIPT STATUS SECONDS MAX_REQUEUES`.

    The script goes on after a `begin` with 0. From an `end` that has Slurm start the job again nothing returns.
    """
    verb, root, script = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if verb == "begin":
        sys.exit(begin(root, script, sys.argv[4] == "strict"))
    status, seconds, most = map(int, sys.argv[4:7])
    prepares = script.stem.endswith(PREPARE)
    if end(root, status, time.time() - seconds, most, prepares):
        start_again()
    elif prepares:
        tell_the_others(root, script, status)


def begin(root: Path, script: Path, strict: bool) -> int:
    """The exit status: 0 where the job may start."""
    if _is_cancelled(root, script.stem.endswith(PREPARE)):
        print("hydratune: cancelled before it began.")
        return 143
    if not _is_free(root, LEASE):
        print("hydratune: another process still has the job: Slurm is asked to try again.", flush=True)
        return SAVED
    changed, unknown = differences(json.loads(script.with_suffix(".code").read_text()), snapshot())
    if changed or unknown:
        refused = "; strict_code=true refuses that: submit again, or set hydra.launcher.strict_code=false" * strict
        how = "is not" if changed else "may not be"
        print(f"hydratune: the code {how} what was submitted: {'; '.join([*changed, *unknown])}{refused}.")
        return 2 if strict else 0
    return 0


def _is_cancelled(root: Path, prepares: bool) -> bool:
    """What prepares does so for others, too: the end of its own job alone is not its end."""
    return (root.parent / CANCELLED).exists() if prepares else is_cancelled(root)


def _is_free(root: Path, seconds: int) -> bool:
    """Waits until no process has the job."""
    for second in range(seconds):
        if not is_held(root):
            return True
        if second == 2:
            print("hydratune: waiting for the process that had the job, on a machine that may be dead.", flush=True)
        time.sleep(1)
    return False


def end(root: Path, status: int, since: float, max_requeues: int, prepares: bool = False) -> bool:
    """Whether Slurm is to start the job again: it saved its state, or died further on than the last time.

    Notes the cause where a job that began at `since` (seconds since the epoch) had no time to do so itself.
    """
    if status == 0:
        return False
    if not _is_free(root, ENDS_WITHIN):  # nothing can be noted, and where `begin` has waited, the next may find it free
        return status == SAVED and _restarts() < max_requeues
    run, record = RunDir(root), read_record(root)
    state = record.state if record and record.started >= since - 1 else ""  # of this start, where it came so far
    if state == "running" and status in STOPPED:
        _note(root, "stopped")
    if state == "done" or _is_cancelled(root, prepares):  # done: another of its processes fell as it ended
        return False
    cause = ""
    if status not in STOPPED:
        why = srun_failed(run.screen) if not state else killed_first(run.screen) if state != "running" else ""
        if not state and not why and not 128 < status < 192:  # between them it was a signal's
            return _note(root, "failed", cause_of(status, run.screen))
        if state not in ("", "running") and not why:  # it has said why itself
            return False
        step, before = last_step(run.train_log), _deaths(root)
        with suppress(OSError):  # of a full disk: it may have room when the job starts again
            write_json(run.deaths, [*before, step])
        cause = f"it died without a word ({why or f'exit status {status}'}) after step {step}"
        if step in before:
            return _note(root, "failed", f"{cause}, as before: another start would meet the same")
    if _restarts() < max_requeues:
        return True
    limit = f"hydra.launcher.max_requeues={max_requeues} is reached"
    print(f"hydratune: {limit}: hydratune sweep resume {root.parent} goes on.")
    return _note(root, "failed", f"{cause}, and {limit}") if cause else False


def killed_first(screen: Path) -> str:
    """What srun says of the first process that ended, where that was killed: what others say then is its echo."""
    found = re.search(r"^srun: error: \S+: (tasks? [\d,-]+: .+)$", _last_start(screen), re.MULTILINE)
    return found[1] if found and not re.search(r"Exited with exit code|Terminated", found[1]) else ""


def srun_failed(screen: Path) -> str:
    """What srun says where it didn't come to start a process, such as while slurmctld is away."""
    found = re.search(r"^srun: (?:error|fatal): (?!\S+: tasks? [\d,-]+: ).+$", _last_start(screen), re.MULTILINE)
    return found[0] if found else ""


def _last_start(screen: Path) -> str:
    """What the job has printed since it was started last."""
    try:
        return screen.read_text(errors="replace").rpartition("\nSlurm: job ")[2]
    except OSError:
        return ""


def start_again() -> None:
    """Have Slurm start the job again, which ends this process; returns where it can't be."""
    # by this name, as the SLURM_JOB_ID of one of the tasks is that of the whole array
    task = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    for _ in range(ASKED_AGAIN):
        done = subprocess.run(["scontrol", "requeue", task], capture_output=True, text=True)
        if done.returncode == 0:
            # an exit status of the script would be the job's last word; asked once more, it would be the next start's
            return time.sleep(60)
        if "disabled" in done.stderr:  # sbatch --no-requeue
            break
        time.sleep(10)  # slurmctld may be about to come back
    print(f"hydratune: Slurm doesn't start the job again: {done.stderr.strip()}. hydratune sweep resume goes on.")


def _restarts() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT", 0))


def _note(root: Path, state: str, cause: str | None = None) -> bool:
    with suppress(RunError, OSError), alone_in(RunDir(root)):  # else somebody has it again, or the disk is full
        record = read_record(root) or Record("waiting", started=time.time())
        write_record(root, record.at_end(state, cause))
    return False


def tell_the_others(root: Path, script: Path, status: int) -> None:
    """The job that has prepared has yet to run; where that failed, all that waited for it have."""
    record = read_record(root)
    if status == 0 and record:
        write_record(root, Record("waiting", attempt=0, seconds=record.seconds))
    elif record and record.state == "failed":
        for line in script.with_suffix(".jobs").read_text(encoding="utf-8").splitlines()[1:]:
            other = root.parent / line.partition("\t")[0]
            if not is_held(other):
                _note(other, "failed", f"its rows could not be prepared (job {root.name}): {record.cause}")


def _deaths(root: Path) -> list[int]:
    try:
        return list(json.loads(RunDir(root).deaths.read_text()))
    except (OSError, ValueError):
        return []


if __name__ == "__main__":
    main()
