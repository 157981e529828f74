"""The objective of a job, and a search that lets another sweeper of Hydra's choose the next values by it."""

import json

import pytest
import yaml
from warm import Place

from hydratune.config.schema import Config, RunError
from hydratune.run.objective import Objective, objective_of

SWEEP = ["-m", "hydra.sweep.dir=sweep"]


@pytest.mark.slow
def test_objectives(place: Place) -> None:
    one = place.call(*SWEEP, "seed=1,2", "objective=train/seconds", "data.validation_share=0.2")
    assert one.returncode == 0, one.said
    metrics = json.loads((place.folder / "sweep/1/metrics.json").read_text())
    assert place.record(1)["objective"] == "train/seconds" and place.record(1)["value"] == metrics["train/seconds"]
    # another one is no other training
    again = place.call(*SWEEP, "seed=1,2", "data.validation_share=0.2")
    assert again.returncode == 0, again.said
    none = place.call("-m", "hydra.sweep.dir=none", "seed=1", "objective=adapter/held_out/acc")
    assert none.returncode == 2
    assert "objective=adapter/held_out/acc is measured by evaluate, and benchmark=none" in none.stderr


def test_an_objective_that_no_stage_measures() -> None:
    metrics = {
        "train/loss": 2.0,
        "train/validation_loss": 1.0,
        "adapter/held_out/acc": 0.5,
        "adapter/held_out/acc_stderr": 0.1,
    }
    config = Config(run_dir="sweep/0")
    assert objective_of(config, metrics) == Objective("train/validation_loss", 1.0)
    assert objective_of(config, {"train/loss": 2.0}) == Objective("train/loss", 2.0)
    assert objective_of(config, {"prepare/rows": 3}) is None
    config.objective = "adapter/held_out/acc"
    assert objective_of(config, metrics) == Objective("adapter/held_out/acc", 0.5, 0.1)
    config.objective = "adapter/held_out/f2"
    with pytest.raises(RunError) as error:
        objective_of(config, metrics)
    assert str(error.value).startswith(
        "objective=adapter/held_out/f2 is none of the metrics of sweep/0: it has train/loss, "
    )
    config.stages = ["prepare", "train"]
    assert objective_of(config, metrics) is None


@pytest.mark.slow
def test_a_search(place: Place) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    done = place.call(
        *SWEEP, "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=2", "hydra.sweeper.sampler.seed=1",
        "hydra.sweeper.direction=minimize", "trainer.learning_rate=tag(log,interval(1e-4,1e-1))", "lora.r=4,8",
        "hydra.launcher.n_jobs=2",
    )  # fmt: skip
    assert done.returncode == 0, done.said
    found = yaml.safe_load((place.folder / "sweep/optimization_results.yaml").read_text())
    values = {number: place.record(number)["value"] for number in range(3)}
    assert found["best_value"] == min(values.values())
    best = min(values, key=lambda number: values[number])
    config = yaml.safe_load((place.folder / f"sweep/{best}/config.yaml").read_text())
    assert config["trainer"]["learning_rate"] == found["best_params"]["trainer.learning_rate"]
    assert config["lora"]["r"] == int(found["best_params"]["lora.r"])
    assert place.sweep("status", "sweep").stdout.startswith("sweep: 3 jobs, 3 done\n")


@pytest.mark.slow
def test_mistakes_in_a_search(place: Place) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    done = place.call(
        *SWEEP, "hydra/sweeper=optuna", "hydra.sweeper.n_trails=3", "trainer.learning_rate=interval(-1,1)",
        "lora.r=interval(0.5,4.5)", "seed=1",
    )  # fmt: skip
    assert done.returncode == 2
    assert [line.partition(": ")[2] for line in done.stderr.splitlines()] == [
        "trainer.learning_rate=interval(-1,1): trainer.learning_rate is a finite number above 0, found -1.0.",
        "lora.r=interval(0.5,4.5): lora.r is a whole number, found 0.5.",
        "lora.r=interval(0.5,4.5): lora.r is a whole number, found 4.5.",
        "hydra.sweeper.n_trails=3: there is no key hydra.sweeper.n_trails.",
    ]
    assert not (place.folder / "sweep").exists()
