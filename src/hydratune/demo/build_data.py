"""Build the demo data: name the category of a noun from its definition.

Reads ``data.noun`` of WordNet 3.0 (Debian package ``wordnet-base``) and writes
``train.jsonl`` and ``test.jsonl``. The same input always gives the same output.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# The classes and their lexicographer file numbers, lexnames(5WN).
CHOICES = ["animal", "body", "food", "location", "person", "plant"]
LEXNAMES = dict(zip(["05", "08", "13", "15", "18", "20"], CHOICES, strict=True))
# Slurs and obscenities, which WordNet records too, are left out.
COARSE = re.compile(
    r"slur|offensive|disparag|derogat|pejorative|obscen|vulgar|negro|nigger|squaw",
    re.IGNORECASE,
)
PROMPT = (
    'Which category does the noun "{noun}" ({definition}) belong to? '
    "Answer with one word: animal, body, food, location, person or plant."
)
SEED = 20060101
TRAIN_PER_CLASS = 934
TEST_PER_CLASS = 50


@dataclass(frozen=True)
class Synset:
    """One noun synset of the six classes."""

    label: str
    noun: str
    lemmas: frozenset[str]
    definition: str
    coarse: bool


def read_synsets(path: Path) -> Iterator[Synset]:
    """Yield the synsets of the six classes from a ``data.noun`` file, in file order."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("  "):  # the licence notice
                continue
            data, _, gloss = line.partition(" | ")
            fields = data.split(" ")
            label = LEXNAMES.get(fields[1])
            if label is None:
                continue
            count = int(fields[3], 16)
            words = [word.replace("_", " ") for word in fields[4 : 4 + 2 * count : 2]]
            yield Synset(
                label=label,
                noun=words[0],
                lemmas=frozenset(word.casefold() for word in words),
                definition=" ".join(gloss.partition(";")[0].split()),
                coarse=bool(COARSE.search(line)),
            )


def select(synsets: list[Synset]) -> list[Synset]:
    """Keep one synset for each noun, leaving out nouns found in several classes."""
    labels: dict[str, set[str]] = {}
    for synset in synsets:
        for lemma in synset.lemmas:
            labels.setdefault(lemma, set()).add(synset.label)
    chosen: dict[str, Synset] = {}
    for synset in synsets:
        key = synset.noun.casefold()
        text = synset.definition
        whole = bool(text) and '"' not in text and text.count("(") == text.count(")")
        if whole and not synset.coarse and len(labels[key]) == 1:
            chosen.setdefault(key, synset)
    return list(chosen.values())


def split(synsets: list[Synset], rng: random.Random) -> tuple[list[Synset], list[Synset]]:
    """Draw balanced train and test sets that share no lemma and no definition."""
    by_label: dict[str, list[Synset]] = {label: [] for label in CHOICES}
    for synset in synsets:
        by_label[synset.label].append(synset)
    test: list[Synset] = []
    for group in by_label.values():
        rng.shuffle(group)
        test += group[:TEST_PER_CLASS]
    lemmas = {lemma for synset in test for lemma in synset.lemmas}
    definitions = {synset.definition.casefold() for synset in test}
    train: list[Synset] = []
    for label, group in by_label.items():
        rest = [
            synset
            for synset in group[TEST_PER_CLASS:]
            if lemmas.isdisjoint(synset.lemmas) and synset.definition.casefold() not in definitions
        ]
        if len(rest) < TRAIN_PER_CLASS:
            raise SystemExit(f"only {len(rest)} training nouns of class {label}")
        train += rest[:TRAIN_PER_CLASS]
    rng.shuffle(train)
    rng.shuffle(test)
    return train, test


def row(synset: Synset, *, test: bool) -> dict[str, object]:
    """Make one row: a chat, and for the test set also the multiple-choice fields."""
    prompt = PROMPT.format(noun=synset.noun, definition=synset.definition)
    messages = [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": synset.label},
    ]
    if not test:
        return {"messages": messages}
    answer = CHOICES.index(synset.label)
    fields = {"question": prompt, "choices": CHOICES, "answer": answer}
    return {"messages": messages, **fields}


def main() -> None:
    """Write the two files."""
    parser = argparse.ArgumentParser(description="Build the demo data from WordNet.")
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    args = parser.parse_args()
    synsets = select(list(read_synsets(args.wordnet / "data.noun")))
    train, test = split(synsets, random.Random(SEED))
    args.out.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", train), ("test", test)):
        path = args.out / f"{name}.jsonl"
        with path.open("w", encoding="utf-8", newline="\n") as out:
            for synset in part:
                line = json.dumps(row(synset, test=name == "test"), ensure_ascii=False)
                out.write(line + "\n")
        print(f"{path}: {len(part)} rows")


if __name__ == "__main__":
    main()
