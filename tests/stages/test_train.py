"""Training from the command line: validation, early stopping, the best checkpoint, and the ways of going faster."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hydratune.stages.train import _last_validation

SETTINGS = (
    "model=local", "lora=all_linear", "trainer.max_length=128", "trainer.per_device_train_batch_size=4",
    "stages=[prepare,train]",
)  # fmt: skip


@pytest.fixture
def train(tiny: Path, rows: Path, warm: Callable[..., Any], tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Train the tiny model in a run directory; returns what the log says."""

    def call(run: str, *overrides: str) -> list[dict[str, Any]]:
        done = warm(f"model.name_or_path={tiny}", f"data.path={rows}", *SETTINGS, f"run_dir={run}", *overrides)
        assert done.returncode == 0, done.stdout + done.stderr
        said[run] = done.stdout
        return [json.loads(line) for line in (tmp_path / run / "train_log.jsonl").read_text().splitlines()]

    said: dict[str, str] = {}
    call.said = said  # type: ignore[attr-defined]
    return call


def losses(log: list[dict[str, Any]], name: str = "loss") -> list[float]:
    return [entry[name] for entry in log if name in entry]


VALIDATED = ("data.validation_share=0.3", "trainer.eval_steps=1", "trainer.save_steps=1")
# a learning rate at which the validation loss falls, and rises so soon that no processor's own rounding matters
TOO_HIGH = ("trainer.learning_rate=0.02", "trainer.lr_scheduler_type=constant", "trainer.max_steps=30")


@pytest.mark.slow
def test_early_stopping_and_the_best_checkpoint(train, tmp_path: Path) -> None:
    log = train(
        "best", *VALIDATED, *TOO_HIGH, "trainer.early_stopping_patience=3", "trainer.load_best_model_at_end=true"
    )
    validation = losses(log, "eval_loss")
    best = min(range(len(validation)), key=validation.__getitem__)
    assert len(validation) == best + 1 + 3 < 30, "three losses in a row without a lower one end the training"
    assert best > 0
    kept = json.loads((tmp_path / "best/metrics.json").read_text())
    assert kept["train/steps"] == len(validation)
    assert kept["train/validation_loss"] == pytest.approx(validation[best], rel=1e-5)
    saved = load_file(tmp_path / "best/adapter/adapter_model.safetensors")
    checkpoint = tmp_path / "best/checkpoints" / f"checkpoint-{best + 1}" / "adapter_model.safetensors"
    assert all(torch.equal(tensor, saved[name]) for name, tensor in load_file(checkpoint).items())


@pytest.mark.slow
def test_without_them_the_last_step_counts(train, tmp_path: Path) -> None:
    log = train("last", *VALIDATED, *TOO_HIGH, "trainer.max_steps=8")
    validation = losses(log, "eval_loss")
    assert len(validation) == 8
    assert json.loads((tmp_path / "last/metrics.json").read_text())["train/validation_loss"] == validation[-1]


@pytest.mark.slow
def test_every_way_trains_the_same(train) -> None:
    """Rows in one line, padded, packed; the lean loss and trl's; checkpointed, compiled: to rounding."""
    ways = {
        "line": [], "padded": ["data.padding_free=false"], "plain loss": ["trainer.lean_loss=false"],
        "all plain": ["data.padding_free=false", "trainer.lean_loss=false"],
        "checkpointed": ["trainer.gradient_checkpointing=true"],
        "eager": ["model.attn_implementation=eager"],
        "nf4": ["quantization=nf4"], "nf4, plain": ["quantization=nf4", "data.padding_free=false", "trainer.lean_loss=false"],
    }  # fmt: skip
    if shutil.which("g++"):  # else it is refused, as below
        ways["compiled"] = ["trainer.torch_compile=true"]
    common = ("trainer.max_steps=3", "trainer.gradient_accumulation_steps=2", "trainer.learning_rate=0.01")
    found = {
        name: train(name.replace(" ", "_").replace(",", ""), *common, *settings) for name, settings in ways.items()
    }
    for name, log in found.items():
        like = "nf4, plain" if "nf4" in name else "all plain"
        assert losses(log) == pytest.approx(losses(found[like]), rel=2e-5), name
        assert losses(log, "grad_norm") == pytest.approx(losses(found[like], "grad_norm"), rel=1e-3), name
    assert losses(found["line"])[-1] < 0.99 * losses(found["line"])[0]
    assert "batches in one line, each row alone, loss of supervised tokens alone" in train.said["line"]
    assert "batches padded, loss of all tokens" in train.said["all_plain"]


