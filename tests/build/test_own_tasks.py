"""Tasks over the user's own rows: what they ask is what training reads, and lm-eval scores it."""

import json
import logging
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import yaml
from lm_eval import simple_evaluate
from lm_eval.api.registry import METRIC_REGISTRY
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from hydratune.build.own_rows import own_documents
from hydratune.build.own_tasks import build_own_tasks, check_own_tasks
from hydratune.build.rendering import Renderer
from hydratune.build.store import Prepared
from hydratune.build.tokens import build_tokens
from hydratune.config.benchmark_rules import METRICS
from hydratune.config.schema import BenchmarkConf, ConfigError, DataConf
from hydratune.formats import Chat
from tests.build.stock_templates import STOCK
from tests.build.test_rendering import backend, byte_level, conversations, tokenizer_of  # noqa: F401
from tests.conftest import NOUNS, chat_rows

Row = dict[str, Any]


class Recording(HFLM):
    """lm-eval's own model, which notes the tokens that it would give to the weights, and answers without them."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, answer: str = "") -> None:
        self.scored: list[tuple[list[int], list[int]]] = []
        self.pairs: list[tuple[str, str]] = []
        self.prompts: list[str] = []
        self.answer = answer
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=4096)

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        self.pairs += [pair for pair, _, _ in requests]
        self.scored += [(context, continuation) for _, context, continuation in requests]
        return [(-1.0 - number, False) for number, _ in enumerate(requests)]

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        self.prompts += [one.args[0] for one in requests]
        self.arguments = requests[0].args[1]
        return [self.answer] * len(requests)


@pytest.fixture(scope="module")
def model(tiny: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny)


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def call(rows: list[Row], name: str = "test.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return call


def benchmark(entry: Row, **more: Any) -> BenchmarkConf:
    return BenchmarkConf(tasks=["held_out"], own_tasks={"held_out": entry}, **more)


def evaluated(lm: HFLM, conf: BenchmarkConf) -> dict[str, Any]:
    """By lm-eval's own function."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with patch("lm_eval.evaluator.add_env_info"):  # which lists the packages, and takes most of the time
        found = simple_evaluate(
            model=lm, tasks=build_own_tasks(conf), limit=conf.limit, num_fewshot=conf.num_fewshot, bootstrap_iters=0,
            apply_chat_template=conf.apply_chat_template, fewshot_as_multiturn=conf.fewshot_as_multiturn,
            system_instruction=conf.system_instruction, task_manager=TaskManager(include_defaults=False),
        )  # fmt: skip
    assert found
    return dict(found)


def begins_as_trained(tokenizer: PreTrainedTokenizerBase, chat: Chat, whole: list[int]) -> None:
    """That `whole` is the row of training up to the end of its last answer."""
    (row,) = Renderer(tokenizer).tokens([chat], "last")
    assert not isinstance(row, ValueError)
    assert row.ids[: len(whole)] == whole
    answer = chat.messages[-1]["content"].strip()
    assert tokenizer.decode(whole).endswith((answer, answer.replace("\u2581", " ")))
    # what follows is the end of the turn
    assert tokenizer.decode(row.ids[len(whole) :], skip_special_tokens=True).strip() == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", STOCK)
def test_answers_are_scored_where_training_has_them(name: str, backend: str, model: Any, write) -> None:  # noqa: F811
    stock = STOCK[name]
    for adds_bos in [False, True] if stock.bos else [False]:
        words = tokenizer_of(stock, backend, adds_bos)
        if adds_bos and words.decode([words.bos_token_id]) != words.bos_token:
            continue  # DeepSeek's BOS in a tokenizer that it isn't from: lm-eval would double it, and evaluate refuses that
        cases = list(conversations(stock).values())
        conf = benchmark({"kind": "perplexity", "path": write([{"messages": turns} for turns in cases])})
        check_own_tasks(conf, words)
        lm = Recording(model, words)
        evaluated(lm, conf)
        assert len(lm.scored) == len(cases)
        for turns, (context, continuation) in zip(cases, lm.scored, strict=True):
            begins_as_trained(words, Chat(turns, len(turns) - 1), context + continuation)


