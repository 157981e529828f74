"""What `hydratune explain` and `hydratune --help` say, and that the shell completes groups, options and keys."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hydra.types import RunMode

from hydratune.config.help import HEAD, description
from hydratune.config.load import CONF_DIR, config_hash, saved_form, to_config
from hydratune.config.schema import Config
from hydratune.config.settings import config_loader
from hydratune.config.values import schema_keys

SWEEP = """\
# @package _global_
hydra:
  mode: MULTIRUN
  sweeper:
    params:
      lora: attention,mlp
      trainer.learning_rate: 1e-4,1e-3
"""
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
    (tmp_path / "mine/sweep").mkdir()
    (tmp_path / "mine/sweep/s.yaml").write_text(SWEEP)
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
    assert first.splitlines()[2] == "  a text or a list of texts"
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
    assert "model.extra = {token: '***'}\n" in text and "from +model.extra.token=***\n" in text
    swept = said(tmp_path, "explain", "model.extra", "-m", "+model.extra.token=hf_me,hf_you")
    assert swept.endswith("  swept model.extra.token=*** by +model.extra.token=***\n")


ADAM = "+trainer.extra.adam_beta2=0.9"


def test_an_entry_of_a_mapping(tmp_path: Path) -> None:
    meaning = "  further arguments of trl.SFTConfig\n  an entry of trainer.extra\n"
    text = said(tmp_path, "explain", "trainer.extra.adam_beta2", ADAM)
    assert text == f"trainer.extra.adam_beta2 = 0.9\n{meaning}  from {ADAM}\n"
    text = said(tmp_path, "explain", "trainer.extra.adam_beta2", "-m", f"{ADAM},0.95")
    assert text == f"trainer.extra.adam_beta2 is not set\n{meaning}  swept 0.9,0.95 by {ADAM},0.95\n"


Y = "# @package _global_\nlora: {r: 32}\ngenerate:\n  max_new_tokens: 9\n"
RANK = "lora.r = {}\n  rank of the adapter\n  a whole number above 0\n  from {}\n"
LORA_SWEPT = "  swept lora=attention,mlp by mine/sweep/s.yaml:6 (sweep=s)\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["sweep=rank_x_lr", "experiment=demo"],
            RANK.format(16, "the schema: its default")
            + f"  swept 8,16,32 by {CONF_DIR}/sweep/rank_x_lr.yaml:7 (sweep=rank_x_lr)\n",
        ),
        (
            ["sweep=rank_x_lr", "experiment=x"],
            RANK.format(32, "mine/experiment/x.yaml:7 (experiment=x)")
            + f"  swept 8,16,32 by {CONF_DIR}/sweep/rank_x_lr.yaml:7 (sweep=rank_x_lr)\n",
        ),
        (["sweep=rank_x_lr", "lora.r=4"], RANK.format(4, "lora.r=4")),
        (["-m", "lora.r=8,16"], RANK.format(16, "the schema: its default") + "  swept 8,16 by lora.r=8,16\n"),
        (["sweep=s"], RANK.format(16, "the schema: its default") + LORA_SWEPT),
        (
            ["-m", "lora=attention,dora"],
            RANK.format(16, "the schema: its default") + "  swept lora=attention,dora by lora=attention,dora\n",
        ),
        (
            ["-m", "experiment=x,demo"],
            RANK.format(16, "the schema: its default") + "  swept experiment=x,demo by experiment=x,demo\n",
        ),
        (["-m", "seed=1,2"], RANK.format(16, "the schema: its default")),
    ],
)
def test_what_a_sweep_does_stands_beside_the_value(arguments: list[str], text: str, mine: Path) -> None:
    assert said(mine, "--config-dir", "mine", "explain", "lora.r", *arguments) == text


def test_a_swept_group_is_said_of_each_of_its_keys(mine: Path) -> None:
    lora, rate, seed = (
        said(mine, "--config-dir", "mine", "sweep=s", "explain", name).split("\n\n")
        for name in ("lora", "trainer.learning_rate", "seed")
    )
    assert len(lora) > 10 and all(f"{block.strip()}\n".endswith(LORA_SWEPT) for block in lora)
    assert "  swept 1e-4,1e-3 by mine/sweep/s.yaml:7 (sweep=s)\n" in rate[0]
    assert "swept" not in seed[0]


def saved_run(root: Path, config: Config, trained: bool) -> Path:
    (root / "receipts").mkdir(parents=True)
    (root / "config.yaml").write_text(yaml.safe_dump(saved_form(config), sort_keys=False))
    if trained:
        (root / "receipts/train.json").write_text("{}")
    return root


def origins(folder: Path, *arguments: str) -> list[str]:
    """Of each key, the line that says where its value comes from, without the line number of a run's file."""
    keys = ("lora.r", "generate.max_new_tokens", "generate.apply_chat_template", "tracking.kind")
    blocks = said(folder, "explain", *keys, "--config-dir=mine", *arguments).split("\n\n")
    lines = [next(line for line in block.splitlines() if line.startswith("  from ")) for block in blocks]
    return [line.removeprefix("  from ").partition("config.yaml:")[0] for line in lines]


