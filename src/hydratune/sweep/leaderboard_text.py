"""A sweep's leaderboard for the screen, as Markdown and as CSV."""

import csv
import io
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hydratune.run.table import columns

if TYPE_CHECKING:  # numpy
    from hydratune.build.leaderboard import Board, Row

TOP = 20  # rows on the screen
WIDEST = 60  # characters of a setting on the screen
BEST, EQUAL, WORSE = "best", "can't be told from the best", "worse than the best"  # of build/leaderboard.py


@dataclass(frozen=True)
class Unfinished:
    """A job without a value."""

    number: int
    overrides: Sequence[str]
    state: str
    cause: str


@dataclass(frozen=True)
class Shown:
    """What a report is made of."""

    objective: str
    lower: bool  # is better
    board: "Board"
    unfinished: list[Unfinished]
    changed: list[int] = field(default_factory=list)  # jobs whose words mean other settings by now


def as_screen(seen: Shown) -> str:
    """The first rows, and below them what they mean and which jobs are missing."""
    rows, missing = seen.board.rows, seen.unfinished
    lines = [_titles(seen), *(_cells(rank, row, WIDEST) for rank, row in enumerate(rows[:TOP], 1))]
    said = [columns(lines)]
    if rows[TOP:]:
        said.append(f"… and {len(rows) - TOP:,} more settings, in the files")
    said += notes(seen)
    if missing:
        said.append(_counted(missing))
        said += [f"  {_sentence(one)}" for one in missing[:TOP]]
        if missing[TOP:]:
            said.append(f"  … and {len(missing) - TOP:,} more, in the files")
    return "\n".join(said)


def as_markdown(seen: Shown) -> str:
    """All rows."""
    lines = [f"# Leaderboard: {seen.objective}", "", _line(_titles(seen)), _line(["---"] * len(_titles(seen)))]
    lines += [_line(_cells(rank, row)) for rank, row in enumerate(seen.board.rows, 1)]
    lines += ["", *(f"- {note[0].upper()}{note[1:]}." for note in notes(seen))]
    if seen.unfinished:
        lines += ["", f"## {_counted(seen.unfinished).capitalize()}", "", _line(["job", "setting", "state", "cause"])]
        lines.append(_line(["---"] * 4))
        lines += [_line([str(one.number), _named(one.overrides), one.state, one.cause]) for one in seen.unfinished]
    return "\n".join(lines) + "\n"


def as_csv(seen: Shown) -> str:
    """All rows with all digits, a column for each swept key, and the jobs without a value at the end."""
    rows = seen.board.rows
    given = [*(row.overrides for row in rows), *(one.overrides for one in seen.unfinished)]
    keys = [key for key in dict.fromkeys(key_of(word) for one in given for word in one) if key != "seed"]
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow([
        "rank", *keys, seen.objective, "stderr", "difference", "ci_low", "ci_high", "p_corrected", "verdict", "seeds",
        "seeds_missing", "seed_sd", "jobs", "seconds", "reason",
    ])  # fmt: skip
    for rank, row in enumerate(rows, 1):
        table.writerow([
            rank, *_values(row.overrides, keys), row.value, row.stderr, row.difference, row.ci_low, row.ci_high, row.p,
            row.verdict, len(row.jobs), row.missing, row.seed_sd, _numbers(row), _seconds(row), row.reason or row.lacks,
        ])  # fmt: skip
    for one in seen.unfinished:
        empty = [None] * 6
        more = [one.state, None, None, None, one.number, None, one.cause]
        table.writerow(["", *_values(one.overrides, keys), *empty, *more])
    return buffer.getvalue()


def without_value(unfinished: Sequence[Unfinished]) -> str:
    """A line that counts them, by their states."""
    one, counts = len(unfinished) == 1, Counter(job.state for job in unfinished)
    states = ", ".join(f"{count:,} {'done without one' if s == 'done' else s}" for s, count in counts.items())
    return f"{len(unfinished):,} job{'' if one else 's'} {'has' if one else 'have'} no value yet ({states})"


def of_best(objective: str, board: "Board") -> str:
    """A line about the winner."""
    winner, others = board.rows[0], board.rows[1:]
    line = f"{objective} {with_error(winner.value, winner.stderr)}, {_named(winner.overrides)}"
    if len(winner.jobs) > 1:
        line += f", the mean of {len(winner.jobs)} seeds (jobs {_numbers(winner)})"
    if winner.missing:
        line += f", though {winner.lacks}, and no setting has all"
    if not others:
        return f"{line}: the only setting that has finished"
    if board.reason:
        return f"{line}; whether it is really better than the others ({len(others):,}) can't be told: {board.reason}"
    counts = Counter(row.verdict for row in others)
    uncompared = len(others) - counts[EQUAL] - counts[WORSE]
    more = f", {uncompared:,} were not compared" if uncompared else ""
    return f"{line}; {counts[EQUAL]:,} of the {len(others):,} other settings can't be told from it{more}"


