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
    lines += [f"--output={str(root).replace('%', '%%')}/slurm/%A_%a.out", *option_words(options)]
    asks = f"{shlex.quote(sys.executable)} -P -m hydratune.sweep.in_slurm"
    command = shlex.join([*slurm.container, slurm.python or sys.executable])
    run_dir = shlex.quote(f"run_dir={quoted(f'{root}/')[:-1]}") + '"$_number\'"'  # quoted for Hydra, and that for bash
    strict = "strict" if slurm.strict_code else "lenient"
    trust = " trust=true" * plan.trusted
    return "\n".join([
        "#!/bin/bash",
        "# Written by hydratune at each submission. A task of the array is a job of the sweep.",
        *(f"#SBATCH {shlex.quote(line)}" for line in lines),
        "",
        f"_script={shlex.quote(f'{root}/slurm/{name}')}",
        "# the line of the task: the number of its job, and its stages",
        'IFS=$\'\\t\' read -r _number _stages < <(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "$_script.jobs")',
        '[[ -n $_number ]] || exit 2  # the list is gone',
        f"_job={shlex.quote(str(root))}/$_number",
        'exec >>"$_job/screen.log" 2>&1',
        'echo "Slurm: job ${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID on $SLURM_JOB_NODELIST,'
        ' start $((${SLURM_RESTART_COUNT:-0} + 1))"',
        "",
        "# ends with the status that it is given; where the job is to go on, Slurm ends this shell instead",
        "_end() {",
        "    [[ $(trap -p EXIT) != *_ended* ]] || trap - EXIT",
        f'    {asks} end "$_job" "$_script.sh" "$1" "$SECONDS" {slurm.max_requeues} || true',
        '    exit "$1"',
        "}",
        "# what ends by a line that fails, or by exit, has a cause; a signal is Slurm's own end of the job",
        '_ended() { (($1 > 128 && $1 < 192)) || _end "$(($1 ? $1 : 1))"; }',
        "trap '_ended $?' EXIT",
        "trap 'exit $?' ERR",
        "trap 'exit 143' TERM",
        "# sbatch --export=NONE is for this shell; what is set below is for the job",
        "unset SLURM_EXPORT_ENV",
        f"cd {shlex.quote(str(Path.cwd()))} || exit",
        *(f"module load {shlex.quote(module)}" for module in slurm.modules),
        *slurm.setup,
        *_scratch(slurm.scratch),
        "set +eu",
        "trap - ERR TERM",
        '[[ $(trap -p EXIT) != *_ended* ]] || trap - EXIT  # none of the site\'s own',
        "",
        "# which srun of Slurm 22.05 and later doesn't take over from the job",
        '[[ -z ${SLURM_CPUS_PER_TASK-} ]] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"',
        "# and of which newer ones take no second word that is another",
        "[[ ! ${SLURM_TRES_PER_TASK-} =~ ^cpu[:=][0-9]+$ ]] || unset SLURM_TRES_PER_TASK",
        "if ((SLURM_JOB_NUM_NODES > 1)); then",
        "    # as Slurm itself reaches the node of rank 0, whose name may mean nothing to others",
        """    MASTER_ADDR=$(scontrol show node -o "$SLURMD_NODENAME" | grep -o 'NodeAddr=[^ ]*' | cut -d = -f 2)""",
        "    export MASTER_ADDR",
        "else",
        "    unset MASTER_ADDR  # of the shell that submitted",
        "fi",
        f'{asks} begin "$_job" "$_script.sh" {strict} || _end $?',
        "# srun, because Slurm's signals come to the steps of a job, and not to this shell",
        f'srun --kill-on-bad-exit=1 {command} -P -m hydratune {run_dir} "stages=[$_stages]"{trust}',
        "_end $?",
        "",
    ])  # fmt: skip


def _scratch(folder: str | None) -> list[str]:
    """Lines by which temporary files, and kernels as they are compiled, are kept on the node's own disk."""
    if folder is None:
        return []
    return [
        f'export TMPDIR="{folder}"',
        'export TRITON_CACHE_DIR="$TMPDIR/triton" TORCHINDUCTOR_CACHE_DIR="$TMPDIR/torchinductor"',
        'srun --ntasks="$SLURM_NNODES" --ntasks-per-node=1 mkdir -p "$TMPDIR"  # on each node',
    ]


def option_words(options: dict[str, Any]) -> list[str]:
    """As sbatch takes them."""
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
