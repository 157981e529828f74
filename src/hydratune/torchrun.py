"""`python -m hydratune.torchrun …`: torchrun that hands signals on, and ends with the status of the processes.

torchrun itself answers whatever ended them with 1, and a scheduler needs to know of the 75: saved, to be started again.
"""

import os
import signal
import sys
from contextlib import suppress
from types import FrameType

import psutil

from hydratune.run.signals import ASKED_TO_STOP, SAVED

HANDED_ON = (*ASKED_TO_STOP, signal.SIGHUP)


def main() -> None:
    """Takes what torchrun takes."""
    for number in HANDED_ON:
        signal.signal(number, hand_on)
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        # torchrun would kill after a signal: of those above, it gets none. 600 seconds: to save, where one has failed
        torchrun(["--signals-to-handle=SIGQUIT", "--shutdown-timeout=600", *sys.argv[1:]])
    except ChildFailedError as failed:
        for number in HANDED_ON:  # srun ends all when one has ended, and the status would be another
            signal.signal(number, signal.SIG_IGN)
        status = failed.get_first_failure()[1].exitcode
        sys.exit(status if status > 0 else 128 - status)


def hand_on(number: int, _frame: FrameType | None) -> None:
    """To the processes, which save and end; before they have begun there is nothing to save."""
    processes = psutil.Process().children()
    if not processes and signal.getsignal(signal.SIGQUIT) == signal.SIG_DFL:  # which torchrun takes as it starts them
        os._exit(SAVED)
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


if __name__ == "__main__":
    main()