def test_tools_are_rendered_as_in_training(byte_level: str, model: Any, write) -> None:  # noqa: F811
    words = tokenizer_of(STOCK["qwen2_5"], byte_level)
    tools = [{"type": "function", "function": {"name": "weigh", "description": "Weigh it.", "parameters": {}}}]
    call = {"type": "function", "function": {"name": "weigh", "arguments": {"what": "otter"}}}
    turns: list[Row] = [
        {"role": "user", "content": "How heavy is an otter?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "10 kg"},
        {"role": "assistant", "content": "Ten kilograms."},
    ]
    lm = Recording(model, words)
    evaluated(lm, benchmark({"kind": "perplexity", "path": write([{"messages": turns, "tools": tools}])}))
    ((context, continuation),) = lm.scored
    assert "Weigh it." in words.decode(context) and "10 kg" in words.decode(context)
    begins_as_trained(words, Chat(turns, 3, tools), context + continuation)


@pytest.mark.parametrize("kind", ["perplexity", "multiple_choice", "generate_until"])
def test_what_is_asked_is_a_row_of_the_token_cache(
    kind: str, model: Any, tokenizer: Any, write, tmp_path: Path
) -> None:
    path = write(chat_rows())
    data = DataConf(path=path, loss="last")
    cached = [row["input_ids"] for row in Prepared(build_tokens(data, tokenizer, 512, tmp_path / "cache")).training]
    answers = [row["messages"][-1]["content"] for row in chat_rows()]
    lm = Recording(model, tokenizer)
    choices = {"choices": sorted(set(answers))} if kind == "multiple_choice" else {}
    samples = evaluated(lm, benchmark({"kind": kind, "path": path, **choices}))["samples"]["held_out"]
    ends = tokenizer("</s>\n", add_special_tokens=False)["input_ids"]
    if kind == "generate_until":
        for row, answer, prompt in zip(cached, answers, lm.prompts, strict=True):
            assert lm.tok_encode(prompt) + lm.tok_encode(answer) + ends == row
        return
    right = [
        tokens
        for pair, tokens in zip(lm.pairs, lm.scored, strict=True)
        if kind == "perplexity" or pair in [(one["arguments"][0][0], one["target"]) for one in samples]
    ]
    assert [context + continuation + ends for context, continuation in right] == list(cached)


def chat(question: str, answer: str, system: str | None = None, earlier: tuple[str, str] | None = None) -> Row:
    said = [("system", system), *zip(("user", "assistant"), earlier or (None, None), strict=True)]
    said += [("user", question), ("assistant", answer)]
    return {"messages": [{"role": role, "content": content} for role, content in said if content]}


OTTER = chat("What is otter?", "animal")
FERN = chat("What is fern?", "plant", system="Be brief.", earlier=("Hi?", "Hi."))
EXAMPLE = chat("What is moss?", "plant", system="Be brief.")
CHOICES = {"kind": "multiple_choice", "choices": ["animal", "plant"]}

PROMPTS = {  # settings -> the prompts of OTTER and FERN, as a chat and as plain text
    "nothing": (
        {},
        "<|user|>\nWhat is otter?</s>\n<|assistant|>\n",
        "<|system|>\nBe brief.</s>\n<|user|>\nHi?</s>\n<|assistant|>\nHi.</s>\n<|user|>\nWhat is fern?</s>\n<|assistant|>\n",
        "What is otter?",
        "Be brief.\n\nHi?\n\nHi.\n\nWhat is fern?",
    ),
    "a system message": (
        {"system_instruction": "Hm."},
        "<|system|>\nHm.</s>\n<|user|>\nWhat is otter?</s>\n<|assistant|>\n",
        "<|system|>\nHm.\n\nBe brief.</s>\n<|user|>\nHi?</s>\n<|assistant|>\nHi.</s>\n"
        "<|user|>\nWhat is fern?</s>\n<|assistant|>\n",
        "Hm.\n\nWhat is otter?",
        "Hm.\n\nBe brief.\n\nHi?\n\nHi.\n\nWhat is fern?",
    ),
    "an example": (
        {"num_fewshot": 1},
        "<|user|>\nWhat is moss?</s>\n<|assistant|>\nplant</s>\n<|user|>\nWhat is otter?</s>\n<|assistant|>\n",
        "<|system|>\nBe brief.</s>\n<|user|>\nWhat is moss?</s>\n<|assistant|>\nplant</s>\n"
        "<|user|>\nHi?</s>\n<|assistant|>\nHi.</s>\n<|user|>\nWhat is fern?</s>\n<|assistant|>\n",
        "What is moss? plant\n\nWhat is otter?",
        "Be brief.\n\nWhat is moss? plant\n\nHi?\n\nHi.\n\nWhat is fern?",
    ),
    "an example in the question": (
        {"num_fewshot": 1, "fewshot_as_multiturn": False},
        "<|user|>\nWhat is moss? plant\n\nWhat is otter?</s>\n<|assistant|>\n",
        "<|system|>\nBe brief.</s>\n<|user|>\nWhat is moss? plant\n\nHi?</s>\n<|assistant|>\nHi.</s>\n"
        "<|user|>\nWhat is fern?</s>\n<|assistant|>\n",
        "What is moss? plant\n\nWhat is otter?",
        "Be brief.\n\nWhat is moss? plant\n\nHi?\n\nHi.\n\nWhat is fern?",
    ),
}


@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize("what", PROMPTS)
def test_a_prompt_is_the_row_up_to_its_answer(what: str, template: bool, model: Any, tokenizer: Any, write) -> None:
    settings, *prompts = PROMPTS[what]
    entry = {**CHOICES, "path": write([OTTER, FERN]), "fewshot_path": write([EXAMPLE], "train.jsonl")}
    lm = Recording(model, tokenizer)
    evaluated(lm, benchmark(entry, apply_chat_template=template, **settings))
    space = "" if template else " "
    asked = prompts[:2] if template else prompts[2:]
    assert lm.pairs == [(prompt, space + choice) for prompt in asked for choice in ("animal", "plant")]


@pytest.mark.parametrize("template", [True, False])
def test_plain_text_is_asked_as_it_is_trained(template: bool, model: Any, tokenizer: Any, write) -> None:
    rows = [{"prompt": "An otter is an", "completion": " animal"}, {"prompt": "Moss is a\n", "completion": "plant\n"}]
    lm = Recording(model, tokenizer)
    entry = {**CHOICES, "path": write(rows), "fewshot_path": write([rows[1]], "train.jsonl")}
    evaluated(lm, benchmark(entry, apply_chat_template=template, num_fewshot=1))
    assert lm.pairs[1] == ("Moss is a\nplant\n\nAn otter is an", " plant")
    assert lm.pairs[3] == ("Moss is a\nplant\n\nMoss is a\n", "plant")


def test_examples_are_other_rows_than_the_asked(model: Any, tokenizer: Any, write) -> None:
    path = write([OTTER, FERN, EXAMPLE])
    lm = Recording(model, tokenizer)
    evaluated(lm, benchmark({**CHOICES, "path": path, "fewshot_path": path}, num_fewshot=2))
    for question in ("What is otter?", "What is fern?", "What is moss?"):
        assert all(prompt.count(question) == 1 for prompt, _ in lm.pairs)


def test_results_are_lm_evals_own(model: Any, tokenizer: Any, write) -> None:
    rows = [OTTER, FERN, chat("What is a stone?", "plant"), OTTER]
    entry = {"kind": "multiple_choice", "path": write(rows)}
    results = evaluated(Recording(model, tokenizer), benchmark(entry, limit=3))
    # the first of the choices, which are the answers in order, is always the likeliest
    assert results["results"]["held_out"]["acc,none"] == pytest.approx(1 / 3)
    assert results["results"]["held_out"]["acc_norm,none"] == pytest.approx(1 / 3)
    assert results["n-samples"]["held_out"] == {"original": 4, "effective": 3}
    assert results["higher_is_better"]["held_out"] == {"acc": True, "acc_norm": True}
    first = results["samples"]["held_out"][0]
    assert (first["target"], first["acc"], first["doc"]["messages"]) == ("animal", 1.0, OTTER["messages"])
    assert json.loads(json.dumps(results["configs"]["held_out"]))["output_type"] == "multiple_choice"


WRITTEN = {  # the task, what the model writes, and the scores of OTTER and FERN
    "exact_match": ({}, "animal", {"exact_match": [1, 0]}),
    "with whitespace": ({}, "  animal\n", {"exact_match": [1, 0]}),
    "of another case": ({}, "Animal", {"exact_match": [0, 0]}),
    "whatever its case": ({"ignore_case": True}, "Plant", {"exact_match": [0, 1]}),
    "whatever its signs": ({"ignore_punctuation": True}, "plant.", {"exact_match": [0, 1]}),
    "several": ({"metric": ["exact_match", "chrf"]}, "animal", {"exact_match": [1, 0], "chrf": None}),
}


@pytest.mark.parametrize("what", WRITTEN)
def test_what_a_model_writes_is_scored(what: str, model: Any, tokenizer: Any, write) -> None:
    entry, answer, scores = WRITTEN[what]
    entry = {"kind": "generate_until", "path": write([OTTER, FERN]), **entry}
    results = evaluated(Recording(model, tokenizer, answer), benchmark(entry))
    for metric, values in scores.items():
        assert f"{metric},none" in results["results"]["held_out"]
        if values:
            assert [one[metric] for one in results["samples"]["held_out"]] == values


def test_the_metrics_are_those_that_lm_eval_has_for_text() -> None:
    source = Path(sys.modules["lm_eval.api.metrics"].__file__ or "").read_text(encoding="utf-8")
    found = re.findall(r'metric="([^"]+)",\s+higher_is_better=\w+,\s+output_type="generate_until"', source)
    assert sorted(METRICS) == sorted(found)
    assert all(name in METRIC_REGISTRY for name in METRICS)


@pytest.mark.parametrize(
    ("entry", "template", "until", "most"),
    [
        ({}, True, [], 256),
        ({}, False, ["\n\n"], 256),
        ({"until": "\n", "max_gen_toks": 8}, True, ["\n"], 8),
        ({"until": ["a", "b"]}, False, ["a", "b"], 256),
    ],
)
def test_where_a_model_stops(entry: Row, template: bool, until: list[str], most: int, model, tokenizer, write) -> None:
    lm = Recording(model, tokenizer)
    conf = benchmark({"kind": "generate_until", "path": write([OTTER]), **entry}, apply_chat_template=template)
    evaluated(lm, conf)
    assert lm.arguments == {"until": until, "max_gen_toks": most}


def test_no_default_stop_cuts_the_answers(write) -> None:
    path = write([chat("A poem?", "One line.\n\nAnother.")])
    (task,) = build_own_tasks(benchmark({"kind": "generate_until", "path": path}, apply_chat_template=False))
    assert task.config.generation_kwargs["until"] == []


def nats(model: Any, ids: list[int], first: int) -> float:
    """Log-likelihood of the tokens from `first`, in plain torch."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(logits[place - 1, ids[place]]) for place in range(first, len(ids)))


def test_the_perplexity_of_answers(model: Any, tokenizer: Any, write) -> None:
    rows = [chat("What is otter?", "A small animal."), FERN]
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)
    results = evaluated(lm, benchmark({"kind": "perplexity", "path": write(rows)}))["results"]["held_out"]
    total = 0.0
    for row in rows:
        text = tokenizer.apply_chat_template(row["messages"], tokenize=False).removesuffix("</s>\n")
        answer = row["messages"][-1]["content"]
        before = tokenizer(text.removesuffix(answer).rstrip())["input_ids"]  # lm-eval scores the newline too
        total += nats(model, tokenizer(text)["input_ids"], len(before))
    assert results["word_perplexity,none"] == pytest.approx(math.exp(-total / 4), rel=1e-4)
    assert results["byte_perplexity,none"] == pytest.approx(math.exp(-total / 20), rel=1e-4)
    assert results["bits_per_byte,none"] == pytest.approx(-total / 20 / math.log(2), rel=1e-4)


def test_the_perplexity_of_whole_texts(model: Any, tokenizer: Any, write) -> None:
    texts = ["The otter is an animal.\n", "Moss!"]
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)
    conf = benchmark({"kind": "perplexity", "path": write([{"text": text} for text in texts])})
    results = evaluated(lm, conf)["results"]["held_out"]
    total = sum(nats(model, [tokenizer.bos_token_id, *tokenizer(text)["input_ids"]], 1) for text in texts)
    bytes_ = sum(len(text) for text in texts)
    assert results["byte_perplexity,none"] == pytest.approx(math.exp(-total / bytes_), rel=1e-4)
    assert results["bits_per_byte,none"] == pytest.approx(-total / bytes_ / math.log(2), rel=1e-4)


def test_rows_of_any_format_and_some_of_them(write, tmp_path: Path) -> None:
    csv = tmp_path / "rows.csv"
    csv.write_text("question,reply\n" + "".join(f"What is {n}?,number\n" for n in range(9)) + "What is fern?,plant\n")
    entry = {
        "kind": "multiple_choice", "path": str(csv), "format": "alpaca", "max_rows": 4, "shuffle_seed": 3,
        "columns": {"instruction": "question", "output": "reply"}, "choices": ["number", "plant"],
    }  # fmt: skip
    asked = own_documents(benchmark(entry))["held_out"]
    everything = [f"What is {n}?" for n in range(9)] + ["What is fern?"]
    assert asked == [everything[place] for place in np.random.default_rng(3).permutation(10)[:4]]
    (task,) = build_own_tasks(benchmark(entry))
    assert [doc["prompt"] for doc in task.test_docs()] == asked


def test_the_demo_rows_are_held_out_and_have_their_choices_in_a_column() -> None:
    entry = {"kind": "multiple_choice", "path": "demo", "choices": "choices", "fewshot_path": "demo"}
    (task,) = build_own_tasks(benchmark(entry, num_fewshot=2))
    assert len(task.test_docs()) == 300
    assert task.test_docs()[0]["choices"] == ["animal", "body", "food", "location", "person", "plant"]
    assert len(task.fewshot_docs()) > 5000
    asked = {doc["prompt"] for doc in task.test_docs()}
    assert not asked & {doc["prompt"] for doc in task.fewshot_docs()}


def test_a_tasks_configuration_tells_what_decides_its_scores(write) -> None:
    def config(rows: list[Row], **more: Any) -> Row:
        (task,) = build_own_tasks(benchmark({"kind": "generate_until", "path": write(rows), **more}))
        return dict(json.loads(json.dumps(task.dump_config())))

    first = config([OTTER, FERN])
    assert first == config([OTTER, FERN])
    others = [
        config([OTTER]), config([FERN, OTTER]), config([OTTER, chat("What is fern?", "plant")]),
        config([OTTER, FERN], ignore_case=True), config([OTTER, FERN], max_gen_toks=4), config([OTTER, FERN], until="x"),
        config([OTTER, FERN], num_fewshot=1, fewshot_path=write([EXAMPLE], "train.jsonl")),
    ]  # fmt: skip
    assert all(other != first for other in others)
    assert len({json.dumps(other) for other in others}) == len(others)


MANY = [chat(f"What is {n}?", str(n)) for n in range(21)]
REFUSED: dict[str, tuple[Row, list[Row], str]] = {
    "no answer": (
        {}, [OTTER, {"messages": [{"role": "user", "content": "Hi?"}]}],
        "FILE, row 2: the last message must be the assistant's, found 'user'.",
    ),
    "no format": (
        {}, [{"question": "Hi?"}],
        "FILE, row 1: no format is known with the columns question: name them, as in "
        "+benchmark.own_tasks.held_out.columns.messages=chat.",
    ),
    "a call for an answer": (
        {}, [{"messages": [OTTER["messages"][0], {"role": "assistant", "content": "", "tool_calls": [{"a": 1}]}]}],
        "FILE, row 1: its last answer has tool_calls, and what a task asks for is text: leave the row out.",
    ),
    "an answer that is no choice": (
        {"choices": ["animal", "stone"]}, [OTTER, FERN],
        "FILE, row 2: the answer 'plant' is not among the choices animal, stone.",
    ),
    "too many answers": (
        {}, MANY,
        "benchmark.own_tasks.held_out: its rows have 21 different answers, and without "
        "benchmark.own_tasks.held_out.choices they are the choices where there are 2 to 20: set "
        "benchmark.own_tasks.held_out.choices to a list of texts, or to the name of a column that holds one.",
    ),
    "no column of choices": (
        {"choices": "options"}, [OTTER],
        "FILE, row 1: benchmark.own_tasks.held_out.choices=options must name a column with a list of two or more texts "
        "that all differ, found None.",
    ),
    "rows of two kinds": (
        {}, [{"prompt": "a", "completion": "b"}, {"prompt": [FERN["messages"][1]], "completion": FERN["messages"][2:3]}],
        "FILE, row 2 is of another kind than FILE, row 1: a task's rows are all of one kind.",
    ),
    "plain text to be continued": (
        {"kind": "generate_until"}, [{"text": "An otter."}],
        "FILE, row 1 is plain text, which benchmark.own_tasks.held_out.kind=generate_until can't ask: set "
        "benchmark.own_tasks.held_out.kind=perplexity.",
    ),
    "no rows": ({}, [], "FILE has no rows."),
    "too few examples": (
        {"num_fewshot": 3, "fewshot_split": "train"}, [OTTER, FERN],
        "benchmark.own_tasks.held_out is asked for 3 few-shot examples, and there are 1 rows for them: set "
        "benchmark.own_tasks.held_out.fewshot_path=FILE, or a smaller benchmark.num_fewshot.",
    ),
    "examples before a whole text": (
        {"kind": "perplexity", "num_fewshot": 1, "fewshot_split": "train"}, [{"text": "a"}],
        "benchmark.own_tasks.held_out scores whole texts, before which few-shot examples have no place: set "
        "benchmark.own_tasks.held_out.num_fewshot=0.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_rows_that_can_not_be_asked_about(what: str, write) -> None:
    entry, rows, said = REFUSED[what]
    path = write(rows)
    with pytest.raises(ConfigError) as error:
        check_own_tasks(benchmark({"kind": "multiple_choice", "path": path, **entry}))
    (sentence,) = error.value.sentences
    assert sentence.replace(path, "FILE") == said


def test_what_the_chat_template_refuses_is_said_with_the_row(byte_level: str, write) -> None:  # noqa: F811
    words = tokenizer_of(STOCK["gemma"], byte_level)
    path = write([OTTER, FERN])
    with pytest.raises(ConfigError, match=re.escape(f"{path}, row 2: the chat template refuses it: System role")):
        check_own_tasks(benchmark({"kind": "perplexity", "path": path}), words)
    check_own_tasks(benchmark({"kind": "perplexity", "path": path}, limit=1), words)
    tools = [{"type": "function", "function": {"name": "weigh"}}]
    conf = benchmark({"kind": "perplexity", "path": write([{**OTTER, "tools": tools}])}, apply_chat_template=False)
    with pytest.raises(ConfigError, match="row 1: its tools need the chat template"):
        check_own_tasks(conf, words)


OWN = """\
tasks: [held_out, written, whole]
own_tasks:
  held_out: {kind: multiple_choice, path: test.jsonl, fewshot_path: rows.jsonl, num_fewshot: 1, choices: [yes it is, "no"]}
  written: {kind: generate_until, path: test.jsonl, max_gen_toks: 4}
  whole: {kind: perplexity, path: text.jsonl}
models: [base]
"""


@pytest.mark.slow
def test_three_lines_of_yaml(tiny: Path, rows: Path, hydratune, write, tmp_path: Path) -> None:
    write([chat(f"Is {noun} alive?", answer) for noun, answer in zip(NOUNS, ["yes it is", "no"] * 4, strict=True)])
    write([{"text": f"The {noun} is here."} for noun in NOUNS], "text.jsonl")
    (tmp_path / "mine/benchmark").mkdir(parents=True)
    (tmp_path / "mine/benchmark/own.yaml").write_text(OWN)
    base = ["--config-dir", "mine", "model=local", f"model.name_or_path={tiny}", "data.path=rows.jsonl"]
    done = hydratune(*base, "benchmark=own", "stages=[prepare,evaluate]", "run_dir=run", "trainer.max_steps=2")
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "run/benchmark/base.json").read_text())["results"]
    assert 0 <= results["held_out"]["acc,none"] <= 1 and results["written"]["exact_match,none"] == 0
    assert results["whole"]["byte_perplexity,none"] > 1
    saved = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["benchmark"]["own_tasks"]["held_out"]
    assert saved["path"] == str(tmp_path / "test.jsonl") and saved["fewshot_path"] == str(rows)


@pytest.mark.slow
def test_held_out_rows_that_are_training_rows_are_said(tiny: Path, rows: Path, hydratune, tmp_path: Path) -> None:
    base = ["model=local", f"model.name_or_path={tiny}", "data.path=rows.jsonl", "trainer.max_steps=2", "run_dir=run"]
    task = "++benchmark.own_tasks.mine={kind:perplexity,path:rows.jsonl}"
    done = hydratune(*base, "stages=[prepare]", "benchmark.tasks=[mine]", task)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "of 24 test documents of mine are in the 24 training rows, by 10-grams of tokens" in done.stdout


TYPED = {  # what is typed -> what is said
    "no file": (
        ["++benchmark.own_tasks.mine={kind:generate_until,path:nope.jsonl}"],
        "benchmark.own_tasks.mine.path=nope.jsonl: there is no such file.",
    ),
    "a setting of the hub": (
        ["++benchmark.own_tasks.mine={kind:generate_until,path:rows.jsonl,revision:x}"],
        "benchmark.own_tasks.mine.revision=x is for data on the hub",
    ),
    "a name that is taken": (
        ["++benchmark.own_tasks.mine={kind:generate_until,path:rows.jsonl}", "benchmark.include_path=tasks"],
        "benchmark.own_tasks.mine is called as a task of benchmark.include_path=",
    ),
    "what generation doesn't know": (
        ["++benchmark.own_tasks.mine={kind:generate_until,path:rows.jsonl}", "+benchmark.gen_kwargs.temprature=1"],
        "benchmark.gen_kwargs.temprature is nothing that generation knows (did you mean temperature?).",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", TYPED)
def test_what_is_said_before_anything_starts(what: str, tiny: Path, rows: Path, refused, tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/mine.yaml").write_text(
        "task: mine\ndataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\ntest_split: test\n"
        "doc_to_text: x\ndoc_to_target: y\nmetric_list: [{metric: exact_match}]\ngeneration_kwargs: {until: [x]}\n"
    )
    typed, sentence = TYPED[what]
    base = ["model=local", f"model.name_or_path={tiny}", "data.path=rows.jsonl", "benchmark.tasks=[mine]"]
    said = refused(*base, "stages=[prepare,evaluate]", "benchmark.models=[base]", *typed)
    (line,) = said.splitlines()
    assert sentence in line
