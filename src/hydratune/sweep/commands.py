"""`hydratune sweep VERB DIR`: from any machine that sees the folder."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hydratune.config.schema import ConfigError
from hydratune.config.values import suggestion
from hydratune.sweep.folder import SweepDir

USAGE = "type hydratune sweep status|logs|report|best|resume|cancel DIR"


@dataclass(frozen=True)
class Words:
    """What follows the verb: the sweep's folder, numbers of jobs, and settings."""

    folder: SweepDir
    numbers: list[int]
    settings: dict[str, Any]


def run(words: Sequence[str]) -> None:
    """Do what `words` say, those after `hydratune sweep`. Raises ConfigError."""
    verbs: dict[str, Callable[[list[str]], None]] = {
        "status": _status, "logs": _logs, "report": _report, "best": _best, "resume": _resume, "cancel": _cancel,
    }  # fmt: skip
    if not words or words[0] not in verbs:
        near = suggestion(words[0], verbs) if words else ""
        raise ConfigError(
            f"sweep takes one of {', '.join(verbs)}, found {words[0] if words else 'nothing'}{near}: {USAGE}."
        )
    verbs[words[0]](list(words[1:]))


def taken(verb: str, words: list[str], keys: Sequence[str] = (), numbers: bool = False) -> Words:
    """The words of a verb taken apart. Raises ConfigError for what the verb doesn't take."""
    bare = [*words[:1], *(word for word in words[1:] if "=" not in word)]
    if not bare:
        raise ConfigError(
            f"sweep {verb} needs the sweep's folder: {USAGE.replace('status|logs|report|best|resume|cancel', verb)}."
        )
    folder = SweepDir(Path(bare[0]))
    for word in bare[1:]:
        if not numbers or not word.isdecimal():
            what = "numbers of jobs after the folder" if numbers else "one folder"
            raise ConfigError(f"sweep {verb} takes {what}, found {word!r}.")
    settings = {}
    for word in words[1:]:
        key, equals, value = word.partition("=")
        if equals and key not in keys:
            takes = f"takes {', '.join(keys)}" if keys else "takes no settings"
            raise ConfigError(f"sweep {verb} {takes}, found {word}{suggestion(key, keys)}: leave it out.")
        if equals:
            try:
                read = yaml.safe_load(value)
                settings[key] = (
                    value if ":" in value and isinstance(read, int) else read
                )  # 20:00 is a time, and no 1200
            except yaml.YAMLError:
                raise ConfigError(f"{word} can't be read: quote its value, or leave it out.") from None
    _ = folder.info  # which refuses a folder that is none
    wanted = [int(word) for word in bare[1:]]
    if wanted:
        known = {entry.number for entry in folder.entries()}
        if missing := sorted(set(wanted) - known):
            raise ConfigError(f"{folder.root} has no job {missing[0]}: its jobs are {min(known)} to {max(known)}.")
    return Words(folder, wanted, settings)


def _status(words: list[str]) -> None:
    from hydratune.sweep.status import show_status

    found = taken("status", words, ["all"])
    show_status(found.folder, everything=found.settings.get("all") is True)


def _logs(words: list[str]) -> None:
    from hydratune.sweep.status import show_logs

    found = taken("logs", words, ["lines"], numbers=True)
    lines = found.settings.get("lines", 20)
    if not isinstance(lines, int) or lines <= 0:
        raise ConfigError(f"lines is a number above 0, found {lines!r}: set lines=20.")
    show_logs(found.folder, found.numbers, lines)


def _report(words: list[str]) -> None:
    from hydratune.sweep.report import report

    report(words)


def _best(words: list[str]) -> None:
    from hydratune.sweep.report import best

    best(words)


def _cancel(words: list[str]) -> None:
    from hydratune.sweep.status import cancel

    found = taken("cancel", words, numbers=True)
    cancel(found.folder, found.numbers)


def _resume(words: list[str]) -> None:
    from hydra.core.utils import JobStatus

    from hydratune.sweep.jobs import reopened
    from hydratune.sweep.launching import keys_of, launch, settings_over
    from hydratune.sweep.search import FAILED
    from hydratune.sweep.status import allow

    saved = SweepDir(Path(words[0])).info["launcher"] if words else {"_target_": "HereLauncher"}
    words = [
        *words[:1],
        *(word.lstrip("+") for word in words[1:]),
    ]  # which an option of sbatch's that is new would have elsewhere
    found = taken("resume", words, [*keys_of(saved, words), "trust"], numbers=True)
    settings = settings_over(saved, {key: value for key, value in found.settings.items() if key != "trust"})
    plan = reopened(found.folder, found.numbers, found.settings.get("trust") is True)
    done = launch(plan, settings, allow=lambda: allow(found.folder, found.numbers))
    if any(job.status == JobStatus.FAILED for job in done):
        sys.exit(FAILED)
