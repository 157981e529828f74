"""Best-fit packing: each row once, no group too long, and few groups."""

import time

import numpy as np
import pytest

from hydratune.build.packing import best_fit


def lists(groups: list[np.ndarray]) -> list[list[int]]:
    return [group.tolist() for group in groups]


def first_fit(lengths: np.ndarray, size: int) -> int:
    """Groups that first-fit decreasing needs."""
    spaces: list[int] = []
    for length in sorted(lengths.tolist(), reverse=True):
        place = next((n for n, space in enumerate(spaces) if space >= length), None)
        if place is None:
            spaces.append(size - length)
        else:
            spaces[place] -= length
    return len(spaces)


def some_lengths(seed: int, rows: int) -> np.ndarray:
    """Many short rows and some long ones, as conversations are: 10 to 2048 tokens."""
    return np.random.default_rng(seed).lognormal(5.5, 0.8, rows).clip(10, 2048).astype(np.int64)


def test_the_fullest_group_with_room_takes_a_row() -> None:
    # 12 leaves 8, and 10 with 9 leave 1: that takes the row of 1, where first-fit would add it to the 12
    assert lists(best_fit(np.array([12, 10, 9, 1]), 20)) == [[0], [1, 2, 3]]
    assert lists(best_fit(np.array([2, 3, 6, 2, 7]), 10)) == [[0, 2, 3], [1, 4]]


def test_equal_rows_come_in_their_order() -> None:
    assert lists(best_fit(np.full(5, 4), 8)) == [[0, 1], [2, 3], [4]]


def test_each_row_is_in_one_group_and_no_group_is_too_long() -> None:
    lengths = some_lengths(0, 5000)
    groups = best_fit(lengths, 2048)
    assert np.array_equal(np.sort(np.concatenate(groups)), np.arange(5000))
    assert max(lengths[group].sum() for group in groups) <= 2048
    assert all(group.dtype == np.int64 and (np.diff(group) > 0).all() for group in groups)
    firsts = [group[0] for group in groups]
    assert firsts == sorted(firsts)


@pytest.mark.parametrize("size", [2048, 8192])
@pytest.mark.parametrize("seed", range(3))
def test_few_groups(seed: int, size: int) -> None:
    lengths = some_lengths(seed, 3000)
    found = len(best_fit(lengths, size))
    assert found <= first_fit(lengths, size)
    assert found <= np.ceil(lengths.sum() / size) * 1.01


def test_the_same_lengths_give_the_same_groups() -> None:
    lengths = some_lengths(1, 2000)
    assert lists(best_fit(lengths, 2048)) == lists(best_fit(lengths.copy(), 2048))


def test_edges() -> None:
    assert best_fit(np.array([], dtype=np.int64), 10) == []
    assert lists(best_fit(np.array([10]), 10)) == [[0]]
    with pytest.raises(ValueError, match="row 1 has 11 tokens, a group holds 10"):
        best_fit(np.array([10, 11, 3]), 10)


def test_a_hundred_thousand_rows_take_a_moment() -> None:
    lengths = some_lengths(2, 100_000)
    began = time.process_time()
    best_fit(lengths, 2048)
    assert time.process_time() - began < 20  # seconds; with the square of the rows it would take hours
