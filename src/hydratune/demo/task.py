"""Load the test rows of the lm-eval task ``demo_category``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset


def load(**_: Any) -> dict[str, Dataset]:
    """Return the test split, read from the file beside this one.

    lm-eval passes the task's metadata as keyword arguments; none is used.
    """
    from datasets import Dataset

    path = Path(__file__).resolve().parent / "test.jsonl"
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return {"test": Dataset.from_list(rows)}
