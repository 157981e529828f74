"""Which code runs: the commits and changes of hydratune's checkout and of the user's, and the libraries' versions."""

import hashlib
import subprocess
from pathlib import Path
from typing import Any

from hydratune.run.layout import write_atomically
from hydratune.run.receipt import made_with

HERE = Path(__file__).resolve().parents[1]


def snapshot(keep_in: Path | None = None) -> dict[str, Any]:
    """As it is now. What differs from the commits is kept in the folder, in files that the snapshot names."""
    places = {"hydratune": HERE, "working directory": Path.cwd()}
    return {"versions": made_with(), **{name: _checkout(place, keep_in) for name, place in places.items()}}


def differences(before: dict[str, Any], now: dict[str, Any]) -> tuple[list[str], list[str]]:
    """In words, what has changed, and what can't be told."""
    changed: list[str] = []
    unknown: list[str] = []
    for name in ("hydratune", "working directory"):
        old, new = before.get(name), now[name]
        if old != new:
            words = f"{name} was {_said(old)} and is {_said(new)}"
            (unknown if isinstance(old, str) or isinstance(new, str) else changed).append(words)
    old, new = before.get("versions", {}), now["versions"]
    changed += [f"{name} was {old.get(name)} and is {new[name]}" for name in new if old.get(name) != new[name]]
    return changed, unknown


def _said(checkout: Any) -> str:
    if not isinstance(checkout, dict):
        return str(checkout or "no checkout")
    changes = f" with changes {checkout['diff'][:8]}" if checkout["diff"] else ""
    return f"commit {checkout['commit'][:8]}{changes}"


def _checkout(place: Path, keep_in: Path | None) -> dict[str, str] | str | None:
    """Commit and SHA-256 of the changes, Python files that git doesn't know among them; None without a repository.

    Words where git can't say.
    """
    try:
        return _commit_and_changes(place, keep_in)
    except FileNotFoundError:
        return "unknown, since there is no git"
    except (OSError, subprocess.TimeoutExpired):
        return "unknown, since git doesn't answer"


def _commit_and_changes(place: Path, keep_in: Path | None) -> dict[str, str] | None:
    commit = _git(place, "rev-parse", "HEAD")
    if commit is None:
        return None
    diff = _git(place, "diff", "HEAD") or ""
    for name in filter(
        None, (_git(place, "ls-files", "-z", "--others", "--exclude-standard", "*.py") or "").split("\0")
    ):
        diff += _git(place, "diff", "--no-index", "/dev/null", name) or ""
    sha = hashlib.sha256(diff.encode()).hexdigest() if diff else ""
    if sha and keep_in:
        write_atomically(keep_in / f"{sha}.diff", diff)
    return {"commit": commit.strip(), "diff": sha}


def _git(place: Path, *words: str) -> str | None:
    """What git says; None where it fails. Of two files that differ it says so with 1."""
    done = subprocess.run(["git", *words], cwd=place, capture_output=True, text=True, errors="replace", timeout=60)
    return done.stdout if done.returncode == 0 or "--no-index" in words else None
