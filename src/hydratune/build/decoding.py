"""Greedy decoding on a CPU: rows in one line, each with a past of its own; who has ended makes room for the next."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from hydratune.build.attention import Past, each_row_alone
from hydratune.build.scoring import LINE, attempted, same_logits

PARTS = 4  # of a prompt, in a proof
GUESSED = 32  # tokens of a line, with those that are guessed
MOST = 7  # of a row

# what a generation's settings may hold when it is greedy, and decides no token of it
PLAIN = {
    "_from_model_config", "bos_token_id", "do_sample", "eos_token_id", "max_length", "max_new_tokens", "min_p",
    "output_attentions", "output_hidden_states", "pad_token_id", "temperature", "top_k", "top_p", "transformers_version", "trust_remote_code", "typical_p", "use_cache",
}  # fmt: skip


def is_greedy(model: Any, options: dict[str, Any]) -> bool:
    """Whether each token is the likeliest one, and nothing else is asked for."""
    settings = model.generation_config.to_diff_dict() | options
    return options.get("do_sample") is False and settings.keys() <= PLAIN


class _Row:
    """One that is being decoded, with what has come after each two tokens in it."""

    def __init__(self, number: int, prompt: list[int]) -> None:
        self.number, self.made, self.last = number, list[int](), prompt[-2:]
        self.after = dict(zip(pairwise(prompt), prompt[2:], strict=False))

    def add(self, token: int, common: dict[tuple[int, int], int]) -> None:
        if len(self.last) == 2:
            self.after[self.last[0], self.last[1]] = common[self.last[0], self.last[1]] = token
        self.last = [*self.last, token][-2:]
        self.made.append(token)

    def guess(self, most: int, common: dict[tuple[int, int], int]) -> list[int]:
        """Tokens that may come next: what came last time, in this row or else in any."""
        found = list(self.last)
        while len(found) < most + 2:
            two = found[-2], found[-1]
            token = self.after.get(two, common.get(two))
            if token is None:
                break
            found.append(token)
        return found[2:]


class Decoder:
    """Goes on from prompts that begin with the same `shared` tokens, `slots` of them at once.

    Where few rows go through, most of a step is the weights' way through memory: tokens that are guessed go with them, and
    those that turn out to be the likeliest are kept.
    """

    def __init__(self, model: Any, prompts: Sequence[list[int]], shared: int, slots: int, new_tokens: int) -> None:
        self.model, self.prompts, self.shared, self.new_tokens = model, prompts, shared, new_tokens
        self.past = Past(slots, max(map(len, prompts)) + new_tokens)

    @torch.no_grad()
    def decode(
        self, numbers: Iterable[int], ended: Callable[[list[int]], bool], done: Callable[[dict[int, list[int]]], None]
    ) -> None:
        """`done` is told the tokens after the prompts of these numbers, of each as soon as they have `ended`."""
        waiting, rows, common = deque(numbers), list[_Row](), dict[tuple[int, int], int]()
        while waiting or rows:
            most = min(GUESSED // len(rows) - 1, MOST) if rows else 0
            line = [[row.made[-1], *row.guess(min(most, self.new_tokens - len(row.made) - 1), common)] for row in rows]
            wanted = [len(tokens) for tokens in line]
            while waiting and len(rows) < self.past.slots:
                rest = self.prompts[waiting[0]][self.shared :]
                if line and sum(map(len, line)) + len(rest) > LINE:
                    break
                rows.append(_Row(waiting[0], self.prompts[waiting.popleft()]))
                line.append(rest)
                wanted.append(1)
            found = self.next(line, wanted).argmax(-1).split(wanted)
            over = []
            for place, (row, tokens, likeliest) in enumerate(zip(rows, line, found, strict=True)):
                guessed = tokens[len(tokens) - len(likeliest) + 1 :]
                for kept, token in enumerate(likeliest.tolist()):
                    row.add(token, common)
                    if ended(row.made) or len(row.made) == self.new_tokens:
                        over.append(place)
                        break
                    if kept < len(guessed) and guessed[kept] != token:
                        self.past.lengths[place] -= len(guessed) - kept
                        break
            if over:
                done({rows[place].number: rows[place].made for place in over})
            for place in reversed(over):
                self.past.drop(place)
                rows[place] = rows[-1]
                rows.pop()

    def next(self, line: Sequence[list[int]], wanted: Sequence[int]) -> Tensor:
        """Logits behind the `wanted` last tokens of each row of the line; rows that the past doesn't know are new."""
        if self.shared and not self.past.beginning:
            self._forward([self.prompts[0][: self.shared]], [1])
            self.past.begin()
        return self._forward(line, wanted)

    def _forward(self, line: Sequence[list[int]], wanted: Sequence[int]) -> Tensor:
        past, lengths = self.past, [len(row) for row in line]
        past.lengths += [past.beginning] * (len(line) - len(past.lengths))
        firsts = past.lengths
        ends = [first + new for first, new in zip(firsts, lengths, strict=True)]
        positions = [place for first, end in zip(firsts, ends, strict=True) for place in range(first, end)]
        masks = [
            torch.ones(new, end, dtype=torch.bool).tril(end - new) if 1 < new < end else None
            for new, end in zip(lengths, ends, strict=True)
        ]
        keep = [
            end - left for end, count in zip(accumulate(lengths), wanted, strict=True) for left in range(count, 0, -1)
        ]
        with each_row_alone(self.model.config):
            logits: Tensor = self.model(
                input_ids=torch.tensor([[token for row in line for token in row]]),
                position_ids=torch.tensor([positions]),
                seq_lengths=lengths,
                seq_masks=masks,
                seq_past=past,
                logits_to_keep=torch.tensor(keep),
                use_cache=False,
            ).logits[0]
        past.lengths = ends
        return logits


@torch.no_grad()
def decodes_right(model: Any, prompts: Sequence[list[int]], shared: int) -> bool:
    """Whether prompts that go through in parts, beside others, have the logits that they have alone, up to rounding."""
    two = (sorted(prompts, key=len)[:2] * 2)[:2]
    if len(two[0]) < shared + PARTS:
        return False
    one, other = (prompt[shared:] for prompt in two)
    decoder = Decoder(model, two, shared, len(two), 1)
    lines = [[one[:-3]], [one[-3:-2], other[:-2]], [one[-2:-1], other[-2:-1]], [[one[-1], one[0]], other[-1:]]]
    found = attempted(lambda: [decoder.next(line, list(map(len, line))) for line in lines])
    if found is None:
        return False
    last = {"logits_to_keep": 1, "use_cache": False}
    alone = [model(input_ids=torch.tensor([prompt]), **last).logits[0, -1].float() for prompt in two]
    return all(same_logits(model, ours.float(), right) for ours, right in zip(found[-1][::2], alone, strict=True))
