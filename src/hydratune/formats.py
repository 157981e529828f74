"""One raw row -> chat messages. Pure: standard library only."""

from typing import Any

ROLES = ("system", "user", "assistant")


def messages(row: Any, column: str) -> list[dict[str, str]]:
    """The row's messages, `[{"role": ..., "content": ...}, ...]`.

    Raises ValueError with what is wrong, in words that finish the sentence "row 3: ...".
    """
    if not isinstance(row, dict):
        raise ValueError(f"a row is an object with a column {column!r}, found {row!r:.60}")
    if column not in row:
        raise ValueError(f"no column {column!r}, found {', '.join(sorted(row))}; set data.column")
    turns = row[column]
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"{column} must be a list of messages that is not empty, found {turns!r:.60}")
    for turn in turns:
        if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
            raise ValueError(f"a message needs role and content, found {turn!r:.60}")
        if turn["role"] not in ROLES:
            raise ValueError(f"a role is one of {', '.join(ROLES)}, found {turn['role']!r}")
        if not isinstance(turn["content"], str) or not turn["content"].strip():
            raise ValueError(f"the content of a message is text that is not empty, found {turn['content']!r:.60}")
    if turns[-1]["role"] != "assistant":
        raise ValueError(f"the last message must be the assistant's, found {turns[-1]['role']!r}")
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]
