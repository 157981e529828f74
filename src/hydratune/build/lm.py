"""A model of ours as lm-eval's LM: loaded when the first question comes that the cache has no answer to."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from hydratune.build.answers import Answers, key_of
from hydratune.build.endings import ends_of
from hydratune.build.generating import Generator
from hydratune.build.scoring import Pair, Score, Scorer
from hydratune.config.schema import RunError


class _NotLoaded:
    """What HFLM asks of a model when it is made."""

    def __init__(self, config: Any, device: str) -> None:
        self.config, self.device, self.name_or_path = config, torch.device(device), config._name_or_path


class EvaluatedLM(HFLM):
    """Answers by `load()`'s model, and from `answers`.

    Tokens, windows and texts are HFLM's own; batches are not, since its wait for each row to meet the same stop word,
    and compute a context anew for each continuation.
    """

    def __init__(
        self,
        load: Callable[[], Any],
        settings: Any,
        device: str,
        tokenizer: Any,
        answers: Answers,
        batch_size: int | None,
        max_length: int,
        say: Callable[[str], None],
        stop: int | None = None,
    ) -> None:
        """`settings`: transformers' configuration of the model. `batch_size`: None lets the memory decide.

        `stop`: the token that ends a turn in the chat template, where the questions go through it.
        """
        super().__init__(
            pretrained=cast(Any, _NotLoaded(settings, device)),
            tokenizer=tokenizer,
            batch_size=batch_size or 1,
            max_length=max_length,
        )
        self.load, self.answers, self.size, self.say, self.stop = load, answers, batch_size, say, stop
        self.sampling: tuple[int, int] = (0, 0)  # the seed, and which of several samplings is asked for
        self._cut: set[str] = set()
        self.asked = self.computed = 0
        self._scorer: Scorer | None = None

    @property
    def scorer(self) -> Scorer:
        """With the model, which is loaded where it wasn't."""
        if self._scorer is None:
            self._model = self.load()
            self._scorer = Scorer(self._model, self.size, self.max_length)
        return self._scorer

    @property
    def prompts_cut(self) -> int:
        """How many of what was asked were too long, and lost their beginnings, now or when they were answered."""
        return len(self._cut)

    def get_model_info(self) -> dict[str, Any]:
        """HFLM's would ask the hub."""
        return {"model_dtype": str(getattr(self._model, "dtype", "")), "model_answers": self.answers.folder.name}

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """As in training. HFLM would leave a system message out that the template refuses, and only log it."""
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    chat_history,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                )
            )
        except Exception as error:  # a template may raise anything
            roles = ", ".join(turn["role"] for turn in chat_history[:4])
            said = " ".join(str(error).split())[:200].rstrip(".")
            raise RunError(
                f"The chat template refuses a prompt of this task ({roles}, …): {said}. Set "
                "benchmark.apply_chat_template=false, or another model.chat_template."
            ) from None

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Score]:
        """(nats, whether greedy decoding gives the continuation) of each (context, continuation)."""
        encoded: dict[str, Pair] = {}

        def compute(keys: Sequence[str], questions: dict[str, Any], keep: Callable[[dict[str, Any]], None]) -> None:
            encoded.update((key, self._pair(*questions[key])) for key in keys)
            self._note_cut([questions[key] for key in keys if sum(map(len, encoded[key])) > self.max_length + 1])
            pairs = [encoded[key] for key in keys]
            self.scorer.score(pairs, lambda found: keep({keys[number]: score for number, score in found.items()}))

        return [(score[0], bool(score[1])) for score in self._answered("loglikelihood", requests, compute)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Nats of each whole text, in windows of the model's length that share nothing."""

        def compute(keys: Sequence[str], questions: dict[str, Any], keep: Callable[[dict[str, Any]], None]) -> None:
            windows = [(key, window) for key in keys for window in self._windows(questions[key][0])]
            missing = Counter(key for key, _ in windows)
            sums = dict.fromkeys(keys, 0.0)
            keep({key: 0.0 for key in keys if not missing[key]})  # of an empty text

            def done(found: dict[int, Score]) -> None:
                for number, (likelihood, _) in found.items():
                    owner = windows[number][0]
                    sums[owner] += likelihood
                    missing[owner] -= 1
                owners = dict.fromkeys(windows[number][0] for number in found)
                keep({owner: sums[owner] for owner in owners if not missing[owner]})

            self.scorer.score([window for _, window in windows], done)

        return [float(answer) for answer in self._answered("loglikelihood_rolling", requests, compute)]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text after each context, up to the first stop word."""

        def compute(keys: Sequence[str], questions: dict[str, Any], keep: Callable[[dict[str, Any]], None]) -> None:
            groups: dict[str, list[str]] = {}
            for key in keys:
                groups.setdefault(json.dumps(questions[key][1], sort_keys=True, default=str), []).append(key)
            for group in groups.values():
                self._generate(group, questions, keep)

        return [str(answer) for answer in self._answered("generate_until", requests, compute)]

    def _answered(self, kind: str, requests: Iterable[Instance], compute: Callable[..., None]) -> list[Any]:
        """The answers in the order of `requests`; what the cache lacks is computed, each question once."""
        questions: dict[str, Any] = {}
        keys = []
        again: dict[str, int] = {}
        for request in requests:
            question: list[Any] = [kind, *request.args]
            if kind == "generate_until" and _samples(request.args[1]):
                first = key_of(question)
                again[first] = again.get(first, 0) + 1
                question += [*self.sampling, again[first]]  # a task may want several answers of one question
            keys.append(key_of(question))
            questions.setdefault(keys[-1], request.args)
        self.asked += len(questions)
        if any(key not in self.answers.known for key in questions):
            with self.answers.alone(
                list(questions), lambda who: self.say(f"  waiting for process {who}, which asks this")
            ):
                self.answers.update()
                missing = [key for key in questions if key not in self.answers.known]
                self.computed += len(missing)
                if missing:
                    compute(missing, questions, self.answers.add)
        self._cut |= {_cut(asked) for asked in questions.values()} & self.answers.known.keys()
        return [self.answers.known[key] for key in keys]

    def _note_cut(self, asked: Sequence[Any]) -> None:
        """Beside their answers, before those are there."""
        if found := {_cut(one): True for one in asked}:
            self.answers.add(found)

    def _pair(self, context: str, continuation: str) -> Pair:
        """As TemplateLM.loglikelihood does it."""
        if context:
            return self._encode_pair(context, continuation)
        tokens = self.tok_encode(continuation, add_special_tokens=False)
        if not tokens:
            raise RunError("A task asks for the likelihood of an empty text: leave the task out, or its empty choices.")
        if self.prefix_token_id != tokens[0]:
            return [self.prefix_token_id], tokens
        return tokens[:1], tokens[1:]

    def _windows(self, text: str) -> list[Pair]:
        windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
        return [make_disjoint_window(window) for window in windows]

    def _generate(self, keys: Sequence[str], questions: dict[str, Any], keep: Callable[[dict[str, Any]], None]) -> None:
        """Of questions with the same generation arguments."""
        options = normalize_gen_kwargs(questions[keys[0]][1], self.max_gen_toks)
        eos = self.tok_decode([self.eot_token_id], skip_special_tokens=False)
        stops = handle_stop_sequences(options.pop("until", None), eos=eos)
        new = options.pop("max_gen_toks")
        whole = options.pop("max_length", None)  # of a prompt and its answer, in place of `new`
        room = self.max_length - new
        if room < 1:
            raise RunError(
                f"A task generates {new} tokens, and the model takes {self.max_length} in all: set "
                f"+benchmark.gen_kwargs.max_gen_toks={self.max_length // 2}."
            )
        own = ends_of(self.scorer.model, None)
        if self.stop is not None and self.stop not in own:
            options.setdefault("eos_token_id", [*own, self.stop])
        if not options.get("temperature") and not options.get("do_sample"):
            options.pop("temperature", None)
            options["do_sample"] = False
        prompts = [self.tok_encode(questions[key][0]) for key in keys]
        self._note_cut([questions[key] for key, prompt in zip(keys, prompts, strict=True) if len(prompt) > room])
        prompts = [prompt[-room:] for prompt in prompts]
        longest = max(map(len, prompts))
        if whole is not None and not longest < whole <= self.max_length:
            raise RunError(
                f"A task has max_length={whole} for a prompt and its answer, where a prompt has {longest} tokens and the "
                f"model takes {self.max_length} in all: write max_gen_toks in its place in the task's file."
            )
        groups: dict[int, list[int]] = {}  # new tokens -> the prompts that get so many
        for number, prompt in enumerate(prompts):  # with `whole`, lm-eval's number is that of the longest of a batch
            groups.setdefault(new if whole is None else whole - len(prompt), []).append(number)
        generator = Generator(self.scorer.model, self.tokenizer, self.size)
        for new_tokens, numbers in groups.items():
            some = [keys[number] for number in numbers]

            def done(texts: dict[int, str], some: Sequence[str] = some) -> None:
                keep({some[number]: postprocess_generated_text(text, stops, None) for number, text in texts.items()})

            generator.generate(
                [prompts[number] for number in numbers], new_tokens, stops, dict(options),
                [int(key[:8], 16) for key in some], done,
            )  # fmt: skip


def _cut(asked: Any) -> str:
    """The key under which it is known that a question was cut, however often it is sampled."""
    return key_of(["cut", *asked])


def _samples(arguments: dict[str, Any]) -> bool:
    return bool(arguments.get("do_sample") or (arguments.get("temperature") and arguments.get("do_sample") is None))
