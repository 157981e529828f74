"""What a sweep's job asks before and after, where its node has no git, or its disk no room."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hydratune.run.job import Record, write_record
from hydratune.sweep.code import differences, snapshot

SCONTROL = """#!/bin/bash
[[ $* != "requeue 7_3" ]] || kill $PPID  # as Slurm ends the script of a job that it starts again
"""


@pytest.mark.parametrize("room", ["unlimited", "0"])
def test_a_job_that_was_killed_is_started_again_also_on_a_full_disk(
    room: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    job, stub = tmp_path / "sweep" / "0", tmp_path / "bin" / "scontrol"
    for folder in (job, stub.parent):
        folder.mkdir(parents=True)
    stub.write_text(SCONTROL)
    stub.chmod(0o755)
    write_record(job, Record("running", started=2**33))
    ask = [sys.executable, "-m", "hydratune.sweep.in_slurm", "end", str(job), str(tmp_path / "0.sh"), "137", "9", "20"]
    done = subprocess.run(
        ["bash", "-c", f'ulimit -f {room}; exec "$@"', "bash", *ask],
        env=environment | {
            "PATH": f"{stub.parent}:{environment['PATH']}", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3",
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        capture_output=True, text=True, timeout=50,
    )  # fmt: skip
    assert done.returncode == -signal.SIGTERM, done
    assert (job / "deaths.json").exists() == (room == "unlimited")


def test_no_git_is_no_difference(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    before = snapshot()
    monkeypatch.setenv("PATH", str(tmp_path))
    changed, unknown = differences(before, snapshot())
    assert not changed and "working directory was commit " in unknown[1]
    assert all(words.endswith(" and is unknown, since there is no git") for words in unknown) and len(unknown) == 2
