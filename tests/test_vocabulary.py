"""The folder names are the vocabulary: conf group, schema class, build file and stage file share one word."""

from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

import hydratune
from hydratune.config.load import CONF_DIR
from hydratune.config.schema import STAGES, Config

SRC = Path(hydratune.__file__).parent
GROUPS = {f.name: f.type for f in fields(Config) if is_dataclass(f.type)}
# values without alternatives, so no conf folder: settings of a stage, and those of sweeps, whose folder has named grids
STAGE_SETTINGS = {"merge", "generate", "sweep"}


def test_every_conf_folder_is_a_group_with_a_build_file() -> None:
    folders = {path.name for path in CONF_DIR.iterdir() if path.is_dir()} - {"experiment", "sweep", "cluster", "hydra"}
    assert folders == GROUPS.keys() - STAGE_SETTINGS
    assert folders <= {path.stem for path in (SRC / "build").glob("*.py")}


@pytest.mark.parametrize("name", GROUPS)
def test_the_class_has_the_groups_name(name: str) -> None:
    assert GROUPS[name].__name__ == f"{name.capitalize()}Conf"


def test_every_stage_has_its_file() -> None:
    assert {*STAGES, "data"} == {path.stem for path in (SRC / "stages").glob("*.py")} - {"__init__"}
