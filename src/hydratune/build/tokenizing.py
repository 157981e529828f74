"""One building of the token cache: examples -> rows of tokens on the disk, and a report of all that was found."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np

from hydratune.build.data import NAMED, Item, Part, bad_rows
from hydratune.build.packing import best_fit
from hydratune.build.rendering import Renderer, Tokens
from hydratune.build.store import Writer
from hydratune.config.schema import ConfigError, DataConf
from hydratune.formats import Chat, Text

AT_ONCE = 1000  # rows that are rendered and tokenized together
SHOWN = 5  # rows that the report names of each kind
SERVED = 100  # rows of each source whose prompt is rendered as it will be served, too
TRIED = 20  # rows that are rendered before anything is started
BINS = 8  # of the histogram of lengths


class Noted:
    """How many rows of each kind there were, and which came first."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, list[str]] = {}

    def note(self, kind: str, said: str, when: bool = True) -> None:
        if when:
            self.counts[kind] += 1
            if self.counts[kind] <= SHOWN:
                self.first.setdefault(kind, []).append(said)

    def note_rows(self, kind: str, writer: Writer, rows: np.ndarray, count: int) -> None:
        """`rows` of those that were written, of which the first are named."""
        if count:
            self.counts[kind] = count
            self.first[kind] = [writer.place(int(row)) for row in rows[:SHOWN]]


