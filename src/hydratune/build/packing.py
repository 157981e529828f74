"""Which rows share a line of max_length tokens."""

from itertools import pairwise

import numpy as np


def best_fit(lengths: np.ndarray, size: int) -> list[np.ndarray]:
    """Groups of row indices, each row in one, whose `lengths` (tokens) sum up to at most `size`.

    Best-fit decreasing: the longest row first, each into the fullest group that has room for it (Ding et al., "Fewer
    Truncations Improve Language Modeling", arXiv:2404.10830). Indices are int64 and ascend within a group, groups
    ascend by their first row: short and long rows come in the order of the data. The same lengths always give the same
    groups. Raises ValueError where a row is longer than `size`.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if (lengths > size).any():
        longest = lengths.argmax()
        raise ValueError(f"row {longest} has {lengths[longest]} tokens, a group holds {size}")
    group_of = np.empty(len(lengths), dtype=np.int64)
    with_space: list[list[int]] = [[] for _ in range(size + 1)]  # groups by the tokens that still fit in
    spaces = 0  # bit n: with_space[n] is not empty; so the fullest group with room is a lowest bit
    groups = 0
    for row in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[row])
        enough = spaces >> length
        if enough:
            space = length + (enough & -enough).bit_length() - 1
            group = with_space[space].pop()
            if not with_space[space]:
                spaces ^= 1 << space
        else:
            space, group = size, groups
            groups += 1
        group_of[row] = group
        with_space[space - length].append(group)
        spaces |= 1 << (space - length)
    order = np.argsort(group_of, kind="stable")
    ends = np.cumsum(np.bincount(group_of, minlength=groups))
    found = [order[start:end] for start, end in pairwise([0, *ends.tolist()])]
    return sorted(found, key=lambda rows: int(rows[0]))