def notes(seen: Shown) -> list[str]:
    """What the verdicts rest on, without the full stop."""
    board, rows = seen.board, seen.board.rows
    if len(rows) < 2:
        return _of_changed(seen.changed)
    found = [f"{'lower' if seen.lower else 'higher'} is better; ± is the standard error over {board.units or 'units'}"]
    if not any(row.stderr is not None for row in rows):
        found = [f"{'lower' if seen.lower else 'higher'} is better"]
    if board.reason:
        found.append(f"which settings are really worse can't be told: {board.reason}")
    else:
        counts = Counter(row.verdict for row in rows)
        pairs = math.comb(board.compared + 1, 2)
        corrected = (
            f"corrected for all {pairs:,} pairs, since the best was chosen among them" if pairs > 1 else "one pair"
        )
        found.append(
            f"compared with the best on the same {board.units} ({board.test} test; p {corrected}): {counts[WORSE]:,} "
            f"worse, {counts[EQUAL]:,} can't be told from it; an interval is of one comparison by itself"
        )
        for reason, count in Counter(row.reason for row in rows if row.reason).items():
            found.append(f"{count:,} not compared: {reason}")
    found.append(
        "the best was chosen by these very numbers, so its value is optimistic: measure it once on a test set that "
        "chose nothing"
    )
    single = sum(len(row.jobs) == 1 for row in rows)
    if single == len(rows):
        found.append("one seed each: how far another seed would move a setting is not known (sweep.seeds=3 tells)")
    elif single:
        found.append(f"{single:,} of the settings have one seed: how far another would move them is not known")
    if single < len(rows):
        found.append("of several seeds: their mean, with their standard deviation as sd; intervals and p are over both")
    return found + _of_changed(seen.changed)


def _of_changed(numbers: Sequence[int]) -> list[str]:
    """Where a file, such as an experiment's, was edited since."""
    if not numbers:
        return []
    more = f" and {len(numbers) - TOP:,} more" if numbers[TOP:] else ""
    named = f"job{'s' * (len(numbers) > 1)} {' '.join(map(str, numbers[:TOP]))}{more}"
    return [f"{named} trained with other settings than the same words give by now: a file was edited since"]


def key_of(word: str) -> str:
    """Of an override."""
    return word.partition("=")[0].lstrip("+~")


def with_error(value: float, stderr: float | None) -> str:
    """Two digits of the error, and the value to the same place."""
    if not stderr:
        return f"{value:.5g}"
    places = max(0, 1 - math.floor(math.log10(stderr)))
    return f"{value:.{places}f} ± {stderr:.{places}f}" if places <= 8 else f"{value:.5g} ± {stderr:.2g}"


def _titles(seen: Shown) -> list[str]:
    return [
        "rank", "setting", seen.objective, "difference [95% interval]", "p", "verdict", "seeds", "jobs", "seconds",
    ]  # fmt: skip


def _cells(rank: int, row: "Row", widest: int = 0) -> list[str]:
    of = f" of {len(row.jobs) + row.missing}" if row.missing else ""
    seeds = f"{len(row.jobs)}{of}" + ("" if row.seed_sd is None else f" (sd {row.seed_sd:.2g})")
    jobs = _numbers(row)
    verdict = f"{row.verdict}: {row.lacks}" if row.missing and row.verdict != BEST else row.verdict
    return [
        str(rank), _short(_named(row.overrides), widest), with_error(row.value, row.stderr), _interval(row), _p(row.p),
        verdict, seeds, _short(jobs, widest and 20), f"{_seconds(row):.0f}",
    ]  # fmt: skip


def _interval(row: "Row") -> str:
    if row.difference is None:
        return ""
    if row.ci_low is None or row.ci_high is None:
        return f"{row.difference:+.3g}"
    places = max(0, min(8, 2 - math.floor(math.log10(row.ci_high - row.ci_low))))
    return f"{row.difference:+.{places}f} [{row.ci_low:+.{places}f}, {row.ci_high:+.{places}f}]"


def _p(p: float | None) -> str:
    if p is None:
        return ""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _seconds(row: "Row") -> float:
    """A job's, of several their mean."""
    return sum(job.seconds for job in row.jobs) / len(row.jobs)


def _numbers(row: "Row") -> str:
    return " ".join(str(job.number) for job in row.jobs)


def _named(overrides: Sequence[str]) -> str:
    return " ".join(overrides) or "(nothing swept)"


def _short(text: str, widest: int) -> str:
    """Without its middle where it is too long; 0: whole."""
    return text if not widest or len(text) <= widest else f"{text[: widest // 2 - 1]}…{text[-(widest // 2) :]}"


def _values(overrides: Sequence[str], keys: list[str]) -> Iterator[str]:
    given = {key_of(word): word.partition("=")[2] for word in overrides}
    return (given.get(key, "") for key in keys)


def _counted(missing: list[Unfinished]) -> str:
    counts = Counter(one.state for one in missing)
    return f"jobs without a value: {', '.join(f'{count:,} {state}' for state, count in counts.items())}"


def _sentence(one: Unfinished) -> str:
    cause = f": {one.cause}" if one.cause else ""
    return f"job {one.number} ({_named(one.overrides)}) {one.state}{cause}"


def _line(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
