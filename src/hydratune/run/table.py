"""The table at the end of a run."""

from typing import Any


def comparison_table(rows: list[dict[str, Any]]) -> str:
    """Rows of {task, metric, model, value, stderr, n, difference, difference_stderr} as aligned text."""
    lines = [("task", "metric", "model", "documents", "value ± stderr", "difference from base ± stderr", "")]
    for row in rows:
        difference, words = "", ""
        if row.get("difference") is not None:
            difference = f"{row['difference']:+.3f} ± {row['difference_stderr']:.3f}"
            words = row["verdict"]
        value = f"{row['value']:.3f} ± {row['stderr']:.3f}"
        lines.append((row["task"], row["metric"], row["model"], str(row["n"]), value, difference, words))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)
