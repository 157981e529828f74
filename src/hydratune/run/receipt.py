"""A stage's receipt: written last, so that it is there only where the stage is finished."""

import hashlib
import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hydratune.run.layout import RunDir, write_json

LIBRARIES = ("hydratune", "torch", "transformers", "accelerate", "peft", "trl", "bitsandbytes", "datasets", "lm-eval")


# what each stage makes, and the stages after it read: files or folders of the run directory
MAKES = {
    "prepare": ("prepared.json",),
    "train": ("adapter/", "merged/"),
    "merge": ("merged/",),
    "evaluate": ("benchmark/",),
    "generate": ("samples.jsonl",),
}


def read(run: RunDir, stage: str) -> dict[str, Any] | None:
    """The receipt, or None where the stage is not finished."""
    try:
        found = json.loads(run.receipt(stage).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def is_whole(run: RunDir, stage: str) -> bool:
    """Whether `stage` is finished and what it made is still there."""
    done = read(run, stage)
    if done is None:
        return False
    made = [path for path in done.get("outputs", {}) if path.startswith(MAKES[stage])]
    return all((run.root / path).is_file() for path in made)


def state(path: Path) -> tuple[str, int, int]:
    """A file outside the run, as a stage has read it: its name, size and time of change (ns)."""
    found = path.absolute().stat()
    return str(path.absolute()), found.st_size, found.st_mtime_ns


def is_unchanged(path: str, size: int, changed: int) -> bool:
    """Whether what `state` told still holds, or can't be told, since the file is not here."""
    return not Path(path).exists() or state(Path(path)) == (path, size, changed)


def digest(run: RunDir, stage: str) -> str | None:
    """16 hexadecimal digits over the receipt; None where there is none."""
    path = run.receipt(stage)
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else None


def remove(run: RunDir, stage: str) -> None:
    """Before the stage is done again."""
    run.receipt(stage).unlink(missing_ok=True)


def write(run: RunDir, stage: str, facts: dict[str, Any]) -> None:
    """Record a finished stage: `facts` (status, seconds, metrics, hardware, …), and with what it was made."""
    machine = {"node": platform.node(), "machine": platform.machine(), "python": platform.python_version()}
    how = {"versions": made_with(), "git_commit": _git_commit(), "machine": machine}
    write_json(run.receipt(stage), {"stage": stage, **facts, **how})


def made_with() -> dict[str, str]:
    """Library -> its version."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _git_commit() -> str | None:
    """The commit of hydratune's own checkout, `-dirty` where files differ from it; None for an installed wheel."""
    source = Path(__file__).resolve()

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=source.parent, capture_output=True, text=True, timeout=5)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", source.name) is None:
        return None  # of a wheel in somebody else's checkout, the commit would be that one's
    commit = git("rev-parse", "HEAD")
    return f"{commit}-dirty" if commit and git("status", "--porcelain", "--untracked-files=no") else commit
