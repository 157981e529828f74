"""An lm-eval task over rows of the user's, whose prompts are rendered as training renders the same rows."""

from collections.abc import Sequence
from copy import deepcopy
from functools import lru_cache
from itertools import chain
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.api.utils import maybe_delimit
from transformers import PreTrainedTokenizerBase

from hydratune.build.own_rows import Document, OwnRows
from hydratune.build.rendering import Renderer
from hydratune.config.schema import RunError
from hydratune.formats import Chat

BETWEEN = "\n\n"  # system message, examples and question in one text
PERPLEXITY = ("word_perplexity", "byte_perplexity", "bits_per_byte")


class _Documents(list[Document]):
    """What ConfigurableTask takes for a dataset: the library datasets would give each row the keys of all others."""

    features = dict.fromkeys(("prompt", "answer", "choices"))


class OwnTask(ConfigurableTask):
    """A task whose prompts are the rows' own conversations, up to the last answer."""

    def __init__(self, config: dict[str, Any], rows: OwnRows, examples: OwnRows | None) -> None:
        self.dataset = {"test": _Documents(rows.docs), "examples": _Documents(examples.docs if examples else [])}
        self.places = rows.places
        super().__init__(config=config)

    def download(self, *args: Any, **kwargs: Any) -> None:
        """The rows are there."""

    def ask(
        self,
        doc: Document,
        examples: Sequence[Document],
        system: str | None,
        tokenizer: PreTrainedTokenizerBase | None,
        multiturn: bool,
    ) -> tuple[str, str]:
        """The prompt, and what stands between it and the answer; through `tokenizer`'s chat template, if there is one.

        Raises ValueError where the template doesn't take it, in words that finish the sentence "row 3: ...".
        """
        own, turns = _parted(doc)
        system = maybe_delimit(system, own, BETWEEN)
        shown = "".join(f"{one['prompt']}{one['delimiter']}{one['answer']}{BETWEEN}" for one in examples)
        if tokenizer is None or not turns:
            if doc.get("tools"):
                raise ValueError("its tools need the chat template: set benchmark.apply_chat_template=true")
            return maybe_delimit(system, shown + doc["prompt"], BETWEEN), doc["delimiter"]
        if multiturn:
            turns = [*chain.from_iterable(_parted(one)[1] for one in examples), *turns]
        else:
            turns = [{**turns[0], "content": shown + turns[0]["content"]}, *turns[1:]]
        if system:
            turns = [{"role": "system", "content": system}, *turns]
        (made,) = _renderer(tokenizer).rendered([Chat(turns, len(turns) - 1, doc.get("tools"))], "last")
        if isinstance(made, ValueError):
            raise made
        text, [(start, end)] = made
        words = text.find(doc["answer"], start, end)
        if words < 0:
            raise ValueError("the chat template changes the words of its answer: set another model.chat_template")
        lead = text[start:words]  # what the template has the model write first
        before = lead.rstrip()
        return text[:start] + before, lead[len(before) :]

    def fewshot_context(
        self,
        doc: Document,
        num_fewshot: int,
        system_instruction: str | None = None,
        apply_chat_template: bool = False,
        fewshot_as_multiturn: bool = False,
        chat_template: Any = None,
        **_: Any,
    ) -> tuple[str, str]:
        """As `ask` gives it. Raises RunError."""
        own = doc if self.fewshot_cfg.split == self.config.test_split else None
        examples = self.sampler.sample(n=num_fewshot, eval_doc=own) if num_fewshot else []
        # lm-eval hands on a method of the model's, which would take messages, but neither tools nor an answer
        tokenizer = chat_template.__self__.tokenizer if apply_chat_template else None
        try:
            return self.ask(doc, examples, system_instruction, tokenizer, fewshot_as_multiturn)
        except ValueError as error:
            raise RunError(f"{self.places[self.dataset['test'].index(doc)]}: {error}.") from None

    def construct_requests(self, doc: Document, ctx: tuple[str, str], **kwargs: Any) -> list[Instance]:
        (prompt, delimiter), kind = ctx, self.OUTPUT_TYPE
        arguments: list[tuple[Any, ...]]
        if kind == "multiple_choice":
            kind, arguments = "loglikelihood", [(prompt, delimiter + choice) for choice in doc["choices"]]
        elif kind == "generate_until":
            arguments = [(prompt, deepcopy(self.config.generation_kwargs))]
        else:
            arguments = [(doc["answer"],) if kind == "loglikelihood_rolling" else (prompt, delimiter + doc["answer"])]
        metadata = kwargs["metadata"]
        return [
            Instance(request_type=kind, doc=doc, arguments=one, idx=number, metadata=metadata)
            for number, one in enumerate(arguments)
        ]

    def process_results(self, doc: Document, results: Sequence[Any]) -> dict[str, Any]:
        (first, *_) = results
        if self.OUTPUT_TYPE == "generate_until":
            return dict(super().process_results(doc, [first.strip()]))  # templates write whitespace around an answer
        if self.OUTPUT_TYPE == "loglikelihood":
            answer, (likelihood, _) = doc["answer"], first
            bytes_ = self.count_bytes(answer)
            return dict(
                zip(PERPLEXITY, [(likelihood, n) for n in (self.count_words(answer), bytes_, bytes_)], strict=True)
            )
        return dict(super().process_results(doc, results))


@lru_cache(maxsize=1)
def _renderer(tokenizer: PreTrainedTokenizerBase) -> Renderer:
    return Renderer(tokenizer)


def _parted(doc: Document) -> tuple[str, list[dict[str, Any]]]:
    """Its system message, and the other turns; of plain text neither."""
    turns = doc.get("messages", [])
    return (turns[0]["content"], turns[1:]) if turns and turns[0]["role"] == "system" else ("", turns)