def test_the_origin_is_a_saved_run_only_where_its_value_counts(mine: Path) -> None:
    (mine / "mine/experiment/y.yaml").write_text(Y)
    config = to_config(config_loader(str(mine / "mine")).load_configuration("config", ["experiment=y"], RunMode.RUN))
    config.generate.max_new_tokens, config.tracking.kind = 5, "wandb"
    saved_run(mine / "run", config, trained=True)
    y, default = "mine/experiment/y.yaml:{} (experiment=y)", "the schema: its default"
    off = f"{CONF_DIR}/tracking/off.yaml:2 (tracking=off)"
    # the run's own settings; with an experiment, its benchmark and prompts are the experiment's
    assert origins(mine, "run_dir=run") == ["run/"] * 4
    assert origins(mine, "run_dir=run", "experiment=y") == ["run/", y.format(4), default, "run/"]
    assert origins(mine, "--from=run", "lora.r=4", "generate.apply_chat_template=false") == [
        "lora.r=4", "run/", "generate.apply_chat_template=false", "run/",
    ]  # fmt: skip
    # before training has begun, the experiment's settings replace the run's
    saved_run(mine / "begun", config, trained=False)
    assert origins(mine, "run_dir=begun", "experiment=y") == [y.format(2), y.format(4), default, off]
    # the folder of the same command typed before: what the files say too is theirs
    again = saved_run(mine / f"runs/run-{config_hash(config)}", config, trained=True)
    assert origins(mine, "experiment=y") == [y.format(2), y.format(4), default, f"{again.relative_to(mine)}/"]
    assert origins(mine, "experiment=y", "lora.r=32")[0] == "lora.r=32"


def test_a_run_that_is_opened_again_does_all_stages(mine: Path) -> None:
    (mine / "mine/experiment/y.yaml").write_text(f"{Y}stages: [prepare]\n")
    arguments = ("explain", "stages", "--config-dir=mine", "experiment=y", "run_dir=run")
    assert "  from mine/experiment/y.yaml:5 (experiment=y)\n" in said(mine, *arguments)
    config = to_config(config_loader(str(mine / "mine")).load_configuration("config", ["experiment=y"], RunMode.RUN))
    saved_run(mine / "run", config, trained=True)
    text = said(mine, *arguments)
    assert text.startswith("stages = [prepare, train, merge, evaluate, generate]\n") and "y.yaml" not in text


