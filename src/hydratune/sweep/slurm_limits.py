"""What a partition takes. Without EnforcePartLimits, sbatch takes what the partition doesn't, and the job waits for ever."""

import os
import re
from collections.abc import Mapping
from typing import Any

from hydratune.config.schema import ConfigError
from hydratune.sweep.slurm_queue import asked

# sbatch's option, and the partition's lists of who may and who may not
LISTS = {"account": ("AllowAccounts", "DenyAccounts"), "qos": ("AllowQos", "DenyQos")}


def check(options: Mapping[str, Any], said: str) -> str:
    """Why jobs with these options may wait for ever in any of the partitions; empty where nothing shows that.

    `said` is what `sbatch --test-only` says, which names the partition where the options don't. Raises ConfigError for a
    time limit over those of all partitions; a QOS may allow it, so that it is then only said.
    """
    named = options.get("partition") or next(iter(re.findall(r"in partition (\S+)", said)), "")
    partitions = [partition for partition in str(named).split(",") if partition]
    wrong = [_problem(options, partition) for partition in partitions]
    if not (wrong and all(wrong)):
        return ""
    told = " and ".join(wrong)
    if all("is over" in one for one in wrong) and "qos" not in options and "SBATCH_QOS" not in os.environ:
        raise ConfigError(
            f"Slurm would let the jobs wait for ever, and nothing was submitted: {told}. Where a QOS allows it, name that: "
            "hydra.launcher.sbatch.qos=QOS."
        )
    return f"Slurm may let the jobs wait for ever: {told}"


def _problem(options: Mapping[str, Any], partition: str) -> str:
    """What the partition doesn't take; empty where it takes all, and where Slurm says nothing of it."""
    shown = asked(["scontrol", "show", "partition", "--oneliner", partition]).stdout
    limits = dict(word.split("=", 1) for word in shown.split() if "=" in word)
    time, most = options.get("time"), limits.get("MaxTime", "UNLIMITED")
    if time is not None and seconds(str(time)) > seconds(most):
        return f"time={time} is over the limit of partition {partition}, {most}"
    for name, (allow, deny) in LISTS.items():
        wanted, allowed, denied = options.get(name), limits.get(allow, "ALL"), limits.get(deny, "")
        if wanted is not None and allowed != "ALL" and str(wanted) not in allowed.split(","):
            return f"partition {partition} takes no {name}={wanted} ({allow}={allowed})"
        if wanted is not None and str(wanted) in denied.split(","):
            return f"partition {partition} takes no {name}={wanted} ({deny}={denied})"
    return ""


def seconds(time: str) -> float:
    """Of a time as Slurm writes it: minutes, minutes:seconds, hours:minutes:seconds, days-hours and so on; 0 is no limit."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if not found or time == "0":
        return float("inf")
    days, first, second, third = (int(part or 0) for part in found.groups())
    if found[1] is None and found[4] is None:
        return first * 60 + second
    return days * 86400 + first * 3600 + second * 60 + third
