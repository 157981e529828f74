"""Every command of docs/slurm.md, in its order, on the Slurm that the page itself starts."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from sweeps_on_slurm import of_its_own
from test_launcher import LAUNCHERS

pytestmark = pytest.mark.slurm
PAGE = LAUNCHERS.parent / "docs" / "slurm.md"
FENCES = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
# these want the jobs before them ended; a person waits, or looks at squeue
AFTER_THE_JOBS = re.compile(r"sweep (resume|report|best)|sbatch |srun |stop slurm")
WAIT = 'while [ -n "$(squeue -h)" ]; do sleep 1; done'


def of_kind(kind: str) -> list[str]:
    return [text for found, text in FENCES if found == kind]


def script(tiny: Path, rows: Path) -> str:
    """The commands, with a random two-layer model and 24 rows where the page has the demo's."""
    run = (
        f"model=local model.name_or_path={tiny} data=jsonl data.path={rows} quantization=none trainer.max_steps=4 "
        "stages=[prepare,train]"
    )
    lines = ["set -e"]
    for command in "".join(of_kind("")).replace("\\\n", " ").splitlines():
        if AFTER_THE_JOBS.search(command):
            lines.append(WAIT)
        checks_only = "stages=[]" in command
        words = run.replace(" stages=[prepare,train]", "") if checks_only else run
        lines += [f"echo {shlex.quote('$ ' + command)}", command.replace("experiment=demo", words)]
        lines += ["touch cancelled"] * ("sweep cancel" in command)
    return "\n".join(lines)


def test_every_command_of_the_page_runs(tiny: Path, rows: Path, environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "launchers").symlink_to(LAUNCHERS)
    site = tmp_path / "mine" / "cluster" / "site.yaml"
    site.parent.mkdir(parents=True)
    [text], [asked] = of_kind("yaml"), of_kind("conf")
    held = "  - until [ -e cancelled ]; do sleep 0.1; done\n"  # so that there is something to cancel
    site.write_text(re.sub(r"^setup:.*\n", rf"\g<0>{held}", text, flags=re.MULTILINE))
    command = Path(sys.executable).with_name("hydratune")
    env = environment | {
        "PATH": f"{command.parent}:{os.environ['PATH']}", "HYDRATUNE": str(command), "HYDRATUNE_PYTHON": sys.executable,
        **of_its_own(asked),  # with what the page asks of the administrator
    }  # fmt: skip
    del env["HF_HUB_OFFLINE"]  # prefetch refuses it; model and rows are files here, so nobody asks the hub
    try:
        done = subprocess.run(
            ["bash", "-c", script(tiny, rows)], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=900
        )
        said = done.stdout + done.stderr + "".join(path.read_text() for path in tmp_path.glob("slurm-*.out"))
        assert done.returncode == 0, said
    finally:
        subprocess.run([LAUNCHERS / "local_slurm.sh", "stop", tmp_path / "slurm"], env=env, check=False)
    named = {"first/0", "first/1", *re.findall(r"run_dir=runs/(\w+)", "".join(of_kind("")))}
    receipts = {run: json.loads((tmp_path / "runs" / run / "receipts" / "train.json").read_text()) for run in named}
    assert {run: one["status"] for run, one in receipts.items()} == dict.fromkeys(named, "done")
    assert receipts["two_nodes"]["hardware"]["world_size"] == 2
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {run.partition("/")[0] for run in named}


def test_what_the_page_says_of_files_is_there() -> None:
    for path in re.findall(r"`((?:conf|launchers)/[\w./]+)", PAGE.read_text(encoding="utf-8")):
        assert (LAUNCHERS.parent / path).exists(), path
    for path, anchor in re.findall(r"\]\((\w+\.md)#?([\w-]*)", PAGE.read_text(encoding="utf-8")):
        titles = re.findall(r"^#+ (.+)$", (PAGE.parent / path).read_text(encoding="utf-8"), re.MULTILINE)
        assert not anchor or anchor in {title.lower().replace(" ", "-") for title in titles}, path
