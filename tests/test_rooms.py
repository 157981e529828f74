"""Who may import what, and that light commands stay light."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hydratune

SRC = Path(hydratune.__file__).parent
HEAVY = {"torch", "transformers", "peft", "trl", "bitsandbytes", "datasets", "accelerate", "lm_eval", "wandb"}
NEVER = {  # room -> what its modules never import, at any depth
    "formats.py": HEAVY | {"hydra", "omegaconf", "hydratune"},
    "config": HEAVY | {"hydratune.build", "hydratune.stages", "hydratune.run"},
    "run": HEAVY | {"hydra", "omegaconf", "hydratune.build", "hydratune.stages"},
    "build": {"hydra", "hydratune.run", "hydratune.stages"},
    "stages": {"hydra", "hydratune.stages"},
    "preflight.py": {"hydra", "hydratune.stages"},
    "sweep": HEAVY | {"hydratune.stages"},
    "pipeline.py": HEAVY | {"hydra", "omegaconf"},
}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("room", NEVER)
def test_room_imports(room: str) -> None:
    files = [SRC / room] if room.endswith(".py") else sorted((SRC / room).glob("*.py"))
    assert files
    for path in files:
        for name in imported(path):
            parts = name.split(".")
            prefixes = {".".join(parts[: i + 1]) for i in range(len(parts))}
            assert not prefixes & NEVER[room], f"{path} imports {name}"


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        (["--cfg", "job", "experiment=demo"], 0),
        (["lora.rnak=3"], 2),
        (["+lora.rnak=3"], 2),
        (["trainer.max_steps=many"], 2),
        (["lora=none"], 2),
        (["sweep", "status", "gone"], 2),
    ],
)
def test_light_commands_import_no_torch(arguments: list[str], status: int, tmp_path: Path) -> None:
    code = (
        "import sys, atexit; from hydratune.main import main\n"
        "atexit.register(lambda: print('TORCH', 'torch' in sys.modules, file=sys.stderr))\n"
        f"sys.argv = ['hydratune', *{arguments!r}]\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=dict(os.environ), timeout=60
    )
    assert done.returncode == status, done.stderr
    assert "TORCH False" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
