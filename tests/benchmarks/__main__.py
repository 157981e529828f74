"""`python -m tests.benchmarks [startup|data|train|merge|evaluate|sweep]...` prints a Markdown table of ratios; nothing is asserted."""

import argparse
import importlib
import os
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from hydratune.config.load import cache_dir
from hydratune.config.schema import Config
from tests.benchmarks.measure import HEADER

PARTS = ("startup", "data", "train", "merge", "evaluate", "sweep")
LIBRARIES = ("hydra-core", "torch", "transformers", "peft", "trl", "bitsandbytes")


def machine() -> str:
    """The machine and the versions, as a line."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0))
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return f"{cores} cores of {(models or [platform.machine()])[0]}, Python {platform.python_version()}, {versions}."


def main() -> None:
    """Measure the parts that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("part", nargs="*", help=f"one or several of {', '.join(PARTS)}; default: all")
    parts = parser.parse_args().part or list(PARTS)
    if wrong := set(parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(wrong))}: it is one of {', '.join(PARTS)}")
    os.environ.update(
        HYDRATUNE_CACHE=str(cache_dir(Config())), HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="", PYTHONUNBUFFERED="1"
    )
    print(f"{machine()}\n\nMedians; the ratio is the median over the pairs (least to greatest). Lower is better.\n")
    print(HEADER, flush=True)
    began, notes = time.monotonic(), []
    with tempfile.TemporaryDirectory() as work:
        for part in parts:
            lines = importlib.import_module(f"tests.benchmarks.{part}").table(Path(work))
            print("\n".join(line for line in lines if line.startswith("|")), flush=True)
            notes += [line for line in lines if not line.startswith("|")]
    print("\n" + "".join(f"- {note}\n" for note in notes) + f"- Measured in {time.monotonic() - began:.0f} s.")


if __name__ == "__main__":
    main()
