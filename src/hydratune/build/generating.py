"""Texts after prompts, as lm-eval asks for them: what all prompts begin with is computed once, and each row stops by itself."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from transformers import DynamicCache, StoppingCriteria, StoppingCriteriaList, set_seed
from transformers.cache_utils import DynamicLayer

from hydratune.build.attention import fit_in_line, steady_length
from hydratune.build.decoding import PARTS, Decoder, decodes_right, is_greedy
from hydratune.build.halving import half, in_batches
from hydratune.build.scoring import CELLS, ROWS, attempted, common, same_logits, selects_logits, takes_lines

WORTH = 16  # tokens in common, below which nothing is spared


class Generator:
    """Generates in batches, longest prompts first, padded on the left."""

    def __init__(self, model: Any, tokenizer: Any, batch_size: int | None) -> None:
        """`batch_size`: prompts at once; None: as many as the memory holds."""
        self.model, self.tokenizer, self.size = model, tokenizer, batch_size
        self.selects = selects_logits(model)

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[list[int]],
        new_tokens: int,
        stops: Sequence[str],
        options: dict[str, Any],
        seeds: Sequence[int],
        done: Callable[[dict[int, str]], None],
    ) -> None:
        """`done` is told the texts of each batch by the prompts' numbers. A batch draws by the seed of its first prompt."""
        order = sorted(range(len(prompts)), key=lambda number: (-len(prompts[number]), prompts[number]))
        longest = max(map(len, prompts)) + new_tokens
        # padding between the beginning and the rest would count as tokens of a window; beams change their rows
        plain = fit_in_line(self.model.config, longest) and options.get("num_beams", 1) == 1
        if plain and self._decoded(prompts, order, new_tokens, stops, options, done):
            return
        shared, cache = self._beginning(prompts) if plain else (0, None)

        def fits(some: Sequence[int]) -> bool:
            longest = len(prompts[some[0]]) + new_tokens
            if longest > steady_length(self.model.config):
                return False
            cells = len(some) * longest
            return len(some) <= self.size if self.size else len(some) <= ROWS and cells <= CELLS

        def work(some: Sequence[int]) -> None:
            rests = self.tokenizer.pad(
                {"input_ids": [prompts[number][shared:] for number in some]}, padding_side="left"
            )
            first = [prompts[some[0]][:shared]] * len(some)
            ids = torch.tensor([a + b for a, b in zip(first, rests["input_ids"], strict=True)])
            mask = torch.tensor([[1] * shared + row for row in rests["attention_mask"]])
            before = {}
            if cache is not None:
                before["past_key_values"] = deepcopy(cache)
                before["past_key_values"].batch_repeat_interleave(len(some))
            set_seed(seeds[some[0]])
            made = self.model.generate(
                input_ids=ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                max_new_tokens=new_tokens,
                stopping_criteria=StoppingCriteriaList([_Stops(_Words(self.tokenizer, stops), ids.shape[1])]),
                pad_token_id=self.tokenizer.pad_token_id,
                use_cache=True,
                **before,
                **options,
            )
            texts = self.tokenizer.batch_decode(made[:, ids.shape[1] :], skip_special_tokens=True)
            done(dict(zip(some, texts, strict=True)))

        in_batches(order, fits, work)

    def _decoded(
        self,
        prompts: Sequence[list[int]],
        order: Sequence[int],
        new_tokens: int,
        stops: Sequence[str],
        options: dict[str, Any],
        done: Callable[[dict[int, str]], None],
    ) -> bool:
        """Whether it's all done, by decoding in line, which does without padding and without rows that have ended."""
        if not takes_lines(self.model) or not is_greedy(self.model, options):
            return False
        longest = len(prompts[order[0]]) + new_tokens
        slots = min(len(prompts), self.size or max(min(ROWS, CELLS // longest), 1))
        low, missing = min(prompts), list(order)
        shared = common(low, max(prompts), max(min(map(len, prompts)) - PARTS, 0))
        words = _Words(self.tokenizer, stops)
        ends = options.get("eos_token_id", self.model.generation_config.eos_token_id)
        ends = ends if isinstance(ends, list) else [ends]

        def ended(made: list[int]) -> bool:
            return made[-1] in ends or words.held([made])[0]

        def told(made: dict[int, list[int]]) -> None:
            done({number: self.tokenizer.decode(tokens, skip_special_tokens=True) for number, tokens in made.items()})
            missing[:] = [number for number in missing if number not in made]

        if not decodes_right(self.model, prompts, shared):
            return False
        while missing:
            try:
                Decoder(self.model, prompts, shared, slots, new_tokens).decode(list(missing), ended, told)
            except (MemoryError, RuntimeError) as error:
                slots = half(slots, error)
        return True

    def _beginning(self, prompts: Sequence[list[int]]) -> tuple[int, DynamicCache | None]:
        """How many tokens all prompts begin with, and keys and values of them; 0 where that spares nothing or is not exact."""
        low = min(prompts)
        shared = common(low, max(prompts), min(map(len, prompts)) - 1)
        if len(prompts) < 2 or shared < WORTH:
            return 0, None
        known = DynamicCache(config=self.model.config)
        ids = torch.tensor([low], device=self.model.device)
        last = {"logits_to_keep": 1} if self.selects else {}

        def compute() -> bool:
            self.model(input_ids=ids[:, :shared], past_key_values=known, use_cache=True, **last)
            if not all(isinstance(layer, DynamicLayer) for layer in known.layers):
                return False  # a state that padding would change
            cached = self.model(input_ids=ids[:, shared:], past_key_values=deepcopy(known), use_cache=True, **last)
            alone = self.model(input_ids=ids, use_cache=False, **last)
            return same_logits(self.model, cached.logits[0, -1].float(), alone.logits[0, -1].float())

        return (shared, known) if attempted(compute) else (0, None)


class _Words:
    """Stop words of a task."""

    def __init__(self, tokenizer: Any, words: Sequence[str]) -> None:
        self.tokenizer, self.words = tokenizer, [word for word in words if word]
        # a word may come in other tokens than those that it is encoded as
        self.back = 2 + max((len(tokenizer.encode(word, add_special_tokens=False)) for word in self.words), default=0)

    def held(self, rows: Sequence[list[int]]) -> list[bool]:
        """Whether each row of tokens holds one of them at its end."""
        tails = self.tokenizer.batch_decode([row[-self.back :] for row in rows])
        return [any(word in tail for word in self.words) for tail in tails]


class _Stops(StoppingCriteria):
    """Tells of each row whether it holds one of the stop words; lm-eval's own waits for all rows to hold the same one."""

    def __init__(self, words: _Words, prompt: int) -> None:
        self.words, self.prompt = words, prompt

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        made = input_ids[:, max(self.prompt, input_ids.shape[1] - self.words.back) :]
        return torch.tensor(self.words.held(made.tolist()), device=input_ids.device)
