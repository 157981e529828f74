"""Run a command and measure it; repeat two commands in turn; rows of the table."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import yaml

BIN = Path(sys.executable).parent
HYDRATUNE = str(BIN / "hydratune")
HEADER = "| what | beside | quantity | hydratune | the other | ratio | repetitions |\n|---|---|---|---:|---:|---:|---:|"


@dataclass(frozen=True)
class Sample:
    """One command, once."""

    wall: float  # seconds
    cpu: float  # seconds, user and system, with the children that it waited for
    anon: float  # MiB, peak of RssAnon: memory that no file backs
    first: float  # seconds until `mark` was printed; nan where it was not
    first_cpu: float = float("nan")  # CPU seconds until then
    after: float = float("nan")  # CPU seconds from there to the last time that `mark` or `last` was printed
    tokens: int = 0  # that were trained on meanwhile

    @property
    def speed(self) -> float:
        """Tokens a CPU second, after the first step."""
        return self.tokens / self.after


QUANTITIES: dict[str, tuple[str, Callable[[Sample], float]]] = {
    "wall": ("wall, s", lambda sample: sample.wall),
    "cpu": ("CPU, s", lambda sample: sample.cpu),
    "anon": ("peak anonymous memory, MiB", lambda sample: sample.anon),
    "first": ("until step 1 is done, s", lambda sample: sample.first),
    "first_cpu": ("until step 1 is done, CPU s", lambda sample: sample.first_cpu),
    "speed": ("real tokens a CPU s (more is better)", lambda sample: sample.speed),
}


def run(
    command: list[str], cwd: Path, mark: bytes | None = None, fails: bool = False, last: bytes | None = None
) -> Sample:
    """Measure `command` in `cwd`; stops the benchmark where it ends other than `fails` says."""
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0)
    assert process.stdout
    peak = [0.0]
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(process.pid, peak, ended))
    watcher.start()
    said, first, first_cpu, last_cpu = b"", float("nan"), float("nan"), float("nan")
    while chunk := process.stdout.read(65536):
        said += chunk
        if mark and first != first and mark in said:
            first, first_cpu = time.monotonic() - began, _cpu(process.pid)
        if last and last in chunk:
            last_cpu = _cpu(process.pid)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)  # Popen itself need not wait any more
    process.stdout.close()
    ended.set()
    watcher.join()
    if bool(process.returncode) != fails:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{said.decode(errors='replace')[-3000:]}")
    return Sample(wall, usage.ru_utime + usage.ru_stime, peak[0], first, first_cpu, last_cpu - first_cpu)


def _cpu(pid: int) -> float:
    """Seconds, user and system, up to now."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _watch(pid: int, peak: list[float], ended: threading.Event) -> None:
    status = Path(f"/proc/{pid}/status")
    while True:  # the first look before any wait: a process that does nothing has ended by then
        try:
            lines = status.read_text().splitlines()
        except OSError:
            return
        peak[0] = max([peak[0], *(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))])
        if ended.wait(0.02):
            return


def in_turn(
    ours: Callable[[int], Sample], other: Callable[[int], Sample], repetitions: int
) -> list[tuple[Sample, Sample]]:
    """A B A B …; each call gets the number of its repetition."""
    return [(ours(number), other(number)) for number in range(repetitions)]


def rows(what: str, beside: str, pairs: list[tuple[Sample, Sample]], quantities: list[str]) -> list[str]:
    """Medians, and the median of the pairs' ratios with the least and the greatest."""
    table = []
    for quantity in quantities:
        unit, of = QUANTITIES[quantity]
        values = [(of(ours), of(other)) for ours, other in pairs]
        ratios = sorted(ours / other for ours, other in values)
        spread = f" ({ratios[0]:.2f} to {ratios[-1]:.2f})" if len(ratios) > 1 else ""
        medians = [_digits(median(column)) for column in zip(*values, strict=True)]
        table.append(
            f"| {what} | {beside} | {unit} | {medians[0]} | {medians[1]} | {median(ratios):.2f}{spread} | {len(pairs)} |"
        )
    return table


def _digits(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def prepared(folder: Path, *overrides: str) -> tuple[list[str], str]:
    """A run with the stage prepare done: the command that goes on with it, and the model's folder."""
    from hydratune.build.source import model_source
    from hydratune.config.load import cache_dir
    from hydratune.config.schema import Config, ModelConf

    command = [HYDRATUNE, "model=demo", "data=demo", "merge.verify=false", *overrides]
    run([*command, f"run_dir={folder}", "stages=[prepare]"], folder.parent)
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    return command, model_source(ModelConf(**settings["model"]), cache_dir(Config()))
