"""What can go wrong in the middle of training: no memory, no room on the disk, a loss that is no number."""

import errno
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from hydratune.config.schema import Config, RunError

NO_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA out of memory",
    "CUDA error: out of memory",  # of what isn't the allocator's, such as a kernel's own code
    "STATUS_ALLOC_FAILED",  # CUBLAS_, CUDNN_ and CUSOLVER_: of a workspace
    "not enough memory",
    "std::bad_alloc",
)
ROWS_SAID = 8  # in a sentence; all of them are in failure.json


def out_of_memory(error: BaseException) -> bool:
    """Whether there was too little memory, of the GPU or of the machine."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in NO_MEMORY)


@contextmanager
def memory_errors(config: Config) -> Iterator[None]:
    """Out of memory is no crash: the sentence names what would need less."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is one of the latter
        said = " ".join(str(error).split())
        if not out_of_memory(error):
            raise
        where = "the GPU's memory" if isinstance(error, torch.OutOfMemoryError) or "CUDA" in said else "memory"
        raise RunError(_no_memory(config, where, said)) from None


def _no_memory(config: Config, where: str, said: str) -> str:
    t, ways = config.trainer, []
    batch, times = t.per_device_train_batch_size, t.gradient_accumulation_steps
    if batch > 1:
        ways.append(
            f"trainer.per_device_train_batch_size={batch // 2} with trainer.gradient_accumulation_steps="
            f"{times * 2} (now {batch} and {times})"
        )
    if not t.gradient_checkpointing:
        ways.append("trainer.gradient_checkpointing=true")
    ways.append(f"a lower trainer.max_length (now {t.max_length})")
    if config.quantization.kind == "none" and config.lora.kind != "none":
        ways.append("quantization=nf4")
    if t.eval_steps and t.per_device_eval_batch_size > 1:
        ways.append(f"a lower trainer.per_device_eval_batch_size (now {t.per_device_eval_batch_size}) for validation")
    return (
        f"This run does not fit into {where} ({said[:200].rstrip('.')}): begin in another run_dir with "
        f"{', or '.join(ways)}."
    )


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """A full disk is an OSError whoever met it: torch.save and safetensors each have an error of their own for it."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # safetensors' own is made in Rust, from Exception
        said = str(error)
        if "No space left" in said:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from None
        if "inline_container" in said or "PytorchStreamWriter" in said:  # torch does not say why it could not write
            _refuse_full(folder)
        raise


def _refuse_full(folder: Path) -> None:
    """Raises OSError where a mebibyte more can't be written, whether for the disk or for a quota."""
    probe = folder / f".probe.{os.getpid()}"
    try:
        with probe.open("wb") as file:
            file.write(os.urandom(2**20))
            file.flush()
            os.fsync(file.fileno())
    finally:
        probe.unlink(missing_ok=True)


class Watch:
    """The batches of the step at work and the loss of each, so that a step that fails can be looked into."""

    def __init__(self) -> None:
        self.batches: Sequence[dict[str, Any]] = []
        self.losses: list[Tensor] = []  # they stay on the device: reading each would wait for it

    def begin(self, batches: Sequence[dict[str, Any]]) -> None:
        self.batches, self.losses = batches, []

    def refuse(self, trainer: Any, norm: Any) -> None:
        """Before the optimizer's step. Raises RunError where the loss or the gradient's norm is no finite number."""
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of gradients in shards
        norm = torch.as_tensor(norm, device=trainer.args.device).float()
        losses = torch.stack([loss.float() for loss in self.losses]) if self.losses else norm.new_zeros(1)
        total = losses.sum()
        if trainer.args.world_size > 1:  # all fail, or none
            total = trainer.accelerator.reduce(total, "sum")
        if math.isfinite(float(total + norm)):  # the only wait for the device in a step
            return
        scaler = getattr(trainer.accelerator, "scaler", None)
        # float16's loss scale is too high now and then: such a step is left out and the scale is halved
        if scaler is not None and math.isfinite(float(total)) and scaler.get_scale() >= 1:
            return
        raise RunError(self._kept(trainer, losses.tolist(), float(total), float(norm)))

    def _kept(self, trainer: Any, losses: list[float], total: float, norm: float) -> str:
        """Writes failure/. Returns the sentence."""
        step, folder = trainer.state.global_step + 1, trainer.failure
        batches = [
            {"process": trainer.args.process_index, "loss": _plain(loss), "rows": _rows(batch, trainer.sources)}
            for loss, batch in zip(losses, self.batches, strict=False)
        ]
        if trainer.args.world_size > 1:
            batches = gather_object(batches)
        at_fault = [batch for batch in batches if isinstance(batch["loss"], str)] or batches
        rows = [row for batch in at_fault for row in batch["rows"]]
        facts = {
            "step": step,
            "grad_norm": _plain(norm),
            "learning_rate": trainer._get_learning_rate(),
            "rows": rows,
            "batches": batches,
            "files": "batch_*.pt: the step's batches, a list; adapter/: the weights before the step; optimizer.pt",
        }
        kept = f"the batches and the weights before the step are in {folder}"
        try:
            self._write(trainer, folder, facts)
        except Exception as error:  # a full disk must not hide what happened
            kept = f"its batches and weights could not be kept ({' '.join(str(error).split())[:100]})"
        return (
            f"Step {step} gave a loss of {total:.4g} and a gradient of norm {norm:.4g}, at {_named(rows)}; "
            f"{kept}. Look at these rows, or lower trainer.learning_rate, in another run_dir."
        )

    def _write(self, trainer: Any, folder: Path, facts: dict[str, Any]) -> None:
        main = trainer.args.should_save
        if main:
            shutil.rmtree(folder, ignore_errors=True)
        trainer.accelerator.wait_for_everyone()
        folder.mkdir(parents=True, exist_ok=True)
        batches = [{k: v.cpu() if isinstance(v, Tensor) else v for k, v in batch.items()} for batch in self.batches]
        torch.save(batches, folder / f"batch_{trainer.args.process_index}.pt")
        trainer.save_model(str(folder / "adapter"))
        if main and not trainer.is_fsdp_enabled:
            torch.save(trainer.optimizer.state_dict(), folder / "optimizer.pt")
        if main:
            (folder / "failure.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False), encoding="utf-8")


def _rows(batch: dict[str, Any], files: Sequence[str]) -> list[list[Any]]:
    """File and number of each row of a batch."""
    return [[files[file] if file < len(files) else file, int(row)] for file, row in batch.get("rows", [])]


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)  # JSON knows no nan


def _named(rows: list[list[Any]]) -> str:
    """`rows.jsonl, row 3, row 7`: each file once."""
    if not rows:
        return "rows that are not known"
    said: list[str] = []
    before = None
    for file, row in rows[:ROWS_SAID]:
        said.append(f"row {row}" if file == before else f"{file}, row {row}")
        before = file
    more = len(rows) - ROWS_SAID
    return ", ".join(said) + (f" and {more} more" if more > 0 else "")
