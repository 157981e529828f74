"""Which code runs: the commits and changes of hydratune's checkout and of the user's, and the libraries' versions."""

import hashlib
import subprocess
from pathlib import Path
from typing import Any

from hydratune.run.receipt import made_with

HERE = Path(__file__).resolve().parent


def snapshot() -> dict[str, Any]:
    """As it is now."""
    places = {"hydratune": HERE, "working directory": Path.cwd()}
    return {"versions": made_with(), **{name: _checkout(place) for name, place in places.items()}}


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """In words, what has changed."""
    found = []
    for name in ("hydratune", "working directory"):
        old, new = before.get(name), now[name]
        if old != new:
            found.append(f"{name} was {_said(old)} and is {_said(new)}")
    old, new = before.get("versions", {}), now["versions"]
    found += [f"{name} was {old.get(name)} and is {new[name]}" for name in new if old.get(name) != new[name]]
    return found


def _said(checkout: Any) -> str:
    if not checkout:
        return "no checkout"
    return f"commit {checkout['commit'][:8]}" + (f" with changes {checkout['diff'][:8]}" if checkout["diff"] else "")


def _checkout(place: Path) -> dict[str, str] | None:
    """None where there is no repository."""
    commit = _git(place, "rev-parse", "HEAD")
    if commit is None:
        return None
    diff = _git(place, "diff", "HEAD") or ""
    return {"commit": commit.strip(), "diff": hashlib.sha256(diff.encode()).hexdigest() if diff else ""}


def _git(place: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=place, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
