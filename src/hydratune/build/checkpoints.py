"""Checkpoints that are whole or not there, hold all that the next step depends on, and say which run they are of."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from trl import SFTTrainer

from hydratune.build import identity
from hydratune.build.checkpoint_folder import WRITING, last_checkpoint, put_in_place, rest_of, restore_callbacks, rotate
from hydratune.build.failures import Watch, disk_errors
from hydratune.build.progress import Progress

# transformers' own methods that are replaced below: one that is gone would be replaced in vain, silently
for _name in ("_get_output_dir", "_save_checkpoint", "_save_rng_state", "_load_rng_state", "_load_from_checkpoint", "_load_best_model",
              "_load_callback_state", "_run_epoch", "_maybe_log_save_evaluate", "_evaluate", "_get_grad_norm", "_prepare_inputs",
              "_finalize_training"):  # fmt: skip
    getattr(SFTTrainer, _name)


class Stopped(Exception):
    """A signal came in the middle of a validation."""


class CheckpointedTrainer(SFTTrainer):
    """trl's, that goes on from a checkpoint as if it had never been stopped.

    To be set before training: of_run (see build/identity.py), failure (the folder for what a failed step leaves),
    sources (names of the files that rows come from), and what `watch` sets.
    """

    of_run: dict[str, Any]
    failure: Path
    sources: list[str]
    progress: Progress
    stopped = False  # by a signal, before the end
    _writing = False
    _saved = -1  # the step of the last checkpoint
    _ended = False  # whether that checkpoint is the last one
    _validation_due = False  # whether a signal came before the validation of that step was through
    _interruptible = False

    @property
    def _folder(self) -> Path:
        return Path(str(self.args.output_dir))

    def watch(self, progress: Progress) -> None:
        """Let `progress` tell of each step, and its signal end the training."""
        self.progress, self.at_work = progress, Watch()
        progress.counts = lambda: (getattr(self, "step_tokens", 0), getattr(self, "step_supervised", 0))
        progress.all_processes = self._summed
        progress.begin = self._begin
        self.add_callback(progress)

    def go_on(self, say: Callable[[str], None]) -> str | None:
        """The checkpoint to go on from. Raises RunError where it is of something else."""
        with self.accelerator.main_process_first():  # which removes what is damaged
            last = last_checkpoint(self._folder, say, bool(self.args.load_best_model_at_end))
        if last is None:
            return None
        identity.check(last, self.of_run, say)
        say(f"  going on from {last.name}")
        return str(last)

    def _summed(self, values: list[int]) -> list[int]:
        if self.args.world_size == 1:
            return values
        numbers = torch.tensor(values, device=self.accelerator.device)
        return [int(value) for value in cast(torch.Tensor, self.accelerator.reduce(numbers, "sum"))]

    def asked_to_stop(self) -> bool:
        """One process or another: all have to leave at the same step."""
        return self._summed([bool(self.progress.signal)])[0] > 0

    # one step

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.at_work.begin(batches)
        return batches, count

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = cast(torch.Tensor, super().training_step(*args, **kwargs))
        self.at_work.losses.append(loss)
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        self.at_work.refuse(self, norm)
        return norm

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Nothing where training had ended: transformers would make a step more."""
        if self._ended or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        if not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._maybe_log_save_evaluate(*args, **kwargs)
        except Stopped:
            self._validation_due, self.control.should_evaluate = True, False
        if self.asked_to_stop():
            if self._saved != self.state.global_step:
                self._save_checkpoint(self.model, None)
                self.control = self.callback_handler.on_save(self.args, self.state, self.control)
            self.stopped = self.stopped or self._validation_due or not self.control.should_training_stop
            self.control.should_training_stop = True

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Changes no training, whatever the data loader or the model draws."""
        self._interruptible = True
        try:
            with torch.random.fork_rng(range(torch.cuda.device_count())), self.progress.aside():
                return cast(dict[str, float], super()._evaluate(*args, **kwargs))
        finally:
            self._interruptible = False

    def _prepare_inputs(self, inputs: Any) -> Any:
        """A signal ends a validation, which may take hours, between two of its batches."""
        if self._interruptible and self.asked_to_stop():
            raise Stopped
        return super()._prepare_inputs(inputs)

    # saving

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._folder / WRITING) if self._writing else str(self.args.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Written aside, sealed, and renamed: then it is whole. Only then an older one goes."""
        if self._saved == self.state.global_step:
            return
        folder, name = self._folder, f"checkpoint-{self.state.global_step}"
        with self.progress.aside(), disk_errors(folder), self._aside(folder):
            # not trl's, which writes a card of the model each time
            super(SFTTrainer, self)._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                put_in_place(folder, name, {"identity": self.of_run, "versions": identity.versions()})
        self._saved = self.state.global_step
        if self.args.should_save:
            best = Path(self.state.best_model_checkpoint or "").name
            rotate(folder, self.args.save_total_limit or 1, best, self._saved)
        self.accelerator.wait_for_everyone()

    @contextmanager
    def _aside(self, folder: Path) -> Iterator[None]:
        """Inside, checkpoints go to a folder that is gone afterwards, which gives a full disk its room back."""
        if self.args.should_save:
            shutil.rmtree(folder / WRITING, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._writing, self._best = True, self.state.best_model_checkpoint
        try:
            yield
        finally:
            self._writing = False
            if self.args.should_save:
                shutil.rmtree(folder / WRITING, ignore_errors=True)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        torch.save(self._rest(), Path(output_dir) / f"rest_{self.args.process_index}.pt")
        self.state.best_model_checkpoint = self._best  # not the folder where it is just being written
        self._name_best()

    def _rest(self) -> dict[str, Any]:
        """What the next step or its log depends on and transformers leaves out."""
        return {
            "loss": self._tr_loss.cpu(),  # of the steps since the last log
            "losses": self._total_loss_scalar,
            "logged": self._globalstep_last_logged,
            "metrics": {name: list(values) for name, values in self._metrics["train"].items()},
            "tokens": self._total_train_tokens,
            "progress": self.progress.state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],  # of every GPU, not one
            "ended": self.control.should_training_stop,
            "validation_due": self._validation_due,
        }

    def _name_best(self) -> None:
        """The checkpoint of the lowest validation loss, among those that would be there without a signal as well."""
        step = self.state.best_global_step
        due = step and (step % self.state.save_steps == 0 or step >= self.state.max_steps)
        path = self._folder / f"checkpoint-{step}"
        if due and (path.is_dir() or step == self.state.global_step):
            self.state.best_model_checkpoint = str(path)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """With a limit of 1 transformers would delete the newest here, before what was trained is saved."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    # going on

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self._types_kept():
            super()._load_from_checkpoint(*args, **kwargs)

    def _load_best_model(self) -> None:
        with self._types_kept():
            super()._load_best_model()

    @contextmanager
    def _types_kept(self) -> Iterator[None]:
        """peft's loading makes float32 of an adapter that trains in 16 bits, and the next steps would be others."""
        before = {name: parameter.dtype for name, parameter in cast(Any, self.model).named_parameters()}
        yield
        for name, parameter in cast(Any, self.model).named_parameters():  # some are other objects by now
            if parameter.dtype != before[name]:
                parameter.data = parameter.data.to(before[name])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        states = rest_of(checkpoint, self.args.process_index)["cuda"] if checkpoint else []
        if states and len(states) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(states)

    def _load_callback_state(self) -> None:
        """Into the callbacks that are there: transformers makes new ones, without what else they were given."""
        if self.state.best_model_checkpoint:  # of a run directory that has been copied
            self.state.best_model_checkpoint = str(self._folder / Path(self.state.best_model_checkpoint).name)
        self._name_best()  # of one that has been moved, where transformers has not found it
        restore_callbacks(self.callback_handler.callbacks, cast(dict[str, Any], self.state.stateful_callbacks))

    def _begin(self) -> None:
        """After transformers has set its counters to zero."""
        if self.state.global_step == 0:
            return
        rest = rest_of(self._folder / f"checkpoint-{self.state.global_step}", self.args.process_index)
        self._saved, self._ended, self._initial_global_step = self.state.global_step, rest["ended"], 0
        self._tr_loss = rest["loss"].to(self._tr_loss.device)
        self._total_loss_scalar, self._globalstep_last_logged = rest["losses"], rest["logged"]
        self._total_train_tokens = rest["tokens"]
        for name, values in rest["metrics"].items():
            self._metrics["train"][name] = list(values)
        self.progress.restore(rest["progress"])
        if rest["validation_due"]:
            self._validation_due = True
            try:
                self._determine_best_metric(self._evaluate(None, None), None)
            except Stopped:
                self.stopped = self.control.should_training_stop = True
            else:
                self._validation_due = False
                self._name_best()
