"""Every shipped configuration says what it is and what to type, composes, and becomes a typed Config."""

import re
import shlex
from itertools import takewhile
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from hydratune.config.help import description
from hydratune.config.load import CONF_DIR, config_hash, to_config
from hydratune.config.rules import broken_rules
from hydratune.config.schema import Config

FILES = sorted(path.relative_to(CONF_DIR).with_suffix("") for path in CONF_DIR.rglob("*.yaml"))
OPTIONS = sorted(path.relative_to(CONF_DIR).with_suffix("") for path in CONF_DIR.rglob("*/*.yaml"))
# an option that leaves something for the user to give
GIVEN = {"model/local": ["model.name_or_path=gpt2"], "data/jsonl": ["data.path=rows.jsonl"]}
GIVEN |= {"lora/none": ["quantization=none"], "lora/pissa": ["quantization=none"]}


def composed(*overrides: str) -> Config:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return to_config(compose("config", list(overrides)))


def test_all_options_are_found() -> None:
    assert len(OPTIONS) == 51
    assert {*OPTIONS, Path("config")} == {*FILES}


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_option_composes(option) -> None:  # type: ignore[no-untyped-def]
    config = composed(f"{option.parent}={option.name}", *GIVEN.get(str(option), []))
    assert broken_rules(config) == []


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_file_begins_with_what_it_is_and_the_command_to_type(file: Path) -> None:
    path = CONF_DIR / f"{file}.yaml"
    lines = path.read_text(encoding="utf-8").splitlines()
    packages = list(takewhile(lambda line: line.startswith("# @package "), lines))
    first, second = lines[len(packages) : len(packages) + 2]
    assert not second.startswith("#"), "one comment line"
    said = re.fullmatch(r"# (\S[^:]*\S): hydratune (\S.*)", first)
    assert said, first
    assert len(first) <= 112
    assert description(path) == first.removeprefix("# ")  # what `hydratune --help` prints of it

    typed = shlex.split(said[2])
    sweeps = "-m" in typed
    overrides = [word.partition(",")[0] if sweeps else word for word in typed if word != "-m"]  # a sweep's first job
    chosen = "experiment=demo" if str(file) == "config" else f"{file.parent}={file.name}"
    assert chosen in overrides
    assert broken_rules(composed(*overrides)) == []


def test_hash_leaves_out_what_may_change_on_a_run() -> None:
    one = config_hash(composed("experiment=demo"))
    assert one == config_hash(composed("experiment=demo", "benchmark=none", "name=x", "stages=[train]", "run_dir=y"))
    assert one != config_hash(composed("experiment=demo", "seed=1"))
    assert one != config_hash(composed("experiment=demo", "lora.r=8"))
