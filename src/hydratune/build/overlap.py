"""Whether training rows contain the documents of a benchmark, or of the validation rows: contamination, token by token.

After Llama 2 (arXiv:2307.09288, appendix A.6), without its gaps inside a match: a token of a document is contaminated
where it lies in an n-gram that a training row holds too, and what the documents have in common is no evidence.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from itertools import chain
from typing import NamedTuple

import numpy as np

SHARE = 0.8  # of a document's telling tokens, from which it counts as found: Llama 2's "dirty" samples
MIN_TOKENS = 5  # a shorter document is found in any training rows
MOST_ROWS = 3  # named for each document
BLOCK = 1 << 16  # positions that are hashed at once: they stay in the processor's cache
# Good in the spectral test (arXiv:2001.05304), which asks what a hash asks: that no small differences d of successive
# tokens give sum(d[i] * BASE**i) == 0 mod 2**64.
BASE = np.uint64(0xD1342543DE82EF95)


class Found(NamedTuple):
    document: int  # its index
    share: float  # of its telling tokens, in all training rows together
    rows: list[int]  # the training rows with most of its telling n-grams, MOST_ROWS at most, the fullest first


class Documents:
    """Documents as token ids, prepared for being looked for.

    An n-gram is telling if it occurs in no other document; copies of one document count as one, so that they tell too.
    Telling tokens lie in no other n-grams or, in a document without such tokens, in a telling one. A document of less
    than `n` tokens is one n-gram. N-grams are compared by 64-bit hashes alone: among 10^7 training tokens and 10^6
    n-grams of documents, one pair of different ones is taken for equal with a probability below 10^-6.
    """

    def __init__(self, ids: Sequence[Sequence[int]], n: int = 10) -> None:
        copies: dict[tuple[int, ...], list[int]] = {}
        for index, document in enumerate(ids):
            copies.setdefault(tuple(document), []).append(index)
        distinct = [document for document in copies if len(document) >= MIN_TOKENS]
        tokens = np.fromiter(chain.from_iterable(distinct), np.int64)
        lengths = np.array([len(document) for document in distinct], np.int64)
        owner = np.repeat(np.arange(len(distinct)), lengths)  # (tokens,), as all that follow
        size = np.minimum(lengths, n)[owner]
        left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(tokens))
        hashes, telling = np.zeros(len(tokens), np.uint64), np.zeros(len(tokens), bool)
        self._sizes = set(size.tolist())
        for current, windows in _hashes(tokens, self._sizes):
            at = np.flatnonzero(left[: len(windows)] >= current)
            _, first, same = np.unique(windows[at], return_index=True, return_inverse=True)
            last_owner = np.zeros_like(first)
            np.maximum.at(last_owner, same, owner[at])
            alone = (owner[at][first] == last_owner)[same] & (size[at] == current)
            telling[at[alone]] = True
            hashes[at[alone]] = windows[at[alone]]
        self._copies = [copies[document] for document in distinct]
        self._owner, self._size = owner, size
        self._starts = np.flatnonzero(telling)
        self._grams, first, self._gram = np.unique(hashes[self._starts], return_index=True, return_inverse=True)
        self._gram_owner = owner[self._starts[first]]
        # Nearly all n-grams of training rows are in no document: a table of the hashes' first bits, filled to 1/8 at
        # most, tells of most of them, in a fraction of the time of a binary search.
        bits = (8 * len(self._grams) + 1).bit_length()
        self._shift = np.uint64(64 - bits)
        self._maybe = np.zeros(1 << bits, bool)
        self._maybe[(self._grams >> self._shift).astype(np.int64)] = True

        self._telling = ~self._covered(np.flatnonzero(~telling & (left >= size)))
        without = self._per_document(self._telling) == 0
        self._telling |= self._covered(self._starts) & without[owner]
        self._total = self._per_document(self._telling)
        self.too_short = len(ids) - sum(map(len, self._copies))
        self.not_telling = sum(len(c) for c, total in zip(self._copies, self._total, strict=True) if not total)
        self.judged = len(ids) - self.too_short - self.not_telling

    def find(self, chunks: Iterable[tuple[np.ndarray, np.ndarray]]) -> list[Found]:
        """The documents of which training rows hold at least SHARE, by their index.

        A chunk is (tokens, offsets), as an Arrow list column has them: row r is tokens[offsets[r]:offsets[r + 1]], and
        rows count on from chunk to chunk. Memory is bounded by the largest chunk and the documents.
        """
        found = np.zeros(len(self._grams), bool)
        best = np.empty((0, 3), np.int64)  # columns: document, minus the number of its n-grams, row
        before = 0
        for tokens, offsets in chunks:
            rows = len(offsets) - 1
            gram, row = self._matches(tokens, offsets)
            found[gram] = True
            pairs, counts = np.unique(self._gram_owner[gram] * rows + row, return_counts=True)
            document, row = np.divmod(pairs, rows)
            best = _fullest(np.concatenate([best, np.column_stack([document, -counts, row + before])]))
            before += rows
        held: dict[int, list[int]] = defaultdict(list)
        for owner, _, number in best.tolist():
            held[owner].append(number)
        contaminated = self._covered(self._starts[found[self._gram]]) & self._telling
        share = self._per_document(contaminated) / np.maximum(self._total, 1)
        return sorted(
            Found(index, float(share[owner]), held[owner])
            for owner in np.flatnonzero(share >= SHARE).tolist()
            for index in self._copies[owner]
        )

    def _matches(self, tokens: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """(2, matches): each n-gram of the documents and a row that it occurs in, once however often it does."""
        rows = len(offsets) - 1
        tokens, offsets = tokens[offsets[0] : offsets[-1]], offsets.astype(np.int64) - offsets[0]
        keys = [np.empty(0, np.int64)]
        overhang = max(self._sizes, default=1) - 1
        for start in range(0, len(tokens), BLOCK):
            for size, windows in _hashes(tokens[start : start + BLOCK + overhang], self._sizes):
                at = np.flatnonzero(self._maybe[(windows >> self._shift).astype(np.int64)])
                gram = np.minimum(np.searchsorted(self._grams, windows[at]), len(self._grams) - 1)
                same = self._grams[gram] == windows[at]
                at, gram = at[same] + start, gram[same]
                row = np.searchsorted(offsets, at, side="right") - 1
                inside = at + size <= offsets[row + 1]
                keys.append(gram[inside] * rows + row[inside])
        return np.stack(np.divmod(np.unique(np.concatenate(keys)), rows))

    def _covered(self, starts: np.ndarray) -> np.ndarray:
        """Which tokens of the documents lie in an n-gram that starts at one of `starts`."""
        covered = np.zeros(len(self._owner), bool)
        for i in range(max(self._sizes, default=0)):
            covered[starts[self._size[starts] > i] + i] = True
        return covered

    def _per_document(self, tokens: np.ndarray) -> np.ndarray:
        return np.bincount(self._owner[tokens], minlength=len(self._copies))


def _hashes(ids: np.ndarray, sizes: AbstractSet[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Of each size, the hashes of all windows: those of size s number len(ids) - s + 1."""
    tokens = ids.astype(np.uint64)
    hashes = np.ones(len(tokens) + 1, np.uint64)  # not 0: a first token of id 0 must count
    for size in range(1, max(sizes, default=0) + 1):
        hashes = hashes[:-1] * BASE + tokens[size - 1 :]
        if size in sizes:
            yield size, hashes


def _fullest(best: np.ndarray) -> np.ndarray:
    """Sorted, and of each first column's value the first MOST_ROWS rows."""
    best = best[np.lexsort(best.T[::-1])]
    rank = np.arange(len(best)) - np.searchsorted(best[:, 0], best[:, 0])
    return best[rank < MOST_ROWS]
