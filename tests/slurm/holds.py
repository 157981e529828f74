"""A callback by which a job is at work for as long as a test needs it to be, however slow or fast the machine is."""

import signal
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

TYPED = "trainer.callbacks=[holds:Holds]"
STEPS = 10


class Holds(TrainerCallback):
    """After STEPS steps of each start waits while the folder above the run's has a file `hold`; a signal ends that."""

    def __init__(self) -> None:
        self.begun = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.begun += 1
        hold = Path(args.output_dir).parents[1] / "hold"
        while self.begun > STEPS and hold.exists() and not _signal():
            time.sleep(0.05)


def _signal() -> int:
    """The one that training has noted, to stop by after the step."""
    noted: int = signal.getsignal(signal.SIGTERM).__self__.signal  # type: ignore[union-attr]
    return noted


def hold(root: Path) -> Path:
    """The file that holds the runs right below `root`."""
    root.mkdir(exist_ok=True)
    file = root / "hold"
    file.touch()
    return file
