"""The table at the end of a run."""

from collections.abc import Sequence
from typing import Any


def comparison_table(rows: list[dict[str, Any]]) -> str:
    """Rows of {task, metric, model, value, stderr, n, difference, difference_stderr} as aligned text."""
    lines = [("task", "metric", "model", "documents", "value ± stderr", "difference from base ± stderr", "")]
    for row in rows:
        difference, words = "", ""
        if row.get("difference") is not None:
            difference = _with_error(row["difference"], row["difference_stderr"], "+")
            words = row["verdict"]
        value = _with_error(row["value"], row["stderr"], "")
        lines.append((row["task"], row["metric"], row["model"], str(row["n"]), value, difference, words))
    return columns(lines)


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


def _with_error(value: float, stderr: float | None, sign: str) -> str:
    """`0.140 ± 0.035`; of one document there is no error."""
    return f"{value:{sign}.3f}" + ("" if stderr is None else f" ± {stderr:.3f}")
