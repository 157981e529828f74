"""Conversations and texts -> token ids and labels, through any chat template, with or without generation markers."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from hydratune.config.schema import ConfigError
from hydratune.formats import Chat, Text

MARK = re.compile("\ue000(\\d+)\ue001")  # stands for an assistant's content; of Unicode's private use area
EMPTY_THOUGHT = re.compile(r"\s*<think>\s*</think>\n*")
PROMPTED_THOUGHT = re.compile(r"<think>\s*(?:</think>\s*)?$")  # what some templates end a prompt with
REFUSED = (TemplateError, ValueError, TypeError)  # what a template raises that doesn't fit the conversation
Span = tuple[int, int]
Rendered = tuple[str, list[Span]]  # a row's text, and its supervised characters


@dataclass(frozen=True)
class Tokens:
    """One row: ids and labels of equal length (-100: not supervised), and what is remarkable about it."""

    ids: list[int]
    labels: list[int]
    unended: int = 0  # supervised turns that no special token ends
    template_words: bool = False  # a message holds one of the template's own special tokens as text


class Renderer:
    """What a tokenizer and its chat template make of a row.

    Which characters the assistant wrote is found by rendering twice, once with marks in place of what it said. Where
    that can't tell (tool calls, a reasoning that the template moves), an assistant's turn begins where the prompt for
    it ends, as in generation. Either way its end-of-turn token belongs to a turn, and an empty think block does not.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ConfigError(
                f"The tokenizer {type(tokenizer).__name__} can't tell which characters a token stands for (it is no fast tokenizer), so what is supervised can't be found: use a model with a tokenizer.json."
            )
        self.tokenizer, self.backend = tokenizer, backend
        backend.no_truncation()
        backend.no_padding()
        bos = tokenizer.bos_token_id
        self.bos = bos if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else None
        added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        self.special = tuple(sorted({*added, *tokenizer.all_special_tokens} - {""}, key=len, reverse=True))
        self.one = "|".join(map(re.escape, self.special)) or "(?!)"
        self.stop_here, self.stop_last = re.compile(rf"\s*({self.one})(\s*)"), re.compile(rf"\s*(?:{self.one})\s*$")

    def render(self, turns: list[Any], tools: list[Any] | None = None, *, prompt: bool = False) -> str:
        """The template's text; with `prompt`, up to where the assistant is to answer."""
        made = self.tokenizer.apply_chat_template(turns, tools=tools, tokenize=False, add_generation_prompt=prompt)
        return str(made)

    @cached_property
    def _probe(self) -> tuple[str, str, list[str]]:
        """Of a short conversation: what the template writes before and after the answer, and its special tokens."""
        turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "\ue0000\ue001"}]
        try:
            prompt, whole = self.render(turns[:1], prompt=True), self.render(turns)
        except REFUSED:
            return "", "", []
        words = sorted({found[1] for found in self.stop_here.finditer(whole)})
        before, mark, after = whole.partition(turns[1]["content"])
        begins = _begins(whole, prompt)
        return before[begins:] if mark and begins is not None else "", after, words

    @property
    def stop(self) -> str | None:
        """The special token that ends an assistant's turn, the second where two do in a row; None where none does."""
        found = re.match(rf"\s*(?:{self.one})*({self.one})", self._probe[1])
        return found[1] if found else None

    def as_served(self, chat: Chat) -> bool:
        """Whether the last answer, as it is supervised, begins where the prompt ends that the model gets when it is asked."""
        with suppress(*REFUSED):
            prompt = self.render(chat.messages[:-1], chat.tools, prompt=True)
            (made,) = self.rendered([chat], "last")
            if isinstance(made, ValueError) or not made[0].startswith(prompt):
                return False
            return all(start <= len(prompt) for start, _ in made[1])  # none where the row itself weighs the answer 0
        return False

    def tokens(self, rows: Sequence[Chat | Text], loss: str) -> list[Tokens | ValueError]:
        """Each row's tokens, or what is wrong with it, in words that finish the sentence "row 3: ..."."""
        rendered = iter(self.rendered([row for row in rows if isinstance(row, Chat)], loss))
        made = [next(rendered) if isinstance(row, Chat) else _plain(row, loss) for row in rows]
        texts = [one[0] for one in made if not isinstance(one, ValueError)]
        encoded = iter(self.backend.encode_batch(texts, add_special_tokens=False))
        return [
            one if isinstance(one, ValueError) else self._labelled(next(encoded), row, one, loss)
            for row, one in zip(rows, made, strict=True)
        ]

    def _labelled(self, encoding: Any, row: Chat | Text, made: Rendered, loss: str) -> Tokens | ValueError:
        (text, spans), ids = made, encoding.ids
        labels = list(ids) if loss == "all" else [-100] * len(ids)
        for start, end in spans:
            first, last = self._token_range(encoding, text, start, end)
            labels[first:last] = ids[first:last]
        eos, bos = self.tokenizer.eos_token_id, self.tokenizer.bos_token_id
        if isinstance(row, Text) and eos not in (None, *ids[-1:]):
            ids, labels = [*ids, eos], [*labels, eos]
        if self.bos is not None and ids[:1] != [self.bos]:
            ids, labels = [self.bos, *ids], [self.bos if loss == "all" else -100, *labels]
        if bos not in (None, eos) and ids[:2] == [bos, bos]:
            return ValueError(f"it begins with two {self.tokenizer.bos_token}: leave it out of the text")
        if isinstance(row, Text):
            return Tokens(ids, labels)
        unended = sum(not text[start:end].rstrip().endswith(self.special) for start, end in spans)
        words = any(word in turn["content"] for turn in row.messages for word in self._probe[2])
        return Tokens(ids, labels, unended, words)

    def _token_range(self, encoding: Any, text: str, start: int, end: int) -> Span:
        """The tokens that hold any of the characters `start` to `end`."""
        place, every = encoding.token_to_chars, range(len(encoding))
        first = bisect_right(every, start, key=lambda token: place(token)[1])
        # a token of nothing but spaces may have been given none of them: it stands where they end
        last = bisect_left(every, end, first, key=lambda token: place(token)[0] - (place(token)[0] == place(token)[1]))
        # a special token may swallow the whitespace around it, and so the first of an answer's
        while first < last and place(first)[0] < start and encoding.tokens[first].strip() in self.special:
            first += 1
        # the whitespace after an end-of-turn token may be one with the next turn's first letter
        while first < last and place(last - 1)[1] > end and text[place(last - 1)[0] : end].isspace():
            last -= 1
        return first, last

    def rendered(self, chats: list[Chat], loss: str) -> list[Rendered | ValueError]:
        """Each conversation as text, and what is supervised in it, or what is wrong with it."""
        texts = self._all([(chat.messages, chat.tools) for chat in chats])
        marked = texts if loss == "all" else self._all([(_marked(chat.messages), chat.tools) for chat in chats])
        made: list[Rendered | ValueError] = []
        for chat, text, other in zip(chats, texts, marked, strict=True):
            try:
                made.append(text if isinstance(text, ValueError) else (text, self._spans(chat, text, other, loss)))
            except REFUSED as error:
                made.append(ValueError(str(error)))
        return made

    def _all(self, chats: list[tuple[list[Any], list[Any] | None]]) -> list[str | ValueError]:
        """The renderings; without tools all at once, which spares the template's set-up for each."""
        with suppress(*REFUSED):  # one of them
            if not any(tools for _, tools in chats):
                return list(self.tokenizer.apply_chat_template([turns for turns, _ in chats], tokenize=False))
        made: list[str | ValueError] = []
        for turns, tools in chats:
            try:
                made.append(self.render(turns, tools))
            except REFUSED as error:
                made.append(ValueError(f"the chat template refuses it: {error}"))
        return made

    def _spans(self, chat: Chat, text: str, marked: str | ValueError, loss: str) -> list[Span]:
        """The supervised characters. Raises ValueError where they can't be found."""
        turns = [n for n, turn in enumerate(chat.messages) if turn["role"] == "assistant"]
        first = {"assistant": 0, "last": turns[-1], "completion": chat.prompt, "all": len(chat.messages)}[loss]
        wanted = [n for n in turns if n >= first and n not in chat.unsupervised]
        spans = None if isinstance(marked, ValueError) else self._by_marks(chat, turns, text, marked)
        spans = spans or self._by_prompts(chat, wanted, text)
        return [spans[n] for n in wanted]

    def _by_marks(self, chat: Chat, turns: list[int], text: str, marked: str) -> dict[int, Span] | None:
        """Each of the assistant's turns -> its characters; None where marks can't tell."""
        parts = MARK.split(marked)  # text, number, text, number, ..., text
        said_elsewhere = any(turn.keys() & {"tool_calls", "reasoning_content"} for turn in chat.messages)
        if said_elsewhere or parts[1::2] != [str(n) for n in turns] or not text.startswith(parts[0]):
            return None
        lead, spans, at = self._probe[0], {}, 0
        for n, before, after in zip(turns, parts[0::2], parts[2::2], strict=False):
            start, content = at + len(before), chat.messages[n]["content"]
            forms = (content, content.strip(), content.lstrip(), content.rstrip())
            said = next((form for form in forms if text.startswith(form + after, start)), None)
            if said is None:
                return None
            at = start + len(said)
            start -= len(lead) if text.endswith(lead, 0, start) else 0
            empty = EMPTY_THOUGHT.match(text, start)
            spans[n] = (empty.end() if empty else start, self._end(text, at))
        return spans

    def _by_prompts(self, chat: Chat, turns: list[int], text: str) -> dict[int, Span]:
        """As _by_marks. Raises ValueError where one of the turns isn't found."""
        spans: dict[int, Span] = {}
        past, at = "", 0  # up to the words of the turn before: as rendered where none follows, and their end in `text`
        for n in turns:
            for tools in (chat.tools, None):  # Mistral's writes the tools before the last question only
                prompt = self.render(chat.messages[:n], tools, prompt=True)
                start = _begins(text, prompt)
                if start is None and prompt.startswith(past):  # `text` leaves out a reasoning before it
                    start = _begins(text, prompt[len(past) :], at)
                if start is not None:
                    break
            else:
                raise ValueError(
                    "the chat template renders a turn differently once others follow; set data.loss=all, or another model.chat_template"
                )
            content, last = chat.messages[n]["content"], n + 1 == len(chat.messages)
            past = text if last else self.render(chat.messages[: n + 1], tools)
            alone = past[start if last else _begins(past, prompt) or 0 :]
            tail = self._probe[1]
            words = alone[: -len(tail)] if tail and alone.endswith(tail) else self.stop_last.sub("", alone)
            if chat.messages[n].get("tool_calls") and words.strip() in ("", content.strip()):
                raise ValueError("the chat template leaves out its tool_calls: set another model.chat_template")
            past = past[: len(past) - len(alone) + len(words)]
            at = self._words_end(text, start, words, content)
            spans[n] = start, self._end(text, at)
        return spans

    def _words_end(self, text: str, start: int, words: str, content: str) -> int:
        """Where the words end that begin at `start`: once turns follow, templates drop the reasoning `words` begin with."""
        for left in chain((words, content), (words[k:] for k in range(1, len(words)))):
            at = start + len(left)
            if text.startswith(left, start) and (left is words or self._end(text, at) > at):
                return at
        raise ValueError("the end of an assistant's turn can't be found: set data.loss=all")

    def _end(self, text: str, at: int) -> int:
        """Where the turn ends whose words end at `at`: its end-of-turn token and the whitespace after it are its own."""
        tail = self._probe[1]
        if tail and text.startswith(tail, at):
            return at + len(tail)
        stop, usual = self.stop_here.match(text, at), self.stop_here.match(tail)
        return stop.end(1) + (len(usual[2]) if usual and stop[2].startswith(usual[2]) else 0) if stop else at


def _begins(text: str, prompt: str, at: int = 0) -> int | None:
    """Where the answer to `prompt` begins in `text`, after an empty think block; None where `prompt` isn't at `at`."""
    thought = PROMPTED_THOUGHT.search(prompt)
    begins = at + (thought.start() if thought else len(prompt))
    if not text.startswith(prompt[: begins - at], at):
        return None
    empty = EMPTY_THOUGHT.match(text, begins)
    return empty.end() if empty else at + len(prompt) if text.startswith(prompt, at) else begins


def _marked(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [m | ({"content": f"\ue000{n}\ue001"} if m["role"] == "assistant" else {}) for n, m in enumerate(turns)]


def _plain(row: Text, loss: str) -> Rendered | ValueError:
    if loss != "all" and not row.prompt:
        return ValueError(f"plain text has no turns to supervise with data.loss={loss}: set data.loss=all")
    return row.prompt + row.completion, [(len(row.prompt), len(row.prompt) + len(row.completion))]
