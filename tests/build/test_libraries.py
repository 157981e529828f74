"""Importing the libraries quickly leaves them as they are."""

import json
import subprocess
import sys

import pytest

CODE = """
import gc, json, sys
from hydratune.build.libraries import import_libraries
import_libraries(training={training}, tracker={tracker})
import torch
import importlib.util
print(json.dumps({{
    "loaded": [name for name in ("wandb", "trl.trainer.sft_trainer", "bitsandbytes", "torch._inductor.compile_fx")
               if name in sys.modules],
    "collects": gc.isenabled(), "compiles": torch.compile.__module__,
    "wandb can be found": importlib.util.find_spec("wandb") is not None,
}}))
"""


@pytest.mark.parametrize(
    ("training", "tracker", "loaded"),
    [
        (False, False, []),
        (True, False, ["trl.trainer.sft_trainer", "bitsandbytes"]),
        (True, True, ["wandb", "trl.trainer.sft_trainer", "bitsandbytes"]),
    ],
)
def test_only_what_is_used_is_imported(training: bool, tracker: bool, loaded: list[str], environment) -> None:
    code = CODE.format(training=training, tracker=tracker)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "loaded": loaded, "collects": True, "compiles": "torch", "wandb can be found": True,
    }  # fmt: skip
