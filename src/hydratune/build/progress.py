"""What training says of each step, and how a signal ends it."""

import math
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from transformers import TrainerCallback


class Progress(TrainerCallback):
    """Each step once to `log` and to the screen; a signal is kept until the step is done.

    `cut(step)` forgets what was logged after `step`; `show` takes steps done, all steps and a text, `say` a line.
    """

    def __init__(
        self,
        log: Callable[[dict[str, Any]], None],
        cut: Callable[[int], None],
        show: Callable[[int, int, str], None],
        say: Callable[[str], None],
    ) -> None:
        self.log, self.cut, self.show, self.say = log, cut, show, say
        self.counts: Callable[[], tuple[int, int]] = lambda: (0, 0)  # tokens and supervised tokens of the last step
        self.all_processes: Callable[[list[int]], list[int]] = lambda values: values  # their sums
        self.begin: Callable[[], None] = lambda: None  # once the trainer is ready
        self.signal = 0  # the last one
        self.interrupted = False  # by Ctrl-C
        self.first, self.began = 0, time.monotonic()
        self.before = 0.0  # seconds that earlier attempts took up to the step where this one began
        self.tokens = self.supervised = 0  # since the last log
        self.num_tokens = 0  # up to the last log, of all processes
        self.logged = 0.0  # `seconds` at the last log, plus those spent aside since
        self.idle = 0.0  # seconds of this attempt that were not spent on steps

    @property
    def seconds(self) -> float:
        """Of training up to now, with the attempts that were stopped."""
        return self.before + time.monotonic() - self.began

    def state(self) -> dict[str, float]:
        """What the next attempt needs to go on as if there had been no stop."""
        window = self.seconds - self.logged
        counts = {"tokens": self.tokens, "supervised": self.supervised, "num_tokens": self.num_tokens}
        return {"seconds": self.seconds, "window": window, **counts}

    def restore(self, state: dict[str, float]) -> None:
        self.before, self.began = state["seconds"], time.monotonic()
        self.logged = state["seconds"] - state["window"]
        self.tokens, self.supervised = int(state["tokens"]), int(state["supervised"])
        self.num_tokens = int(state["num_tokens"])

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Time of validation and checkpoints, in which no tokens are trained on."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.logged += time.monotonic() - start
            self.idle += time.monotonic() - start

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.first, self.began, self.logged = state.global_step, time.monotonic(), 0.0
        if state.is_world_process_zero:
            self.cut(state.global_step)
        self.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        tokens, supervised = self.counts()
        self.tokens, self.supervised = self.tokens + tokens, self.supervised + supervised

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        done, total = state.global_step, state.max_steps
        if logs and "eval_loss" in logs and state.is_world_process_zero:
            self.log({"step": done, "eval_loss": logs["eval_loss"]})
            self.say(f"  step {done}/{total}  validation loss {logs['eval_loss']:.4f}")
        if not logs or "loss" not in logs:
            return
        tokens, supervised = self.all_processes([self.tokens, self.supervised])
        self.num_tokens += tokens
        if state.is_world_process_zero:
            window = max(self.seconds - self.logged, 1e-9)
            pace = {"tokens_per_second": tokens / window, "supervised_tokens_per_second": supervised / window}
            pace = {name: round(value, 1) for name, value in pace.items()}
            pace |= {"num_tokens": self.num_tokens}
            told = {
                name: value if math.isfinite(value) else None for name, value in logs.items()
            }  # JSON has no infinity
            self.log({"step": done, **told, **pace, "memory_gib": _memory(), "seconds": round(self.seconds, 2)})
            step = (time.monotonic() - self.began - self.idle) / max(1, done - self.first)  # seconds
            words = [f"loss {logs['loss']:.4f}", f"lr {logs['learning_rate']:.2e}"]
            words += [f"gradient {logs['grad_norm']:.2g}"] if "grad_norm" in logs else []
            words += [f"{tokens / window:.0f} tokens/s, {supervised / window:.0f} supervised", f"{_memory():.2f} GiB"]
            self.show(done, total, "  ".join([*words, f"{timedelta(seconds=round(step * (total - done)))} left"]))
        self.tokens = self.supervised = 0
        self.logged = self.seconds

    def handle(self, number: int, _frame: Any) -> None:
        """For the four signals that ask to stop. The second Ctrl-C leaves at once, wherever training is."""
        if self.interrupted and number == signal.SIGINT:
            # an exception could be caught by a library, or land in the writing of a file whose cleaning up takes long
            os._exit(130)
        self.signal = number
        if number == signal.SIGINT:
            self.interrupted = True
            self.say("  stops after this step, with its state saved; Ctrl-C again leaves at once")


def _memory() -> float:
    """The most that this process held, GiB: on the GPU where there is one, else in RAM."""
    if torch.cuda.is_available():
        return round(sum(map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count()))) / 2**30, 3)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)  # Linux counts in KiB
