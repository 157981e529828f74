"""The batch script of a sweep's jobs, a task of an array each."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydratune.config.typed import quoted
from hydratune.sweep.jobs import Plan

if TYPE_CHECKING:
    from hydratune.sweep.slurm import Slurm


def script_text(plan: Plan, tasks: int, slurm: "Slurm", options: dict[str, Any], name: str) -> str:
    """What sbatch gets, and keeps in the sweep's folder under this name."""
    root = plan.folder.root.resolve()
    parallel = f"%{slurm.array_parallelism}" if slurm.array_parallelism else ""
    lines = [f"--job-name={plan.jobs[0].config.name}", f"--array=0-{tasks - 1}{parallel}", "--open-mode=append"]
    lines += [f"--output={str(root).replace('%', '%%')}/slurm/%A_%a.out", *_options(options)]
    asks = f"{shlex.quote(sys.executable)} -P -m hydratune.sweep.in_slurm"
    command = shlex.join([*slurm.container, slurm.python or sys.executable])
    run_dir = shlex.quote(f"run_dir={quoted(f'{root}/')[:-1]}") + '"$number\'"'  # quoted for Hydra, and that for bash
    strict = "strict" if slurm.strict_code else "lenient"
    trust = " trust=true" * plan.trusted
    return "\n".join([
        "#!/bin/bash",
        "# Written by hydratune at each submission. A task of the array is a job of the sweep.",
        *(f"#SBATCH {shlex.quote(line)}" for line in lines),
        "",
        f"script={shlex.quote(f'{root}/slurm/{name}')}",
        "# the line of the task: the number of its job, and its stages",
        'IFS=$\'\\t\' read -r number stages < <(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "$script.jobs")',
        f"job={shlex.quote(str(root))}/$number",
        'exec >>"$job/screen.log" 2>&1',
        'echo "Slurm: job ${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID on $SLURM_JOB_NODELIST,'
        ' start $((${SLURM_RESTART_COUNT:-0} + 1))"',
        "status=0",
        f"cd {shlex.quote(str(Path.cwd()))} || status=$?",
        "trap 'status=$?' ERR  # of any line up to the next trap",
        *(f"module load {shlex.quote(module)}" for module in slurm.modules),
        *slurm.setup,
        *_scratch(slurm.scratch),
        "trap - ERR",
        "# which srun of Slurm 22.05 and later doesn't take over from the job",
        'export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"',
        "# as Slurm itself reaches the node of rank 0, whose name may mean nothing to others",
        """MASTER_ADDR=$(scontrol show node -o "$SLURMD_NODENAME" | grep -o 'NodeAddr=[^ ]*' | cut -d = -f 2)""",
        "export MASTER_ADDR",
        f'((status)) || {asks} begin "$job" "$script.sh" {strict} || status=$?',
        "# srun, because Slurm's signals come to the steps of a job, and not to this shell",
        f'((status)) || srun --kill-on-bad-exit=1 {command} -P -m hydratune {run_dir} "stages=[$stages]"{trust} || status=$?',
        "again=0",
        f'{asks} end "$job" "$script.sh" "$status" "$SECONDS" {slurm.max_requeues} || again=$?',
        "# by this name, as the SLURM_JOB_ID of one of the tasks is that of the whole array; then until Slurm ends this shell:",
        "# an exit status of its own would be the job's last word",
        'if ((again == 75)); then scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" && sleep 60; fi',
        'exit "$status"',
        "",
    ])  # fmt: skip


def _scratch(folder: str | None) -> list[str]:
    """Lines by which temporary files, and kernels as they are compiled, are kept on the node's own disk."""
    if folder is None:
        return []
    return [
        f'export TMPDIR="{folder}"',
        'export TRITON_CACHE_DIR="$TMPDIR/triton" TORCHINDUCTOR_CACHE_DIR="$TMPDIR/torchinductor"',
        'mkdir -p "$TMPDIR"',
    ]


def _options(options: dict[str, Any]) -> list[str]:
    said = []
    for key, value in options.items():
        name = key.replace("_", "-")
        if value is True:
            said.append(f"--{name}")
        elif value is False and name == "requeue":
            said.append("--no-requeue")
        elif value is not None and value is not False:
            said.append(f"--{name}={value}")
    return said
