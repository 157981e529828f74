"""`cluster=NAME`: a site's file over the launcher's settings, what is typed over both, and what can be wrong with it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from hydratune.config.load import CONF_DIR

PACKAGE = "# @package hydra.launcher\n"
SITE = ["--config-dir", "mine", "-m", "hydra/launcher=slurm_1gpu", "cluster=site", "lora.r=8,16"]
SLURMS = [path.stem for path in (CONF_DIR / "hydra" / "launcher").glob("slurm_*.yaml")]


def launcher(*words: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        composed = compose("config", list(words), return_hydra_config=True)
    plain = OmegaConf.to_container(composed.hydra.launcher)
    assert isinstance(plain, dict)
    return plain


@pytest.mark.parametrize("name", SLURMS)
def test_the_file_wins_over_the_option_and_what_is_typed_over_both(name: str) -> None:
    before = launcher(f"hydra/launcher={name}")
    after = launcher(f"hydra/launcher={name}", "cluster=example", "hydra.launcher.sbatch.partition=mine")
    example = yaml.safe_load((CONF_DIR / "cluster" / "example.yaml").read_text())
    assert after["sbatch"] == {**before["sbatch"], **example["sbatch"], "partition": "mine"}
    assert after["modules"] == example["modules"]
    assert after["max_requeues"] == before["max_requeues"]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("sbatsh: {mem: 1G}", "2: there is no hydra.launcher.sbatsh (did you mean sbatch?): leave it out"),
        ("sbatch: batch", "2: hydra.launcher.sbatch is a mapping, found 'batch'"),
        ("sbatch:\n  array: 0-3", "3: hydra.launcher.sbatch.array belongs to hydra.launcher.array_parallelism: leave it out"),
        ("sbatch:\n  partition: [a, b]", "3: hydra.launcher.sbatch.partition is one word or number, found ['a', 'b']"),
        ("modules: cuda", "2: hydra.launcher.modules is a list, found 'cuda'"),
        ("setup: {x: 1}", "2: hydra.launcher.setup is a list, found a mapping"),
        ("wait: 3", "2: hydra.launcher.wait is true or false, found 3"),
        ("max_requeues: true", "2: hydra.launcher.max_requeues is a whole number, found True"),
        ("array_parallelism: 0", "2: hydra.launcher.array_parallelism is 1 or more, found 0"),
        ("sbatch:\n  time: 12:00:00",
         '3: time: 12:00:00 is the number 43200 to YAML, which counts it to the base of 60: write time: "12:00:00"'),
        ("scratch: 'a\"b'", "2: hydra.launcher.scratch is null or a path, found 'a\"b'"),
        ("python: 3", "2: hydra.launcher.python is null or a path, found 3"),
        ("_target_: os.system",
         "2: hydra.launcher._target_ would import Python code, which only data.formatter and trainer.callbacks may: leave it out"),
    ],
)  # fmt: skip
def test_a_mistake_is_a_sentence_with_its_line(
    lines: str, said: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    site(tmp_path, PACKAGE + lines + "\n")
    assert refused(*SITE) == f"hydratune: mine/cluster/site.yaml:{said}.\n"


@pytest.mark.parametrize("first", ["", "# @package _global_\n", "# @package cluster\n"])
def test_a_file_without_its_package_is_one_sentence(first: str, refused: Callable[..., str], tmp_path: Path) -> None:
    site(tmp_path, first + "sbatch:\n  partition: batch\n  mem: 1G\n")
    said = "hydratune: mine/cluster/site.yaml:1: the first line must be # @package hydra.launcher.\n"
    assert refused(*SITE) == said


@pytest.mark.parametrize(
    "more", [[], ["-m", "lora.r=8,16"], ["hydra/launcher=here"], ["-m", "stages=[]"]], ids=" ".join
)
def test_without_a_launcher_of_slurms_it_is_refused(
    more: list[str], refused: Callable[..., str], tmp_path: Path
) -> None:
    site(tmp_path, PACKAGE + "sbatch:\n  partition: batch\n")
    said = "only Slurm's launchers read it: type hydra/launcher=slurm_1gpu with it, or leave it out."
    assert refused("--config-dir", "mine", "cluster=site", *more) == f"hydratune: cluster=site: {said}\n"
    assert refused("cluster=example", *more) == f"hydratune: cluster=example: {said}\n"


def test_a_sweep_has_one(refused: Callable[..., str], tmp_path: Path) -> None:
    site(tmp_path, PACKAGE + "sbatch:\n  partition: batch\n")
    said = refused("--config-dir", "mine", "-m", "hydra/launcher=slurm_1gpu", "cluster=site,example")
    assert said == "hydratune: cluster=site,example: all jobs of a sweep are submitted alike: name one cluster.\n"


def test_a_site_that_is_not_there_is_named(refused: Callable[..., str], tmp_path: Path) -> None:
    site(tmp_path, PACKAGE)
    said = "cluster has no option 'sites' (did you mean site?): it has example, site."
    assert refused("--config-dir", "mine", "cluster=sites") == f"hydratune: cluster=sites: {said}\n"
    said = "cluster has no option 'site': it has example; yours is DIR/cluster/site.yaml with --config-dir DIR."
    assert refused("cluster=site") == f"hydratune: cluster=site: {said}\n"


def site(folder: Path, text: str) -> None:
    path = folder / "mine" / "cluster" / "site.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
