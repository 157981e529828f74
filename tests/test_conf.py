"""Every shipped configuration composes and becomes a typed Config."""

import pytest
from hydra import compose, initialize_config_dir

from hydratune.config.load import CONF_DIR, config_hash, to_config
from hydratune.config.rules import broken_rules
from hydratune.config.schema import Config

OPTIONS = sorted(path.relative_to(CONF_DIR).with_suffix("") for path in CONF_DIR.rglob("*/*.yaml"))
# an option that leaves something for the user to give
GIVEN = {"model/local": ["model.name_or_path=gpt2"], "data/jsonl": ["data.path=rows.jsonl"]}
GIVEN |= {"lora/none": ["quantization=none"]}


def composed(*overrides: str) -> Config:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return to_config(compose("config", list(overrides)))


def test_all_options_are_found() -> None:
    assert len(OPTIONS) == 29


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_option_composes(option) -> None:  # type: ignore[no-untyped-def]
    config = composed(f"{option.parent}={option.name}", *GIVEN.get(str(option), []))
    assert broken_rules(config) == []


def test_hash_leaves_out_what_may_change_on_a_run() -> None:
    one = config_hash(composed("experiment=demo"))
    assert one == config_hash(composed("experiment=demo", "benchmark=none", "name=x", "stages=[train]", "run_dir=y"))
    assert one != config_hash(composed("experiment=demo", "seed=1"))
    assert one != config_hash(composed("experiment=demo", "lora.r=8"))