def test_nothing_to_compile_with(tiny: Path, rows: Path, refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    said = refused(f"model.name_or_path={tiny}", f"data.path={rows}", *SETTINGS, "trainer.torch_compile=true")
    assert said == (
        "hydratune: trainer.torch_compile=true needs a C++ compiler on a CPU, and there is none: install g++, or set "
        "trainer.torch_compile=false.\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("extra", ["label_smoothing_factor=0.1", "loss_type=dft"])
def test_another_loss_is_trls_own(extra: str, train) -> None:
    """The lean loss knows the likelihood alone, and would leave the option without effect."""
    common = ("trainer.max_steps=2", "trainer.learning_rate=0.01")
    found = {
        lean: losses(train(f"lean_{lean}", *common, f"+trainer.extra.{extra}", f"trainer.lean_loss={lean}"))
        for lean in ("true", "false")
    }
    assert found["true"] == found["false"]
    assert found["true"][0] != pytest.approx(losses(train("plain", *common))[0], rel=1e-4)


@pytest.mark.slow
def test_noise_that_goes_by_the_length_of_a_line_gets_rows_of_their_own(train) -> None:
    train("neftune", "trainer.max_steps=1", "+trainer.extra.neftune_noise_alpha=5")
    assert "batches padded" in train.said["neftune"]


def test_a_loss_that_is_not_the_models_own_is_refused(tiny: Path, rows: Path, tmp_path: Path, monkeypatch) -> None:
    """As of a model whose code caps or scales its logits by a name that neither trl nor we know."""
    from hydratune.build.hardware import resolve
    from hydratune.config.schema import Config, RunError
    from hydratune.run.layout import RunDir
    from hydratune.stages import prepare, train

    def scaled(*args: Any) -> Any:
        model = load(*args)
        forward = model.forward

        def changed(*given: Any, **inputs: Any) -> Any:
            made = forward(*given, **inputs)
            made.logits = made.logits * 16
            return made

        model.forward = changed
        return model

    config, run = Config(cache_dir=str(tmp_path / "cache")), RunDir(tmp_path / "run")
    config.model.name_or_path, config.data.path, config.lora.kind = str(tiny), str(rows), "lora"
    prepare.run(config, run, resolve(config))
    load = train.load_model
    monkeypatch.setattr(train, "load_model", scaled)
    with pytest.raises(RunError, match=r"trl's loss is .* where the model's own logits give .*: this model can't"):
        train.build_trainer(config, run, resolve(config))


@pytest.mark.slow
def test_the_log_counts_tokens_without_padding(train, tmp_path: Path) -> None:
    log = [entry for entry in train("run", "trainer.num_train_epochs=2", "data.padding_free=false") if "loss" in entry]
    report = json.loads((tmp_path / "run/prepared.json").read_text())["training"]
    assert log[-1]["num_tokens"] == 2 * report["tokens"]
    for entry in log:
        assert 0 < entry["supervised_tokens_per_second"] < entry["tokens_per_second"]
        assert entry["memory_gib"] > 0 and entry["learning_rate"] >= 0
    assert [entry["step"] for entry in log] == list(range(1, len(log) + 1))


@pytest.mark.parametrize(("loaded", "found"), [("checkpoint-2", 3.0), ("checkpoint-4", 5.0), (None, 2.5)])
def test_the_validation_loss_is_that_of_the_weights_that_are_saved(loaded: str | None, found: float) -> None:
    """The lowest one may be of a step without a checkpoint, which nobody can load."""
    history = [{"step": 2, "eval_loss": 3.0}, {"step": 3, "eval_loss": 1.0}, {"step": 6, "eval_loss": 2.5}]
    trainer = SimpleNamespace(
        args=SimpleNamespace(load_best_model_at_end=True),
        state=SimpleNamespace(global_step=6, log_history=history, best_metric=1.0, best_model_checkpoint=loaded),
        evaluate=lambda: {"eval_loss": 5.0},
    )
    assert _last_validation(trainer) == found  # type: ignore[arg-type]
