"""Checkpoints: whole or passed over, complete, of this run, and what a run that fails leaves."""

import gc
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from hydratune.build.checkpoint_folder import WRITING, last_checkpoint, rotate
from hydratune.build.failures import disk_errors, memory_errors
from hydratune.build.hardware import Hardware
from hydratune.build.progress import Progress
from hydratune.build.trainer import Trainer
from hydratune.config.load import CONF_DIR, to_config
from hydratune.config.schema import Config, RunError
from hydratune.pipeline import _disk_errors
from hydratune.run.layout import RunDir
from hydratune.stages import prepare, train

pytestmark = pytest.mark.slow

CPU = Hardware("cpu", "float32", "float32", "float32", "adamw_torch", "sdpa")
TIMES = {"tokens_per_second", "supervised_tokens_per_second", "memory_gib", "seconds"}
Make = Callable[..., "Runs"]


class Runs:
    """Runs with the same settings, in this process."""

    def __init__(self, folder: Path, config: Config, hardware: Hardware = CPU) -> None:
        self.folder, self.config, self.hardware = folder, config, hardware

    def dir(self, name: str) -> RunDir:
        run = RunDir(self.folder / name)
        if not run.prepared.is_file():
            prepare.run(self.config, run, self.hardware)
        return run

    def train(self, name: str) -> dict[str, Any]:
        return train.run(self.config, self.dir(name), self.hardware)

    def adapter(self, name: str) -> bytes:
        return (self.dir(name).adapter / "adapter_model.safetensors").read_bytes()

    def log(self, name: str) -> list[dict[str, Any]]:
        lines = self.dir(name).train_log.read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]

    def checkpoints(self, name: str) -> list[str]:
        return sorted(path.name for path in self.dir(name).checkpoints.iterdir())


@pytest.fixture
def runs(tiny: Path, rows: Path, tmp_path: Path) -> Make:
    def make(*typed: str, hardware: Hardware = CPU) -> Runs:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            config = compose(
                "config",
                [
                    "model=local", f"model.name_or_path={tiny}", "data=jsonl", f"data.path={rows}", "quantization=none",
                    "lora=all_linear", "lora.lora_dropout=0.1", "data.max_rows=14", "data.shuffle_seed=3",
                    "trainer.per_device_train_batch_size=2", "trainer.gradient_accumulation_steps=2",
                    "trainer.max_steps=10", "trainer.save_steps=3", f"cache_dir={tmp_path}/cache", *typed,
                ],
            )  # fmt: skip
        return Runs(tmp_path, to_config(config), hardware)

    return make


def stop_at(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """SIGTERM comes during a step."""
    before = Progress.on_step_end

    def on_step_end(self: Progress, args: Any, state: Any, control: Any, **others: Any) -> None:
        before(self, args, state, control, **others)
        if state.global_step in steps and not self.signal:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Progress, "on_step_end", on_step_end)


