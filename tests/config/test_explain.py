"""What `hydratune explain` and `hydratune --help` say, and that the shell completes groups, options and keys."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hydratune.config.help import HEAD, description
from hydratune.config.load import CONF_DIR
from hydratune.config.schema import Config
from hydratune.config.values import schema_keys

EXPERIMENT = """\
# @package _global_
# my run: hydratune --config-dir mine experiment=x
defaults:
  - override /lora: attention

lora:
  r: 32
trainer:
  learning_rate: 3e-4
"""


def said(folder: Path, *arguments: str, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "hydratune", *arguments], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == status, done.stderr
    return done.stderr if status else done.stdout


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/x.yaml").write_text(EXPERIMENT)
    return tmp_path


def test_a_value_and_all_places_that_set_it(mine: Path) -> None:
    text = said(mine, "explain", "lora.r", "--config-dir", "mine", "experiment=x", "lora.r=8")
    assert text == (
        "lora.r = 8\n  rank of the adapter\n  a whole number above 0\n  from lora.r=8\n"
        "  over mine/experiment/x.yaml:7 (experiment=x)\n"
    )
    assert not (mine / "runs").exists()


def test_each_kind_of_origin(mine: Path) -> None:
    text = said(
        mine, "explain", "lora.target_modules", "lora.bias", "trainer.max_length", "--config-dir=mine", "experiment=x"
    )
    option = next(
        n for n, line in enumerate((CONF_DIR / "lora/attention.yaml").read_text().splitlines(), 1) if "target" in line
    )
    first, second, third = text.split("\n\n")
    assert first.splitlines()[0] == "lora.target_modules = [q_proj, k_proj, v_proj, o_proj]"
    assert first.splitlines()[-1] == f"  from {CONF_DIR}/lora/attention.yaml:{option} (lora=attention)"
    assert second.splitlines() == [
        "lora.bias = none", "  which biases are trained too", "  one of none, all, lora_only",
        "  from the schema: its default",
    ]  # fmt: skip
    assert third.splitlines()[2] == "  a whole number above 0, tokens"


def test_a_group_is_all_its_keys(tmp_path: Path) -> None:
    text = said(tmp_path, "explain", "tracking", "merge.base")
    assert [block.split(" = ")[0] for block in text.split("\n\n")] == [
        "tracking.kind", "tracking.project", "tracking.mode", "merge.base",
    ]  # fmt: skip


def test_a_secret_is_not_shown(tmp_path: Path) -> None:
    text = said(tmp_path, "explain", "model.extra", "+model.extra.token=hf_me")
    assert "model.extra = {token: '***'}\n" in text and "hf_me" not in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "explain needs a key or a group: hydratune explain lora.r experiment=demo"),
        (["lora.rnak"], "there is no key lora.rnak (did you mean lora.r?)."),
        (["lora.r", "lora.alpa=3"], "lora.alpa=3: there is no key lora.alpa (did you mean lora.lora_alpha?)."),
        (["lora.r", "experiment=dmo"], "experiment=dmo: experiment has no option 'dmo' (did you mean demo?): it has"),
    ],
)
def test_mistakes(arguments: list[str], sentence: str, refused: Callable[..., str]) -> None:
    assert sentence in refused("explain", *arguments)


def test_every_key_can_be_explained(tmp_path: Path) -> None:
    groups = sorted({key.partition(".")[0] for key in schema_keys()})
    text = said(tmp_path, "explain", *groups)
    assert [block.split(" = ")[0] for block in text.strip().split("\n\n")] == [
        key for group in groups for key in schema_keys() if key == group or key.startswith(f"{group}.")
    ]
    assert all(field.metadata["meaning"] for _, field in schema_keys().values())


def test_help_lists_every_option_with_its_words(mine: Path) -> None:
    text = said(mine, "--help", "--config-dir", "mine")
    assert "hydratune --config-dir mine experiment=x" in text and "my run" in text
    for path in CONF_DIR.rglob("*/*.yaml"):
        if path.parent.name != "sweeper":
            assert f"    {path.stem} " in text, path
            assert description(path).split()[0] in text
    assert len([line for line in HEAD.splitlines() if line.startswith("  hydratune")]) == 10
    assert "there is no such folder" in said(mine, "--help", "--config-dir", "gone", status=2)


@pytest.mark.parametrize("line", [line for line in HEAD.splitlines() if line.startswith("  hydratune")])
def test_the_commands_that_help_shows_are_right(line: str, mine: Path) -> None:
    """As far as the configuration goes: each is composed, and what it leaves to fill in is filled in."""
    words = line.split("    ")[0].split()[1:]
    filled = {"DIR": "gpt2", "FILE": "rows.jsonl", "runs/RUN": str(mine / "run")}
    for name, value in filled.items():
        words = [word.replace(name, value) for word in words]
    (mine / "run").mkdir()
    (mine / "run/config.yaml").write_text("model: {name_or_path: x/y}\ndata: {path: rows.jsonl}\nlora: {kind: lora}\n")
    words = [word for word in words if word not in ("-m", "--cfg", "job") and "," not in word]
    text = said(mine, "explain", "seed", *words)
    assert text.startswith(f"seed = {Config().seed}\n")


@pytest.mark.parametrize(
    ("line", "completions"),
    [
        ("hydratune lora=", {"lora=none", "lora=attention", "lora=all_linear"}),
        ("hydratune trainer.learning", {"trainer.learning_rate="}),
        ("hydratune experiment=d", {"experiment=demo"}),
    ],
)
def test_the_shell_completes(line: str, completions: set[str], tmp_path: Path) -> None:
    """As bash asks, after `eval "$(hydratune -sc install=bash)"`."""
    install = said(tmp_path, "-sc", "install=bash")
    assert "hydra_bash_completion" in install and "-sc query=bash" in install
    done = subprocess.run(
        [sys.executable, "-m", "hydratune", "-sc", "query=bash"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
        env={"COMP_LINE": line, "COMP_POINT": str(len(line)), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert completions <= set(done.stdout.split()), done.stdout + done.stderr
