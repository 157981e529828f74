"""A Slurm step of several tasks is one run: launchers/train.sbatch with --ntasks=2."""

import json

import pytest
from test_launcher import Cluster, cluster, slurm

pytestmark = pytest.mark.slurm
__all__ = ["cluster", "slurm"]  # fixtures
TWO = ("--ntasks=2",)


def test_two_tasks_are_one_run_that_a_signal_requeues(cluster: Cluster) -> None:
    job = cluster.train(options=TWO)
    cluster.call("scancel", "--signal=USR1", job)
    cluster.goes_on(job)
    receipt = json.loads((cluster.folder / "run" / "receipts" / "train.json").read_text())
    assert receipt["hardware"]["world_size"] == 2


def test_a_mistake_ends_both_tasks_with_its_status(cluster: Cluster) -> None:
    job = cluster.submit("lora.rnak=3", options=TWO)
    failed = cluster.wait_for(job)
    assert (failed["JobState"], failed["ExitCode"]) == ("FAILED", "2:0")
    assert cluster.output(job).count("there is no key lora.rnak") == 1, cluster.output(job)
