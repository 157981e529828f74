"""`hydratune sweep report DIR` and `sweep best DIR`: what the finished jobs tell, from the files that they left."""

import math
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from hydratune.config.schema import ConfigError
from hydratune.run.console import say
from hydratune.run.job import Record
from hydratune.run.layout import write_atomically
from hydratune.sweep import leaderboard_text as text
from hydratune.sweep.folder import Entry, SweepDir
from hydratune.sweep.leaderboard_text import Unfinished
from hydratune.sweep.ranking import least_is_best, units_of_run

if TYPE_CHECKING:  # numpy, which a mistake should not wait for
    from hydratune.build.leaderboard import Board, Row
    from hydratune.build.units import Units

DIRECTIONS = ("minimize", "maximize")
COMPOSED = 100  # jobs whose words are composed again, of which each takes some milliseconds


@dataclass
class Found:
    """A sweep as it is now."""

    folder: SweepDir
    objective: str
    settings: "list[Row]"
    unfinished: list[Unfinished] = field(default_factory=list)

    def units(self, number: int) -> "Units | str":
        """A job's documents or rows, or why it has none."""
        return units_of_run(self.folder.run_of(number), self.objective)


def report(words: list[str]) -> None:
    """Print the leaderboard, and write DIR/report: leaderboard.csv, leaderboard.md, a figure for each swept key.

    Raises ConfigError where there is no such sweep, nothing has finished, or nothing can be written.
    """
    root, direction = _typed(words, "report")
    found, lower, board = _read(root, direction)
    folder = root / "report"
    seen = text.Shown(found.objective, lower, board, found.unfinished, _changed(found, board))
    say(text.as_screen(seen))
    try:
        write_atomically(folder / "leaderboard.csv", text.as_csv(seen))
        write_atomically(folder / "leaderboard.md", text.as_markdown(seen))
        missing = _figures(folder, seen)
    except OSError as error:
        raise ConfigError(f"{folder} can't be written ({error.strerror}): make room or a way there.") from None
    say(f"written to {folder}")
    if missing:
        say(missing)


def best(words: list[str]) -> None:
    """Print the command that trains the best setting again, and how sure it is that it is the best."""
    root, direction = _typed(words, "best")
    found, _, board = _read(root, direction)
    from hydratune.sweep.winner import command

    number = board.rows[0].jobs[0].number
    say(shlex.join(command(found.folder, next(one for one in found.folder.entries() if one.number == number))))
    say(text.of_best(found.objective, board))
    if found.unfinished:
        say(text.without_value(found.unfinished))


def _typed(words: Sequence[str], verb: str) -> tuple[Path, str | None]:
    """The folder, and the direction where it was typed."""
    folders = [*words[:1], *(word for word in words[1:] if "=" not in word)]
    given = dict(word.split("=", 1) for word in words[1:] if "=" in word)
    direction = given.pop("direction", None)
    if given:
        key = next(iter(given))
        raise ConfigError(f"sweep {verb} takes direction=minimize or direction=maximize, and no {key}=….")
    if direction not in (None, *DIRECTIONS):
        raise ConfigError(f"direction={direction} must be minimize or maximize.")
    if len(folders) != 1:
        raise ConfigError(f"sweep {verb} takes one folder of a sweep: hydratune sweep {verb} DIR.")
    return Path(folders[0]), direction


def _read(root: Path, direction: str | None) -> "tuple[Found, bool, Board]":
    folder = SweepDir(root)
    asked = direction or folder.info.get("direction") or "auto"
    found = _jobs(folder)
    from hydratune.build.leaderboard import leaderboard

    lower = _lower(found, asked)
    return found, lower, leaderboard(found.settings, lower, found.units)


