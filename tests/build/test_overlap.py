"""Documents that training rows contain are found, with their rows; what documents have in common finds none."""

import random
from collections import Counter

import numpy as np
import pytest

from hydratune.build import overlap
from hydratune.build.overlap import Documents, Found

Rows = list[list[int]]
VOCABULARY: dict[str, int] = {}
PROMPT = (
    'Which category does the noun " {} " belong to ? Answer with one word of this list and with nothing else , '
    "neither a full stop nor an explanation : animal , plant , tool or place ."
)
OTHER = "It is well known that a {} is a very common thing in many parts of the world these days ."
NOUNS = ["otter", "hammer", "willow"]
TEXT = list(range(100, 140))
FRAME = list(range(200, 215)), list(range(220, 235))  # n-grams on both sides of what is telling


def ids(text: str) -> list[int]:
    return [VOCABULARY.setdefault(word, len(VOCABULARY)) for word in text.split()]


def prompts(*nouns: str) -> Rows:
    return [ids(PROMPT.format(noun)) for noun in nouns]


def framed(*texts: list[int]) -> Rows:
    return [FRAME[0] + text + FRAME[1] for text in texts]


def chunk(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return np.array([token for row in rows for token in row], np.int32), offsets


def find(documents: Rows, rows: Rows) -> list[Found]:
    return Documents(documents).find([chunk(rows)])


NOISE = [[*range(500, 530)], [], [*range(600, 612)]]
FOUND = [
    ("copy", [TEXT], [*NOISE, TEXT], [(0, 1.0, [3])]),
    ("copy-inside-a-row", [TEXT], [[1, 2, *TEXT, 3], *NOISE], [(0, 1.0, [0])]),
    ("second-of-two", [NOISE[0], TEXT], [TEXT], [(1, 1.0, [0])]),
    ("both", [TEXT, NOISE[0]], [NOISE[0], TEXT], [(0, 1.0, [1]), (1, 1.0, [0])]),
    ("paraphrase", [TEXT], [[token + 1000 for token in TEXT]], []),
    ("same-tokens-in-another-order", [TEXT], [TEXT[::-1]], []),
    ("every-tenth-token-differs", [TEXT], [[t + 1000 * (t % 10 == 0) for t in TEXT]], []),
    ("over-two-rows", [TEXT[:11]], [TEXT[:6], TEXT[6:]], []),
    ("over-an-empty-row", [TEXT[:11]], [TEXT[:6], [], TEXT[6:]], []),
    ("not-over-two-rows", [TEXT[:11]], [TEXT[:6] + TEXT[6:]], [(0, 1.0, [0])]),
    ("half", [TEXT], [TEXT[:20]], []),
    ("31-of-40", [TEXT], [TEXT[:31]], []),
    ("32-of-40", [TEXT], [TEXT[:32]], [(0, 0.8, [0])]),
    ("38-of-40-in-two-rows", [TEXT], [TEXT[:15], *NOISE, TEXT[17:]], [(0, 0.95, [4, 0])]),
    ("fullest-three-rows", [TEXT], [TEXT[:11], TEXT[:15], [], TEXT, TEXT[:12], TEXT], [(0, 1.0, [3, 5, 1])]),
    ("repeated-in-a-row", [TEXT], [TEXT[:12] * 9, TEXT[:32]], [(0, 0.8, [1, 0])]),
    ("no-documents", [], [TEXT], []),
    ("no-rows", [TEXT], [], []),
    ("only-empty-rows", [TEXT], [[], []], []),
    ("short", [TEXT[:6]], [NOISE[0], TEXT], [(0, 1.0, [1])]),
    ("short-in-part", [TEXT[:6]], [TEXT[:5], TEXT[1:]], []),
    ("short-over-two-rows", [TEXT[:6]], [TEXT[:3], TEXT[3:]], []),
    ("shortest", [TEXT[:5]], [TEXT], [(0, 1.0, [0])]),
    ("too-short", [TEXT[:4]], [TEXT], []),
    ("of-many-lengths", [TEXT[:6], TEXT[10:17], TEXT[20:]], [TEXT[9:30]], [(1, 1.0, [0])]),
    ("short-inside-another", [TEXT[:6], TEXT], [TEXT], [(1, 1.0, [0])]),
    ("zeros-before-it", [[0, 0, *TEXT[:4]]], [TEXT[:4], [0, *TEXT[:4]]], []),
    ("zeros-alone", [[0] * 6], [[0] * 5, [0] * 6], [(0, 1.0, [1])]),
    ("copies", [TEXT, NOISE[0], TEXT], [TEXT], [(0, 1.0, [0]), (2, 1.0, [0])]),
    ("copies-of-another", [TEXT, NOISE[0], TEXT], [NOISE[0]], [(1, 1.0, [0])]),
    ("short-copies", [TEXT[:6], TEXT[:6]], [TEXT], [(0, 1.0, [0]), (1, 1.0, [0])]),
    ("boilerplate", prompts(*NOUNS), prompts("spoon"), []),
    # one document alone does not tell which of its words are the prompt's
    ("boilerplate-not-recognized", prompts("otter"), prompts("spoon"), [(0, 32 / 39, [0])]),
    ("boilerplate-with-its-noun", prompts(*NOUNS), prompts("spoon", "hammer"), [(1, 1.0, [1])]),
    ("noun-in-another-text", prompts(*NOUNS), [ids(OTHER.format("hammer"))], []),
    ("without-its-boilerplate", framed(TEXT[:20], TEXT[20:]), [TEXT[20:]], [(1, 1.0, [0])]),
    ("half-without-its-boilerplate", framed(TEXT[:20], TEXT[20:]), [TEXT[30:]], []),
    ("only-its-joint-is-telling", [TEXT, TEXT[:20], TEXT[20:]], [TEXT[11:29]], [(0, 1.0, [0])]),
    ("pieces-without-the-joint", [TEXT, TEXT[:20], TEXT[20:]], [TEXT[:20], TEXT[20:]], []),
]


@pytest.mark.parametrize(("documents", "rows", "expected"), [r[1:] for r in FOUND], ids=[r[0] for r in FOUND])
def test_what_is_found(documents: Rows, rows: Rows, expected: list[Found]) -> None:
    assert find(documents, rows) == expected


def test_what_is_not_judged() -> None:
    copies = [TEXT[:4], TEXT, TEXT[:4], TEXT[:20], TEXT[20:], TEXT[:20], TEXT]
    documents = Documents(copies)
    assert (documents.too_short, documents.not_telling, documents.judged) == (2, 3, 2)
    documents = Documents([])
    assert (documents.too_short, documents.not_telling, documents.judged) == (0, 0, 0)


def grams(tokens: list[int] | tuple[int, ...], size: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]


def reference(documents: Rows, rows: Rows, n: int) -> tuple[list[Found], int]:
    """The definition with sets of tuples; and how many documents it judges."""
    found, judged = [], 0
    distinct = {tuple(document) for document in documents if len(document) >= 5}
    for document in distinct:
        own = grams(document, size := min(n, len(document)))

        def lying_in(some: set[tuple[int, ...]], own: list[tuple[int, ...]] = own, size: int = size) -> set[int]:
            return {i + k for i, gram in enumerate(own) if gram in some for k in range(size)}

        shared = {gram for other in distinct - {document} for gram in grams(other, size)}
        tokens = set(range(len(document))) - lying_in(shared) or lying_in(set(own) - shared)
        indices = [index for index, one in enumerate(documents) if tuple(one) == document]
        judged += len(indices) * bool(tokens)
        held = {r: (set(own) - shared) & set(grams(row, size)) for r, row in enumerate(rows)}
        fullest = sorted((r for r in held if held[r]), key=lambda r: (-len(held[r]), r))
        share = len(tokens & lying_in(set().union(*held.values()))) / max(1, len(tokens))
        if share >= 0.8:
            found += [Found(index, share, fullest[:3]) for index in indices]
    return sorted(found), judged


def random_case(rng: random.Random) -> tuple[Rows, Rows, int]:
    """Documents and rows that are made of the same pieces, often of so few tokens that n-grams repeat by chance."""
    vocabulary = rng.choice([1, 2, 4, 1000, 200_000])
    pieces = [[rng.randrange(vocabulary) for _ in range(rng.randint(1, 14))] for _ in range(8)]

    def joined(most: int) -> list[int]:
        return [token for piece in rng.choices(pieces, k=rng.randint(0, most)) for token in piece]

    documents = [joined(4) for _ in range(rng.randint(0, 12))]
    rows = [joined(4) for _ in range(rng.randint(0, 15))]
    for document in rng.choices(documents, k=3) if documents else []:
        documents.append(document)
        rows.insert(rng.randint(0, len(rows)), joined(1) + document[rng.randint(0, 2) :] + joined(1))
    return documents, rows, rng.randint(3, 10)


def test_any_chunking_finds_what_the_definition_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, seen = random.Random(0), Counter[str]()
    for _ in range(300):
        monkeypatch.setattr(overlap, "BLOCK", rng.choice([1, 2, 7, 64]))
        documents, rows, n = random_case(rng)
        expected, judged = reference(documents, rows, n)
        prepared = Documents(documents, n)
        tokens, offsets = chunk(rows)
        cuts = sorted(rng.choices(range(len(rows) + 1), k=4))
        slices = zip([0, *cuts], [*cuts, len(rows)], strict=True)  # of one column, as Arrow hands them over; some empty
        for chunks in (
            [(tokens, offsets)],
            [chunk([row]) for row in rows],
            ((tokens, offsets[start : end + 1].astype(np.int32)) for start, end in slices),
        ):
            assert prepared.find(chunks) == expected
        assert prepared.judged == judged
        seen["found"] += len(expected)
        seen["partly"] += sum(found.share < 1 for found in expected)
        seen["not found"] += judged - len(expected)
        seen["not judged"] += len(documents) - judged
    assert all(seen[kind] > 50 for kind in ("found", "partly", "not found", "not judged")), seen
