"""`python -m hydratune.sweep.in_slurm begin|end …`: what the batch script of a sweep's job asks before and after."""

import json
import os
import sys
import time
from pathlib import Path

from hydratune.run.job import Record, cause_of, is_cancelled, read_record, write_record
from hydratune.run.layout import RunDir, alone_in, is_held, write_json
from hydratune.run.signals import ASKED_TO_STOP, SAVED
from hydratune.run.train_log import last_step
from hydratune.sweep.code import differences, snapshot
from hydratune.sweep.slurm_queue import PREPARE

LEASE = 180  # seconds after which file systems let go of the lock of a machine that has died
STOPPED = (SAVED, *(128 + number for number in ASKED_TO_STOP))  # by a signal, also before there was anything to save


def main() -> None:
    """`begin JOB SCRIPT strict|lenient`, and `end JOB SCRIPT STATUS SECONDS MAX_REQUEUES`.

    The script goes on after 0; after 75 it has Slurm start the job again.
    """
    verb, root, script = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if verb == "begin":
        sys.exit(begin(root, script, sys.argv[4] == "strict"))
    status, seconds, most = map(int, sys.argv[4:7])
    again = end(root, status, time.time() - seconds, most)
    if script.stem.endswith(PREPARE) and not again:
        tell_the_others(root, script, status)
    sys.exit(SAVED if again else 0)


def begin(root: Path, script: Path, strict: bool) -> int:
    """The exit status: 0 where the job may start."""
    if is_cancelled(root):
        print("hydratune: cancelled before it began.")
        return 143
    for second in range(LEASE):
        if not is_held(root):
            break
        if not second:
            print(
                "hydratune: waiting for the process that had the job before, on a machine that may be dead.", flush=True
            )
        time.sleep(1)
    else:
        return SAVED
    changed = differences(json.loads(script.with_suffix(".code").read_text()), snapshot())
    if changed:
        refused = "; strict_code=true refuses that: submit again, or set hydra.launcher.strict_code=false" * strict
        print(f"hydratune: the code is not what was submitted: {'; '.join(changed)}{refused}.")
    return 2 if changed and strict else 0


def end(root: Path, status: int, since: float, max_requeues: int) -> bool:
    """Whether Slurm is to start the job again: it saved its state, or died further on than the last time.

    Notes the cause where a job that began at `since` (seconds since the epoch) had no time to do so itself.
    """
    if status == 0 or is_held(root):
        return False
    run, record = RunDir(root), read_record(root)
    began = record is not None and record.started >= since - 1
    at_work = began and record is not None and record.state == "running"
    if at_work and status in STOPPED:
        _note(root, "stopped")
    if is_cancelled(root) or (began and not at_work and status not in STOPPED):  # and has said why
        return False
    cause = ""
    if status not in STOPPED:
        if not at_work and status <= 128:
            return _note(root, "failed", cause_of(status, run.screen))
        step, before = last_step(run.train_log), _deaths(root)
        write_json(root / "deaths.json", [*before, step])
        cause = f"it died without a word (exit status {status}) after step {step}"
        if step in before:
            return _note(root, "failed", f"{cause}, as before: another start would meet the same")
    if int(os.environ.get("SLURM_RESTART_COUNT", 0)) < max_requeues:
        return True
    limit = f"hydra.launcher.max_requeues={max_requeues} is reached"
    print(f"hydratune: {limit}: hydratune sweep resume {root.parent} goes on.")
    return _note(root, "failed", f"{cause}, and {limit}") if cause else False


def _note(root: Path, state: str, cause: str | None = None) -> bool:
    with alone_in(RunDir(root)):
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
        return list(json.loads((root / "deaths.json").read_text()))
    except (OSError, ValueError):
        return []


if __name__ == "__main__":
    main()
