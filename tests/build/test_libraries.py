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


LATER = """
import json, sys
from importlib.metadata import packages_distributions, version
from hydratune.build.libraries import import_libraries
import_libraries(training=True, tracker=False)
import importlib.metadata, importlib.util
import trl.import_utils as trl
found = {"loaded": "scipy.optimize" in sys.modules, "restored": importlib.metadata.packages_distributions is packages_distributions}
found["versions"] = [name for name in ("torch", "transformers", "peft", "yaml", "sklearn", "no_such_package")
                     if importlib.util.find_spec(name)
                     and trl._is_package_available(name, return_version=True)[1] != version(packages_distributions()[name][0])]
found["mapping"] = dict(trl.PACKAGE_DISTRIBUTION_MAPPING.items()).keys() == packages_distributions().keys()
from transformers.loss.loss_for_object_detection import linear_sum_assignment
found["pairs"] = [part.tolist() for part in linear_sum_assignment([[4, 1, 3], [2, 0, 5], [3, 2, 2]])]
import scipy.optimize
found["real"] = [sys.modules["scipy.optimize"].__file__ is not None, callable(scipy.optimize.minimize)]
print(json.dumps(found))
"""


def test_what_is_put_off_is_there_when_it_is_used(environment) -> None:
    """scipy's optimizers, which transformers has for finding objects in images, and trl's list of all distributions."""
    done = subprocess.run([sys.executable, "-c", LATER], capture_output=True, text=True, env=environment, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "loaded": False, "restored": True, "versions": [], "mapping": True, "pairs": [[0, 1, 2], [1, 0, 2]],
        "real": [True, True],
    }  # fmt: skip


def test_another_name_of_a_module_that_is_put_off_imports_it() -> None:
    code = (
        "import sys\nfrom hydratune.build.libraries import _postponed\n"
        "with _postponed('colorsys', 'rgb_to_hsv'):\n"
        "    from colorsys import rgb_to_hsv\n    stand_in = sys.modules['colorsys']\n"
        "    from colorsys import ONE_THIRD\n    assert sys.modules['colorsys'] is not stand_in\n"
        "assert ONE_THIRD == 1 / 3 and rgb_to_hsv(0, 0, 1) == (2 / 3, 1.0, 1), sys.modules['colorsys']"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
