"""Processes for jobs: forks of this one, which has imported the libraries and run nothing of them, or fresh ones."""

import atexit
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, Protocol

from hydratune.run.signals import ASKED_TO_STOP

# while libraries are imported: a pool of threads would not live on in a fork, and CUDA can't be used in the fork of a
# process that has only asked it for the number of GPUs
WHILE_IMPORTING = {
    "OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false", "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}  # fmt: skip


class Process(Protocol):
    """A job's process."""

    pid: int

    def poll(self) -> int | None:
        """Its exit status, below 0 that of a signal; None while it runs."""


class Fork:
    """A child that was forked."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._status: int | None = None

    def poll(self) -> int | None:
        """Its exit status, below 0 that of a signal; None while it runs."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status


def import_in_one_thread(import_libraries: Callable[[], None]) -> None:
    """Import so that this process may be forked afterwards; its children see the environment as it was."""
    before = {name: os.environ.get(name) for name in WHILE_IMPORTING}
    os.environ.update({name: value for name, value in WHILE_IMPORTING.items() if before[name] is None})
    try:
        import_libraries()
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)


def may_fork() -> bool:
    """Whether a fork of this process is as good as a fresh one: it has one thread, and no GPU's driver is open."""
    try:
        threads = len(os.listdir("/proc/self/task"))
        opened = [os.readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd") if _is_open(number)]
    except OSError:
        return False  # no Linux: other systems' own libraries don't bear a fork
    return threads == 1 and not any(name.startswith("/dev/nvidia") for name in opened)


def _is_open(number: str) -> bool:
    return Path(f"/proc/self/fd/{number}").is_symlink()


def start(
    arguments: list[str], environment: dict[str, str], screen: Path, fork: bool, kept: list[int], closed: list[int]
) -> Process:
    """`hydratune` with `arguments`, in a session of its own so that the terminal's Ctrl-C comes to it by us alone.

    What it prints is added to `screen`. Of this process's open files it has `kept`, and not `closed`.
    """
    with screen.open("ab") as file:
        if fork:
            return _forked(lambda: _command(arguments, environment, file.fileno(), closed))
        # -P: a file of the user's in the working directory hides no library
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "hydratune", *arguments], env={**os.environ, **environment},
            stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True, pass_fds=kept,
        )  # fmt: skip


def kill(process: Process) -> None:
    """With what it has started: it leads a session, and so a group, of its own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # a fork that has yet to begin one
        os.kill(process.pid, signal.SIGKILL)


def _forked(run: Callable[[], object]) -> Fork:
    """A child that does `run` and ends with its exit status, as a process of its own would."""
    sys.stdout.flush()
    sys.stderr.flush()
    # a signal between the fork and the child's own handlers would be handled there as if it were this process
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKED_TO_STOP)
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return Fork(pid)
    for number in ASKED_TO_STOP:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    _end_with(run)


def _end_with(run: Callable[[], object]) -> NoReturn:
    status: Any = 1
    try:
        run()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        status = 130
    except BaseException:
        traceback.print_exc()
    try:
        atexit._run_exitfuncs()  # temporary folders, and what else is tidied at a process's end
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _command(arguments: list[str], environment: dict[str, str], screen: int, closed: list[int]) -> None:
    """In the child."""
    from hydra.core.global_hydra import GlobalHydra

    from hydratune.main import main

    os.setsid()
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(screen, 1)
    os.dup2(screen, 2)
    for number in closed:
        os.close(number)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.update(environment)
    sys.argv[1:] = arguments
    GlobalHydra.instance().clear()
    main()


def in_a_fork(work: Callable[[], Any]) -> Any:
    """What `work` returns, as JSON has it, with nothing of the libraries run in this process; the environment that it set.

    Ends this process with the child's exit status where that is not 0.
    """
    reading, writing = os.pipe()

    def tell() -> None:
        before = dict(os.environ)
        answer = work()
        changed = {key: value for key, value in os.environ.items() if before.get(key) != value}
        with os.fdopen(writing, "w") as file:
            json.dump([answer, changed], file)

    child = _forked(tell)
    os.close(writing)
    with os.fdopen(reading) as file:
        said = file.read()
    _, status = os.waitpid(child.pid, 0)
    if status:
        code = os.waitstatus_to_exitcode(status)
        sys.exit(code if code >= 0 else 128 - code)
    answer, changed = json.loads(said)
    os.environ.update(changed)
    return answer