@pytest.mark.parametrize(
    ("arguments", "sentences"),
    [
        (["explain"], "explain needs a key or a group: hydratune explain lora.r experiment=demo"),
        (["explain", "lora.rnak"], "there is no key lora.rnak (did you mean lora.r?)."),
        (["explain", "lora.r", "model.extra", "lora.rank=3"], "lora.rank=3: there is no key lora.rank (did you mean lora.r?)."),
        (["lora.rank=3", "explain", "lora.r"], "lora.rank=3: there is no key lora.rank (did you mean lora.r?)."),
        (
            ["explain", "lora.rnak", "-m", "lora.r=8,16", "lora.rank=3"],
            "there is no key lora.rnak (did you mean lora.r?).\n"
            "hydratune: lora.rank=3: there is no key lora.rank (did you mean lora.r?).",
        ),
        (
            ["explain", "lora.r", "lora.r=8,16"],
            "lora.r=8,16: several values make a sweep: put -m before them, or [ ] around a list.",
        ),
        (["explain", "model.extra.token.foo"], "model.extra.token.foo is not set: model.extra has no entries."),
        (
            ["explain", "model.extra.token.foo", "+model.extra.token=x"],
            "model.extra.token.foo is not set: model.extra has token.",
        ),
        (["explain", "trainer.extra.seed"], "trainer.extra.seed belongs to seed."),
    ],
)  # fmt: skip
def test_mistakes(arguments: list[str], sentences: str, refused: Callable[..., str]) -> None:
    assert refused(*arguments) == f"hydratune: {sentences}\n"


def test_an_option_that_is_not_there(refused: Callable[..., str]) -> None:
    said = refused("explain", "lora.r", "experiment=dmo")
    assert said.startswith("hydratune: experiment=dmo: experiment has no option 'dmo' (did you mean demo?): it has ")
    assert said.count("\n") == 1


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


def completed(folder: Path, line: str, point: int | None = None) -> list[str]:
    """As bash asks, after `eval "$(hydratune -sc install=bash)"`."""
    done = subprocess.run(
        [sys.executable, "-m", "hydratune", "-sc", "query=bash"],
        cwd=folder, capture_output=True, text=True, timeout=60,
        env={**os.environ, "COMP_LINE": line, "COMP_POINT": str(len(line) if point is None else point)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_the_shell_asks_us(tmp_path: Path) -> None:
    install = said(tmp_path, "-sc", "install=bash")
    assert "hydra_bash_completion" in install and "-sc query=bash" in install


@pytest.mark.parametrize(
    ("line", "completions"),
    [
        ("hydratune lora=a", ["lora=all_linear", "lora=all_linear_r64", "lora=attention"]),
        ("hydratune trainer.learning", ["trainer.learning_rate="]),
        ("hydratune explain trainer.learning", ["trainer.learning_rate"]),
        ("hydratune --config-dir mine explain seed lora.e", ["lora.extra"]),
        ("hydratune explain lora.r experiment=d", ["experiment=demo"]),
        ("hydratune exp", ["experiment=", "explain"]),
        ("hydratune --config-dir mine experiment=x", ["experiment=x"]),
        ("hydratune --config-dir=mine experiment=x", ["experiment=x"]),
        ("hydratune experiment=x", []),
        ("hydratune --from run lora.r", ["lora.r=", "lora.rank_pattern."]),
        ("hydratune --from=run -m lora.r=8,16 trainer.learning", ["trainer.learning_rate="]),
        ("hydratune name='a b' trainer.learning", ["trainer.learning_rate="]),
        ("hydratune --from sa", []),
        ("hydratune --from ", []),
        ("hydratune --fr", []),
        ("hydratune lora.rnak=8 experiment=nope lora.", []),
        ("hydratune --config-dir gone trainer.learning", ["trainer.learning_rate="]),
        ("hydratune 'a", []),
        ("hydratune", []),
    ],
)
def test_the_shell_completes(line: str, completions: list[str], mine: Path) -> None:
    assert completed(mine, line) == completions


def test_what_stands_after_the_cursor_is_not_completed(mine: Path) -> None:
    assert completed(mine, "hydratune experiment=d lora.r=8", len("hydratune experiment=d")) == ["experiment=demo"]