def _jobs(folder: SweepDir) -> Found:
    """The jobs as settings, those with a value; the others by themselves. Raises ConfigError where none has a value."""
    from hydratune.build.leaderboard import Finished, Row

    settings: dict[tuple[str, ...], Row] = {}
    unfinished: list[Unfinished] = []
    swept = folder.info.get("swept", [])
    objectives: Counter[str] = Counter()
    done: list[tuple[Entry, Record]] = []
    for entry, record, state in folder.states():
        if state == "done" and record and record.objective:
            objectives[record.objective] += 1
            done.append((entry, record))
        else:
            cause = (record.cause if record else None) or ("it has no objective" if state == "done" else "")
            unfinished.append(Unfinished(entry.number, _overrides(entry, swept), state, cause))
    if not objectives:
        counts = ", ".join(f"{n} {state}" for state, n in Counter(one.state for one in unfinished).items())
        raise ConfigError(
            f"Nothing has finished yet in {folder.root} ({counts or 'it has no jobs'}): hydratune sweep status "
            f"{folder.root} shows how far it is."
        )
    ((objective, _),) = objectives.most_common(1)
    for entry, record in done:
        if record.objective != objective or record.value is None or not math.isfinite(record.value):
            cause = f"its objective is {record.objective}, {'none' if record.value is None else record.value}"
            unfinished.append(Unfinished(entry.number, _overrides(entry, swept), "done", cause))
            continue
        setting, seed = _setting(_overrides(entry, swept))
        row = settings.setdefault(setting, Row(setting))
        row.jobs.append(Finished(entry.number, seed, record.value, record.seconds, record.stderr))
    if not settings:
        raise ConfigError(f"No job in {folder.root} has a finite {objective}: all {len(done)} have diverged.")
    for one in unfinished:
        setting, _ = _setting(one.overrides)
        if setting in settings:
            settings[setting].missing += 1
    return Found(folder, objective, list(settings.values()), unfinished)


def _overrides(entry: Entry, swept: Sequence[str]) -> Sequence[str]:
    """Of all that is swept: the sweep may have been extended by a key of which it had one value when the job was noted."""
    return [word for word in entry.words if text.key_of(word) in swept] or entry.overrides


def _setting(overrides: Sequence[str]) -> tuple[tuple[str, ...], str | None]:
    """The overrides without the seed, and the seed."""
    seeds = [word.partition("=")[2] for word in overrides if text.key_of(word) == "seed"]
    return tuple(word for word in overrides if text.key_of(word) != "seed"), seeds[-1] if seeds else None


def _lower(found: Found, direction: str) -> bool:
    """Whether lower is better, as asked, else by its task or by the objective's name. Raises ConfigError where none tells."""
    runs = (found.folder.run_of(row.jobs[0].number) for row in found.settings)
    lower = least_is_best(found.objective, direction, runs)
    if lower is not None:
        return lower
    raise ConfigError(
        f"Whether a higher {found.objective} is better is not known: type hydratune sweep report {found.folder.root} "
        "direction=maximize, or direction=minimize."
    )


def _changed(found: Found, board: "Board") -> list[int]:
    """The jobs, of the best settings, whose words give other settings by now."""
    from hydratune.sweep.winner import changed

    ranked = {job.number for job in islice((job for row in board.rows for job in row.jobs), COMPOSED)}
    return changed(found.folder, [entry for entry in found.folder.entries() if entry.number in ranked])


def _figures(folder: Path, seen: text.Shown) -> str:
    """A figure for each key with several values among the finished settings. Returns what is missing for it."""
    for key, values in _swept(seen.board.rows):
        try:
            from hydratune.build.figure import figure

            drawn = figure(key, values, seen.board.rows, seen.objective, seen.lower)
        except ImportError:
            return "no figures, which need matplotlib: pip install 'hydratune[report]', then type the same again"
        write_atomically(folder / (re.sub(r"[^\w.+-]", "_", key) + ".png"), drawn)
    return ""


def _swept(rows: "list[Row]") -> Iterator[tuple[str, list[str]]]:
    """Each key, and its value in each row."""
    given = [{text.key_of(word): word.partition("=")[2] for word in row.overrides} for row in rows]
    for key in dict.fromkeys(key for one in given for key in one):
        values = [one.get(key, "(not set)") for one in given]
        if len(set(values)) > 1:
            yield key, values
