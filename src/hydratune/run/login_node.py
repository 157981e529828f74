"""The login node of a Slurm cluster, which is shared by all who submit from it: no place to train on."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

BURN = ("train", "evaluate", "generate")  # stages that keep a model at work
WISH = "HYDRATUNE_LOGIN_NODE"
# the last is where a machine keeps what it has from slurmctld
CONFIGURATIONS = (
    "/etc/slurm/slurm.conf", "/etc/slurm-llnl/slurm.conf", "/cm/shared/apps/slurm/var/etc/slurm/slurm.conf",
    "/run/slurm/conf/slurm.conf",
)  # fmt: skip
BESIDE = ("etc/slurm.conf", "etc/slurm/slurm.conf")  # from the folder that sbatch's bin/ is in
SECONDS = 10  # that scontrol may take


def refusal(stages: Sequence[str]) -> list[str]:
    """The sentence for stages that would burn the login node that this machine is; none elsewhere."""
    burning = [stage for stage in stages if stage in BURN]
    if not burning or not _is_login_node(os.environ):
        return []
    return [
        f"This is a login node of a Slurm cluster, and {', '.join(burning)} would run on it: set hydra/launcher=slurm_1gpu "
        f"to submit that, put srun or salloc before the command, or set {WISH}=1 in the environment to run it here."
    ]


def _is_login_node(environment: Mapping[str, str]) -> bool:
    """Slurm is set up here, this is no job of its own, and none of its nodes is this machine."""
    sbatch = shutil.which("sbatch")
    if "SLURM_JOB_ID" in environment or environment.get(WISH) == "1" or not sbatch:
        return False
    named, prefix = environment.get("SLURM_CONF"), Path(sbatch).resolve().parent.parent
    own = [Path(path) for path in CONFIGURATIONS] + [prefix / path for path in BESIDE]
    files = [Path(named)] if named else own
    if not any(path.is_file() for path in files) and "SLURM_CONF_SERVER" not in environment:
        return False  # its commands alone: nothing could be submitted
    try:
        done = subprocess.run(
            ["scontrol", "show", "aliases"], capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and not done.stdout.strip()  # the names of the nodes that this machine is
