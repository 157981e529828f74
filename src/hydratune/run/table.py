"""The table at the end of a run."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

VERDICTS = ("better", "worse", "differs", "not distinguishable")


def comparison_table(rows: list[dict[str, Any]]) -> str:
    """The rows of comparison.json as aligned text, and below them what the verdicts mean."""
    lines = [("task", "metric", "model", "documents", "value ± stderr", "difference [95% interval]", "verdict")]
    before: tuple[str, str] = ("", "")
    for row in rows:
        task, metric = row["task"], row["metric"]
        told = row.get("difference") is not None
        named = ("", "") if (task, metric) == before else (_short(task, 36), _short(metric, 18))
        lines.append((
            *named, row["model"], str(row["n"]), _with_error(row["value"], row["stderr"]),
            _with_interval(row) if told else "", row.get("verdict", "not compared" if row.get("reference") else ""),
        ))  # fmt: skip
        before = (task, metric)
    return "\n".join([columns(lines), *_notes(rows)])


def _notes(rows: list[dict[str, Any]]) -> list[str]:
    """Sentences below the table."""
    notes = []
    told = [row for row in rows if "p_corrected" in row]
    if told:
        counts = Counter(row["verdict"] for row in told)
        kinds = ", ".join(f"{counts[word]} {word}" for word in VERDICTS if counts[word])
        tests = " and ".join(sorted({row["test"].removeprefix("exact ") for row in told}))
        several = f"{len(told)} comparisons, corrected for that (Holm): {kinds}" if told[1:] else "one comparison"
        notes.append(f"difference from {told[0]['reference']} at 5% ({tests} test); {several}")
    undecided = [row for row in told if row["verdict"] == "not distinguishable"]
    sizes: dict[str, list[float]] = {}
    for row in undecided:
        if row["detectable"] is not None:
            sizes.setdefault(row["metric"], []).append(row["detectable"])
    if sizes:
        power = "power 80%, a comparison by itself" if told[1:] else "power 80%"
        spans = ", ".join(f"{_span(found)} of {metric}" for metric, found in sizes.items())
        notes.append(f"not distinguishable: the smallest difference that these documents can show is {spans} ({power})")
    if sum(map(len, sizes.values())) < len(undecided):
        notes.append("not distinguishable: documents too few or too much alike to say what difference they could show")
    for row in rows:
        if "seed_spread" in row:
            notes.append(
                f"{row['task']} {row['metric']}, {row['model']}: {row['repeats']} samplings; between seeds "
                f"± {_number(row['seed_spread'])}, between documents ± {_number(row['stderr'])}; all answers the same for "
                f"{row['same_answers']:.0%} of the documents, two answers for {row['agreement']:.0%}"
            )
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.get("reference") and "reason" in row:
            reasons.setdefault(row["reason"], []).append(f"{row['task']} {row['metric']}")
    for reason, which in reasons.items():
        names = list(dict.fromkeys(which))
        more = f" and {len(names) - 3} more" if names[3:] else ""
        notes.append(f"not compared: {', '.join(names[:3])}{more} ({reason})")
    return notes


def certificate_text(report: dict[str, Any]) -> str:
    """A line about the merge stage's certificate, of merge_report.json."""
    return (
        f"merged against trained model: KL {report['merge/kl']:.1e}, logits within "
        f"{report['merge/max_logit_difference']:.1e}, {report['merge/same_greedy_tokens']:.1%} of the likeliest tokens the "
        f"same ({report['merge/rows']} {report['merge/measured_on']})"
    )


def samples_text(rows: Sequence[dict[str, str]]) -> str:
    """Each prompt, and below it the models' answers side by side."""
    names = [name for name in rows[0] if name != "prompt"] if rows else []
    width = max(map(len, names), default=0) + 1
    return "\n".join(
        "\n    ".join([f"  {row['prompt']}", *(f"{f'{name}:':{width}} {row[name]}" for name in names)]) for row in rows
    )


def columns(lines: Sequence[Sequence[str]]) -> str:
    """Cells as aligned text, a line each."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _with_error(value: float | None, stderr: float | None) -> str:
    """`0.140 ± 0.035`; of one document there is no error."""
    return _number(value) + ("" if stderr is None else f" ± {_number(stderr)}")


def _with_interval(row: dict[str, Any]) -> str:
    interval = "" if row.get("ci_low") is None else f" [{_number(row['ci_low'], '+')}, {_number(row['ci_high'], '+')}]"
    return _number(row["difference"], "+") + interval


def _span(values: list[float]) -> str:
    least, most = _number(min(values)), _number(max(values))
    return least if least == most else f"{least} to {most}"


def _number(value: float | None, sign: str = "") -> str:
    if value is None:
        return "-"
    return f"{value:{sign}.3f}" if abs(value) < 1000 else f"{value:{sign}.4g}"


def _short(name: str, width: int) -> str:
    """The name, without its middle where it is long: tasks of one group begin alike."""
    return name if len(name) <= width else f"{name[: width // 2 - 1]}…{name[-(width // 2) :]}"