class Tokenizing:
    """What `data` says, on rows that go through `renderer`, into `folder`."""

    def __init__(self, conf: DataConf, renderer: Renderer, max_length: int, folder: Path) -> None:
        self.conf, self.renderer, self.max_length = conf, renderer, max_length
        self.folder = folder
        self.noted = {"training": Noted(), "validation": Noted()}
        self.bad, self.seen = Noted(), 0
        self.writers: dict[str, Writer] = {}

    def first_problems(self, parts: list[Part]) -> list[str]:
        """What is wrong with the first rows once they are rendered, a sentence each; nothing is written."""
        for part in parts:
            items = list(islice((one for one in part.items() if not isinstance(one.example, ValueError)), TRIED))
            made = self.renderer.tokens([cast(Chat | Text, item.example) for item in items], self.conf.loss)
            for item, tokens in zip(items, made, strict=True):
                self._fitted(item, tokens, Noted())
        return self.bad.first.get("bad", [])

    def run(self, parts: list[Part], held_out: list[Part]) -> dict[str, Any]:
        """Write the folder's files. Returns the report. Raises ConfigError where what is left can only be a mistake."""
        share = self.conf.validation_share or 0.0
        for name in ["training", "validation"] if share or held_out else ["training"]:
            self.writers[name] = Writer(self.folder / f"{name}.arrow")
        for part in held_out:
            self._write(part.items(), "validation")
        sources, orders, before = [], [np.zeros(0, np.int64)], 0
        for part in parts:
            positions = self._write(part.items(share), "training")
            sources.append({"source": part.source.label, "revision": part.source.revision, "rows": len(positions)})
            orders.append(before + _in_order(part, positions))
            before += len(positions)
        for writer in self.writers.values():
            writer.close()
        self._refuse_bad()
        order = self._without_validation(np.concatenate(orders))
        if len(order) < before or (np.diff(order) < 0).any():
            np.save(self.folder / "order.npy", order)
        report = {name: self._report(name, order) for name in self.writers}
        if self.conf.packing:
            groups = best_fit(self.writers["training"].kept("length")[order], self.max_length)
            ends = np.cumsum([len(group) for group in groups])
            np.savez(self.folder / "packs.npz", rows=np.concatenate(groups), ends=ends)
            report["training"]["packs"] = len(groups)
        bad = {"bad": self.bad.counts["bad"], "bad_rows": self.bad.first.get("bad", [])}
        return {**report, **bad, "max_length": self.max_length, "sources": sources, "stop": self.renderer.stop}

    def _write(self, items: Iterator[Item], split: str) -> list[int]:
        """Write rows to `split`, or to validation where they are held out. Returns the positions of those in `split`."""
        positions, served = [], 0
        while chunk := list(islice(items, AT_ONCE)):
            self.seen += len(chunk)
            good = [item for item in chunk if not isinstance(item.example, ValueError)]
            for item in chunk:
                if isinstance(item.example, ValueError):
                    self._note_bad(item, item.example)
            if self.bad.counts and self.conf.on_bad_row == "error":
                continue  # only the number of the other bad rows is still asked for
            made = self.renderer.tokens([cast(Chat | Text, item.example) for item in good], self.conf.loss)
            into: dict[str, list[tuple[Item, Tokens]]] = {}
            self._note_served(good[: SERVED - served], split)
            served += len(good)
            for item, tokens in zip(good, made, strict=True):
                name = "validation" if item.held_out else split
                if row := self._fitted(item, tokens, self.noted[name]):
                    into.setdefault(name, []).append((item, row))
            for name, rows in into.items():
                places = [(item.file, item.number) for item, _ in rows]
                self.writers[name].add([row.ids for _, row in rows], [row.labels for _, row in rows], places)
            positions += [item.position for item, _ in into.get(split, [])]
        return positions

    def _note_served(self, items: list[Item], split: str) -> None:
        """Of the first rows, those that begin otherwise than what the model is asked in the same conversation."""
        for item in items:
            if isinstance(item.example, Chat):
                self.noted[split].note("not_as_served", item.place, not self.renderer.as_served(item.example))

    def _fitted(self, item: Item, tokens: Tokens | ValueError, noted: Noted) -> Tokens | None:
        """The row within max_length, or None where it is left out."""
        try:
            if isinstance(tokens, ValueError):
                raise tokens
            row, lost = self._cut(tokens)
        except ValueError as error:
            self._note_bad(item, error)
            return None
        noted.note("too_long", item.place, row is None)
        if row:
            noted.note("cut", item.place, len(row.ids) < len(tokens.ids))
            noted.note("answers_cut", item.place, lost > 0)
            noted.note("unended", item.place, tokens.unended > 0)
            noted.note("template_words", item.place, tokens.template_words)
        return row

    def _cut(self, tokens: Tokens) -> tuple[Tokens | None, int]:
        """The row within max_length, None where a longer one is skipped, and the supervised tokens it lost.

        Raises ValueError where nothing supervised is left, and for a longer row where that is an error.
        """
        supervised = len(tokens.labels) - tokens.labels.count(-100)
        if not supervised:
            raise ValueError("nothing in it is supervised")
        limit, length = self.max_length, len(tokens.ids)
        if length <= limit:
            return tokens, 0
        if self.conf.on_long_row == "error":
            raise ValueError(
                f"{length} tokens are above trainer.max_length={limit}: raise it, or set data.on_long_row=cut"
            )
        if self.conf.on_long_row == "skip":
            return None, 0
        row = replace(tokens, ids=tokens.ids[:limit], labels=tokens.labels[:limit])
        left = limit - row.labels.count(-100)
        if not left:
            raise ValueError(
                f"no supervised token is left within trainer.max_length={limit} of its {length} tokens; raise it, or set "
                "data.on_long_row=skip"
            )
        return row, supervised - left

    def _note_bad(self, item: Item, error: ValueError) -> None:
        self.bad.note("bad", f"{item.place}: {error}.")

    def _refuse_bad(self) -> None:
        count, first = self.bad.counts["bad"], self.bad.first.get("bad", [])
        if count and self.conf.on_bad_row == "error":
            raise bad_rows(first, count - len(first))
        if count > self.conf.max_bad_share * self.seen:
            limit = f"data.max_bad_share={self.conf.max_bad_share:g}"
            said = f"{count} of {self.seen} rows can't be trained on, more than {limit} allows; the first:"
            raise ConfigError([said, *first[:NAMED]])

    def _without_validation(self, order: np.ndarray) -> np.ndarray:
        """`order` without the training rows that are validation rows too. Raises ConfigError where a split is empty."""
        training, validation = self.writers["training"], self.writers.get("validation")
        if validation and not len(validation.digests):
            raise ConfigError(
                f"No row is left to validate on, of {self.seen}: set a larger data.validation_share, or name other rows."
            )
        if validation:
            both = np.isin(training.digests, validation.digests)
            self.noted["training"].note_rows("also_in_validation", training, np.flatnonzero(both), int(both.sum()))
            order = order[~both[order]]
        if not len(order):
            counts = self.noted["training"].counts
            reasons = {
                "can't be trained on": self.bad.counts["bad"],
                "above trainer.max_length": counts["too_long"],
                "for validation": len(validation.digests) if validation else 0,
                "validation rows too": counts["also_in_validation"],
            }
            why = ", ".join(f"{count} {reason}" for reason, count in reasons.items() if count)
            raise ConfigError(f"No row is left to train on, of {self.seen}{': ' if why else ''}{why}.")
        return order

    def _report(self, split: str, order: np.ndarray) -> dict[str, Any]:
        writer, noted = self.writers[split], self.noted[split]
        rows = np.sort(order) if split == "training" else np.arange(len(writer.digests))
        lengths = writer.kept("length")[rows]
        _, first, inverse = np.unique(writer.digests[rows], return_index=True, return_inverse=True)
        repeats = rows[first[inverse] != np.arange(len(rows))]
        noted.note_rows("duplicates", writer, repeats, len(repeats))
        edges = np.floor(np.linspace(0, self.max_length, BINS + 1)) + 0.5  # a length is a whole number
        return {
            "rows": len(rows),
            "tokens": int(lengths.sum()),
            "supervised_tokens": int(writer.kept("supervised")[rows].sum()),
            "longest": int(lengths.max()),
            "lengths": np.histogram(lengths, edges)[0].tolist(),
            "sources": list(writer.files),
            "found": dict(noted.counts),
            "first": noted.first,
        }


def _in_order(part: Part, positions: list[int]) -> np.ndarray:
    """The rows that were written, from 0, in the order that data.shuffle_seed gives them."""
    if part.conf.shuffle_seed is None or part.order is None:
        return np.arange(len(positions))
    rank = np.empty(part.source.count, np.int64)
    rank[part.order] = np.arange(len(part.order))
    return np.argsort(rank[positions], kind="stable")
