"""What the README shows of the command is what the command says."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
MINE = """\
# @package _global_
# my run: hydratune --config-dir mine experiment=x
defaults:
  - override /lora: attention
trainer:
  learning_rate: fast
"""
SHOWN = re.findall(r"```\n\$ hydratune (.*)\n((?:.*\n)*?)```", README.read_text(encoding="utf-8"))


def test_there_is_something_to_check() -> None:
    assert len(SHOWN) == 3


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        pytest.param(*one, id=one[0].split()[0], marks=[pytest.mark.slow] if one[0].startswith("data") else [])
        for one in SHOWN
    ],
)
def test_what_is_shown_is_what_is_said(typed: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/x.yaml").write_text(MINE)
    (tmp_path / "conf").symlink_to(README.parent / "conf")
    done = subprocess.run(
        [sys.executable, "-m", "hydratune", *shlex.split(typed)], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.stdout + done.stderr).replace(f"{README.parent}/", "") == said