def test_what_is_not_whole_is_passed_over(runs: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = runs("trainer.max_steps=4", "trainer.save_steps=2")
    made.train("run")
    assert made.checkpoints("run") == ["checkpoint-2", "checkpoint-4"]
    original = made.dir("run").checkpoints
    names = sorted(path.name for path in (original / "checkpoint-4").iterdir())
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "rest_0.pt", "identity.json", "identity.digest"} < {*names}

    def cut(path: Path) -> None:
        os.truncate(path, path.stat().st_size - 1)

    def change(path: Path) -> None:
        whole = bytearray(path.read_bytes())
        whole[len(whole) // 2] ^= 1
        path.write_bytes(whole)

    for name in names:
        for harm in (cut, change, Path.unlink):
            folder, said = tmp_path / "copy", []
            shutil.copytree(original, folder)
            (folder / WRITING / "checkpoint-6").mkdir(parents=True)
            harm(folder / "checkpoint-4" / name)
            found = last_checkpoint(folder, said.append)
            assert found == folder / "checkpoint-2", (name, harm)
            if (name, harm) == ("identity.json", Path.unlink):
                assert said == ["  checkpoint-4 was cut off while it was written: removed"]
            else:
                assert len(said) == 1 and said[0].startswith("  checkpoint-4 can't be used and is removed: ")
                assert name.replace("digest", "json") in said[0] or "identity.digest is missing" in said[0]
            assert [path.name for path in folder.iterdir()] == ["checkpoint-2"]
            shutil.rmtree(folder)
    # and the run goes on from the one before it to the same end
    adapter, log = made.adapter("run"), made.log("run")
    cut(original / "checkpoint-4" / "optimizer.pt")
    made.train("run")
    said = capfd.readouterr().out
    assert "checkpoint-4 can't be used and is removed: optimizer.pt is not what was written" in said
    assert "going on from checkpoint-2" in said
    assert made.adapter("run") == adapter and made.log("run") == log


@pytest.mark.parametrize("steps", [10, 8])
def test_a_run_that_was_through_makes_no_further_step(steps: int, runs: Make) -> None:
    """Killed between its last checkpoint and its adapter; 8 is the end of an epoch, 10 is not."""
    made = runs(f"trainer.max_steps={steps}", "trainer.logging_steps=3")
    metrics, adapter, log = made.train("run"), made.adapter("run"), made.log("run")
    shutil.rmtree(made.dir("run").adapter)
    again = made.train("run")
    assert made.adapter("run") == adapter and made.log("run") == log
    assert {**again, "train/seconds": 0} == {**metrics, "train/seconds": 0}
    seconds = [json.loads(line)["seconds"] for line in made.dir("run").train_log.read_text().splitlines()]
    assert seconds == sorted(seconds) and again["train/seconds"] >= round(seconds[-1], 1)


@pytest.mark.parametrize("stop", [4, 6])  # at the end of an epoch, and in the middle of one
@pytest.mark.parametrize(
    ("typed", "hardware"),
    [
        (["trainer.logging_steps=3"], CPU),
        (
            ["quantization=nf4", "trainer.logging_steps=100"],
            replace(CPU, compute_dtype="bfloat16", precision="bfloat16"),
        ),
        (["lora=none", "trainer.logging_steps=3"], CPU),
        (["data.packing=true", "trainer.max_length=128", "lora.use_dora=true"], CPU),
        (["lora=pissa", "trainer.gradient_checkpointing=true"], CPU),
        (
            ["lora=loraplus", "trainer.optim=adafactor", "+trainer.extra.neftune_noise_alpha=5"],
            replace(CPU, optim="adafactor"),
        ),
    ],
    ids=["lora", "qlora in bfloat16", "full", "dora, packed", "pissa", "lora+ with noise"],
)
def test_a_stopped_run_ends_as_one_that_was_not(
    typed: list[str], hardware: Hardware, stop: int, runs: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = runs(*typed, hardware=hardware)
    whole = made.train("whole")
    stop_at(monkeypatch, stop)
    with pytest.raises(SystemExit) as left:
        made.train("stopped")
    assert left.value.code == 75
    assert made.checkpoints("stopped")[-1] == f"checkpoint-{stop}"
    stopped = made.train("stopped")
    assert made.log("stopped") == made.log("whole")
    where = "merged/model" if "lora=none" in typed else "adapter/adapter_model"
    one, other = (load_file(made.dir(name).root / f"{where}.safetensors") for name in ("whole", "stopped"))
    assert one.keys() == other.keys()
    assert all(one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one)
    assert {**whole, "train/seconds": 0} == {**stopped, "train/seconds": 0}


def test_the_best_and_patience_survive(
    runs: Make, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Stopped twice, once inside a validation, which is made up for; then the best one is lost, and made again."""
    made = runs(
        "data.validation_share=0.2", "trainer.eval_steps=2", "trainer.save_steps=2", "trainer.max_steps=20",
        "trainer.load_best_model_at_end=true", "trainer.early_stopping_patience=2", "trainer.logging_steps=5",
        "trainer.per_device_eval_batch_size=1",
    )  # fmt: skip
    losses = {2: 3.0, 4: 2.0, 6: 2.5, 8: 1.0, 10: 1.5, 12: 1.25}
    evaluate = Trainer.evaluate

    def told(self: Trainer, *args: Any, **kwargs: Any) -> dict[str, float]:
        step, log = self.state.global_step, self.log
        if step == 8 and stop_inside and not self.progress.signal:
            os.kill(os.getpid(), signal.SIGTERM)

        def other(logs: dict[str, float], *more: Any) -> None:
            logs["eval_loss"] = losses[step]
            log(logs, *more)

        self.log = other  # type: ignore[method-assign]
        try:
            return evaluate(self, *args, **kwargs)
        finally:
            del self.log

    stop_inside = False
    monkeypatch.setattr(Trainer, "evaluate", told)
    made.train("whole")
    assert [entry["step"] for entry in made.log("whole") if "eval_loss" in entry] == [2, 4, 6, 8, 10, 12]
    best = made.dir("whole").checkpoints / "checkpoint-8"
    assert (best / "adapter_model.safetensors").read_bytes() == made.adapter("whole")

    made.train("whole")  # it had ended, if not at max_steps
    assert len(made.log("whole")) == 6 + 12 // 5

    stop_inside = True
    with monkeypatch.context() as patch:
        stop_at(patch, 5, 11)
        for saved in (5, 8, 11):
            with pytest.raises(SystemExit) as left:
                made.train("stopped")
            assert left.value.code == 75
            stop_inside = saved < 8
            assert made.dir("stopped").checkpoints.joinpath(f"checkpoint-{saved}").is_dir()
            if saved == 8:
                assert max(entry["step"] for entry in made.log("stopped") if "eval_loss" in entry) == 6
    made.train("stopped")
    assert made.log("stopped") == made.log("whole") and made.adapter("stopped") == made.adapter("whole")
    # whole but without the best one that they name: what comes before goes on
    shutil.rmtree(made.dir("stopped").checkpoints / "checkpoint-8")
    capfd.readouterr()
    made.train("stopped")
    assert "of checkpoint-8, the best so far, identity.json is missing" in capfd.readouterr().out
    assert made.log("stopped") == made.log("whole") and made.adapter("stopped") == made.adapter("whole")


def test_validation_changes_no_training(runs: Make) -> None:
    without, with_it = runs("data.validation_share=0.2"), runs("data.validation_share=0.2", "trainer.eval_steps=2")
    without.train("without")
    with_it.train("with")
    assert with_it.adapter("with") == without.adapter("without")


VALIDATED = ("data.validation_share=0.2", "trainer.eval_steps=2", "trainer.save_steps=2", "trainer.max_steps=6")


def rising(monkeypatch: pytest.MonkeyPatch) -> None:
    """The validation loss is the step number: the first one is the best."""
    log = Trainer.log

    def told(self: Trainer, logs: dict[str, float], *more: Any) -> None:
        if "eval_loss" in logs:
            logs["eval_loss"] = float(self.state.global_step)
        log(self, logs, *more)

    monkeypatch.setattr(Trainer, "log", told)


def test_the_best_one_counts_only_where_it_is_asked_for(
    runs: Make, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    rising(monkeypatch)
    made = runs(*VALIDATED)
    made.train("run")
    assert made.checkpoints("run") == ["checkpoint-2", "checkpoint-6"]
    shutil.rmtree(made.dir("run").checkpoints / "checkpoint-2")
    made.train("run")
    assert "going on from checkpoint-6" in capfd.readouterr().out
    # where it is, a whole one is left where it is until training has come further again
    said: list[str] = []
    assert last_checkpoint(made.dir("run").checkpoints, said.append, best=True) is None
    assert said == ["  checkpoint-6 is passed over: of checkpoint-2, the best so far, identity.json is missing"]
    assert made.checkpoints("run") == ["checkpoint-6"]


@pytest.mark.parametrize("limit", [1, 2])
def test_a_later_one_that_is_passed_over_takes_no_ones_place(limit: int, tmp_path: Path) -> None:
    for step in (2, 4, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
    rotate(tmp_path, limit, "", newest=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4"][-limit:]


def test_the_end_deletes_nothing_and_its_validation_is_that_of_the_best(
    runs: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a limit of 1 the newest is there until the result is; the next attempt then needs no step."""
    rising(monkeypatch)
    made = runs(*VALIDATED, "trainer.save_total_limit=1", "trainer.load_best_model_at_end=true")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "_save", interrupted)
        made.train("killed")
    assert made.checkpoints("killed") == ["checkpoint-2", "checkpoint-6"]
    shutil.move(tmp_path / "killed", tmp_path / "moved")  # whose best one is found all the same
    assert made.train("moved")["train/validation_loss"] == 2.0
    best = made.dir("moved").checkpoints / "checkpoint-2/adapter_model.safetensors"
    assert best.read_bytes() == made.adapter("moved")
    assert [entry["step"] for entry in made.log("moved") if "eval_loss" in entry] == [2, 4, 6]


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def test_a_kill_after_the_last_validation_logs_it_once(runs: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = runs("data.validation_share=0.2", "trainer.max_steps=3")
    whole = made.train("whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "_save", interrupted)
        made.train("killed")
    assert made.train("killed")["train/validation_loss"] == whole["train/validation_loss"]
    assert made.log("killed") == made.log("whole")
    assert [entry["step"] for entry in made.log("killed") if "eval_loss" in entry] == [3]


@pytest.mark.parametrize("when", ["in the last step", "at the end"])
def test_a_signal_too_late_for_a_step_keeps_the_next_stages_from_running(
    when: str, runs: Make, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    made = runs("data.validation_share=0.2", "trainer.max_steps=3")
    whole = made.train("whole")
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as left:
        if when == "in the last step":
            stop_at(patch, 3)
        else:
            patch.setattr(Progress, "on_train_end", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
        made.train("late")
    assert left.value.code == 75
    assert "SIGTERM: saved at step 3; the same command goes on" in capfd.readouterr().out
    assert made.adapter("late") == made.adapter("whole")
    assert {**made.train("late"), "train/seconds": 0} == {**whole, "train/seconds": 0}
    assert made.log("late") == made.log("whole") and made.adapter("late") == made.adapter("whole")


class Counting(TrainerCallback, ExportableState):
    """Counts steps by `pace`."""

    def __init__(self, pace: int = 1) -> None:
        self.pace, self.count = pace, 0

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.count += self.pace

    def state(self) -> dict[str, Any]:
        return {"args": {"pace": self.pace}, "attributes": {"count": self.count}}


def test_two_callbacks_of_one_class_go_on_each_from_its_own_last_state(
    runs: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = runs("trainer.save_steps=1", "trainer.max_steps=5")
    both: list[Counting] = []

    def load(_: Any) -> list[TrainerCallback]:
        both[:] = [Counting(1), Counting(10)]
        return [*both]

    monkeypatch.setattr(train, "load_callbacks", load)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        stop_at(patch, 3)
        made.train("run")
    made.train("run")
    assert [one.count for one in both] == [5, 50]


@pytest.fixture
def stopped(runs: Make, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """A run with a checkpoint, on a model of its own."""
    shutil.copytree(tiny, tmp_path / "model")
    made = runs(f"model.name_or_path={tmp_path}/model")
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        with pytest.raises(SystemExit):
            made.train("run")
    return made


def test_weights_that_were_exchanged(stopped: Runs, tmp_path: Path) -> None:
    path = tmp_path / "model/model.safetensors"
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)
    with pytest.raises(RunError, match=r"^checkpoint-4 is not of .* here: the model was files \w+ and is files \w+\. "):
        stopped.train("run")


def test_other_settings_behind_the_runs_back(stopped: Runs) -> None:
    stopped.config.lora.r = 4
    stopped.hardware = replace(CPU, world_size=2)
    with pytest.raises(RunError, match=r"lora.r was \d+ and is 4; the number of processes was 1 and is 2\. Bring back"):
        trainer = train.build_trainer(stopped.config, stopped.dir("run"), stopped.hardware)
        trainer.go_on(print)


def test_other_rows(stopped: Runs) -> None:
    stopped.config.data.max_rows = 12
    prepare.run(stopped.config, stopped.dir("run"), CPU)
    with pytest.raises(RunError, match=r"here: the rows' tokens was [\w-]+ and is [\w-]+\. .* another run_dir"):
        stopped.train("run")


def test_another_version_is_said(
    stopped: Runs, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from hydratune.build import identity

    monkeypatch.setattr(identity, "versions", lambda: {"torch": "9.9"})
    stopped.train("run")
    assert "checkpoint-4 was written with torch 2" in capfd.readouterr().out


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_full_disk_loses_nothing(runs: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = runs(
        "trainer.save_total_limit=1", "trainer.save_steps=2", "trainer.max_steps=6", "data.validation_share=0.2"
    )
    made.train("whole")
    size = sum(path.stat().st_size for path in (made.dir("whole").checkpoints / "checkpoint-6").iterdir())
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("no right to mount")
    try:
        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            stop_at(patch, 3)
            made.train("small/run")
        for share in (0.1, 0.3, 0.5, 0.7, 0.9):  # of a checkpoint: its different writers meet the end
            gc.collect()  # a removed file takes its room for as long as an earlier attempt has it mapped
            ballast = small / "ballast"
            with ballast.open("wb") as file:
                file.write(bytes(shutil.disk_usage(small).free - int(size * share)))
            said = f"^No room was left for what stage train writes \\({small}/run"
            with pytest.raises(RunError, match=said), _disk_errors("train", made.dir("small/run")):
                made.train("small/run")
            assert made.checkpoints("small/run") == ["checkpoint-3"]
            ballast.unlink()
        made.train("small/run")
        assert made.adapter("small/run") == made.adapter("whole") and made.log("small/run") == made.log("whole")
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)  # some weights of it may be mapped still


def test_a_library_that_meets_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(OSError) as told, disk_errors(tmp_path):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert told.value.errno == 28
    with pytest.raises(RuntimeError), disk_errors(tmp_path):  # there is room: it is something else
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_step_that_is_no_number(kind: str, runs: Make, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = runs("trainer.logging_steps=100")
    compute = Trainer.compute_loss

    def spoilt(self: Trainer, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = compute(self, model, inputs, *args, **kwargs)
        if self.state.global_step == 4 and len(self.at_work.losses) == 1:  # the second batch of step 5
            if kind == "loss":
                return loss * torch.nan
            loss.register_hook(lambda gradient: gradient * torch.inf)
        return loss

    monkeypatch.setattr(Trainer, "compute_loss", spoilt)
    for _ in range(2):  # the same command fails in the same way
        with pytest.raises(RunError) as failed:
            made.train("run")
        said, folder = str(failed.value), made.dir("run").root / "failure"
        facts = json.loads((folder / "failure.json").read_text())
        assert facts["step"] == 5 and said.startswith("Step 5 gave a loss of ") and str(folder) in said
        assert "norm nan" in said and facts["grad_norm"] == "nan"
        batches = torch.load(folder / "batch_0.pt")
        assert len(batches) == 2 and batches[1]["input_ids"].shape == batches[1]["labels"].shape
        at_fault = facts["batches"][1]["rows"]
        assert facts["rows"] == (at_fault if kind == "loss" else facts["batches"][0]["rows"] + at_fault)
        file, number = at_fault[0]
        assert file == str(rows) and f"{rows}, row " in said and str(number) in said
        if kind == "loss":
            assert "loss of nan" in said and f"{rows}, row {number}, row {at_fault[1][1]}; the batches" in said
        weights = load_file(folder / "adapter/adapter_model.safetensors")
        assert all(bool(value.isfinite().all()) for value in weights.values())
        optimizer = torch.load(folder / "optimizer.pt")
        assert {int(state["step"]) for state in optimizer["state"].values()} == {4}
        assert made.checkpoints("run") == ["checkpoint-3"]
    # the weights are those after step 4
    monkeypatch.setattr(Trainer, "compute_loss", compute)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        stop_at(patch, 4)
        made.train("until_4")
    after = load_file(made.dir("until_4").checkpoints / "checkpoint-4/adapter_model.safetensors")
    assert all(torch.equal(after[name], value) for name, value in weights.items())


def test_a_learning_rate_that_no_weights_survive(runs: Make) -> None:
    made = runs("trainer.learning_rate=1e30", "trainer.logging_steps=100", "trainer.max_grad_norm=0")
    with pytest.raises(RunError, match=r"^Step \d gave a loss of (nan|inf) and a gradient of norm nan, at /.*, row \d"):
        made.train("run")


def test_the_loss_scale_is_kept_and_may_be_too_high(runs: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """float16 needs a GPU; its scaler does not."""
    made = runs()
    build, scales = train.build_trainer, []

    def scaled(*args: Any) -> Trainer:
        trainer = build(*args)
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=3)
        scales.append(trainer.accelerator.scaler)
        return trainer

    monkeypatch.setattr(train, "build_trainer", scaled)
    made.train("whole")
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        stop_at(patch, 4)
        made.train("stopped")
    made.train("stopped")
    assert made.log("stopped") == made.log("whole") and made.adapter("stopped") == made.adapter("whole")
    assert any(entry["grad_norm"] is None for entry in made.log("whole"))
    assert scales[0].state_dict() == scales[2].state_dict() != scales[1].state_dict()


def test_out_of_memory_says_what_to_set(runs: Make) -> None:
    made = runs("trainer.per_device_train_batch_size=8", "trainer.gradient_accumulation_steps=3")
    said = (
        r"^This run does not fit into {} \(.*\): begin in another run_dir with "
        r"trainer.per_device_train_batch_size=4 with trainer.gradient_accumulation_steps=6 \(now 8 and 3\), or "
        r"trainer.gradient_checkpointing=true, or a lower trainer.max_length \(now 512\), or quantization=nf4\.$"
    )
    with pytest.raises(RunError, match=said.format("memory")), memory_errors(made.config):
        torch.empty(2**50)  # what torch itself says on a CPU
    with pytest.raises(RunError, match=said.format("the GPU's memory")), memory_errors(made.config):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    with pytest.raises(RuntimeError, match="shape"), memory_errors(made.config):
        raise RuntimeError("shape")


def test_a_checkpoint_is_an_adapter_that_peft_opens(runs: Make) -> None:
    made = runs("trainer.max_steps=1")
    made.train("run")
    with safe_open(made.dir("run").checkpoints / "checkpoint-1/adapter_model.safetensors", "pt") as file:
        assert len(list(file.keys())) == 2 * 7 * 2
