"""Mistakes in the benchmark group that are said in a second, before any library is there."""

import json
from pathlib import Path

import pytest

from hydratune.config.rules import broken_rules
from hydratune.config.schema import BenchmarkConf, Config
from hydratune.config.values import value_problem

OWN = "benchmark.own_tasks.a"
HELD_OUT = "++benchmark.own_tasks.a={kind:multiple_choice,path:test.jsonl}"
GENERATED = "++benchmark.own_tasks.a={kind:generate_until,path:test.jsonl}"


def entry(text: str, kind: str = "multiple_choice") -> str:
    return f"++benchmark.own_tasks.a={{kind:{kind},path:test.jsonl,{text}}}"


SAID = {  # what is typed -> the sentence, after the first override where it begins with that
    "no kind": (
        ["++benchmark.own_tasks.a={path:test.jsonl}"],
        f"{OWN}.kind is one of multiple_choice, generate_until, perplexity: set +{OWN}.kind=multiple_choice.",
    ),
    "another kind": (
        ["++benchmark.own_tasks.a={kind:multiple_choise,path:test.jsonl}"],
        f"{OWN}.kind is one of multiple_choice, generate_until, perplexity, found 'multiple_choise' (did you mean "
        f"multiple_choice?): set {OWN}.kind=multiple_choice.",
    ),
    "no path": (["++benchmark.own_tasks.a={kind:perplexity}"], f"{OWN} has no path: set +{OWN}.path=FILE."),
    "no mapping": (
        ["++benchmark.own_tasks.a=test.jsonl"],
        f"{OWN} is a mapping with kind, path and what the kind takes, found 'test.jsonl'.",
    ),
    "a name for no file": (
        ["++benchmark.own_tasks={a b:{kind:perplexity,path:test.jsonl}}", "benchmark.tasks=['a b']"],
        "benchmark.own_tasks.a b: the name of a task is part of file names: write it with letters, digits, ., - and _.",
    ),
    "a misspelt key": (
        [entry("choises:[a,b]")], f"there is no key {OWN}.choises (did you mean choices?)."
    ),
    "a key of another kind": (
        [entry("until:x")], f"there is no key {OWN}.until, which is for kind=generate_until."
    ),
    "a key of a source": (
        [entry("max_rows:0")], f"{OWN}.max_rows is a whole number above 0, found 0."
    ),
    "a column": (
        [entry("columns:{promt:q}")],
        f"{OWN}.columns maps messages, tools, role, content, conversations, system, from, value, instruction, input, "
        "output, history, prompt, completion, text to the rows' own names, found 'promt' (did you mean "
        "prompt?).",
    ),
    "choices that are no texts": (
        [entry("choices:[true,false]")],
        f"{OWN}.choices is a list of texts, found [True, False]: write them in quotation marks, as in "
        '["yes", "no"].',
    ),
    "one choice": (
        [entry("choices:[yes]")], f"{OWN}.choices is a list of two or more texts that all differ, found ['yes']."
    ),
    "a metric": (
        [entry("metric:exact_mach", "generate_until")],
        f"{OWN}.metric is one or several of exact_match, bleu, chrf, chrf++, ter, found 'exact_mach' (did you mean "
        "exact_match?).",
    ),
    "no case to ignore": (
        [entry("metric:bleu,ignore_case:true", "generate_until")],
        f"{OWN}.ignore_case has no effect with metric=bleu: it is for metric=exact_match.",
    ),
    "no number of tokens": (
        [entry("max_gen_toks:0", "generate_until")], f"{OWN}.max_gen_toks is a whole number of at least 1, found 0."
    ),
    "a stop that is empty": (
        [entry("until:[a,'']", "generate_until")],
        f"{OWN}.until is a text or a list of texts, none empty, found ['a', ''].",
    ),
    "examples from nowhere": (
        ["benchmark.num_fewshot=3", HELD_OUT],
        f"{OWN} is asked for 3 few-shot examples, and has no rows for them: set +{OWN}.fewshot_path=FILE, or "
        f"+{OWN}.num_fewshot=0.",
    ),
    "examples that are not asked for": (
        [entry("fewshot_path:train.jsonl")],
        f"{OWN} names rows for few-shot examples, and takes none: set +{OWN}.num_fewshot=N.",
    ),
    "examples in no chat": (
        ["benchmark.fewshot_as_multiturn=false", "benchmark.apply_chat_template=false", HELD_OUT],
        "benchmark.fewshot_as_multiturn=false has no effect with benchmark.apply_chat_template=false: leave it out.",
    ),
    "no model": (
        ["benchmark.models=[]", HELD_OUT], "benchmark.models is empty: set benchmark.models=[base,merged]."
    ),
    "an argument of ours": (
        ["+benchmark.gen_kwargs.max_new_tokens=8", GENERATED],
        "benchmark.gen_kwargs.max_new_tokens belongs to benchmark.gen_kwargs.max_gen_toks: leave it out.",
    ),
    "a temperature": (
        ["+benchmark.gen_kwargs.temperature=-1", "+benchmark.gen_kwargs.do_sample=true", GENERATED],
        "benchmark.gen_kwargs.temperature is a finite number above 0, found -1.0.",
    ),
    "the same answer again": (
        ["+benchmark.gen_kwargs.do_sample=false", "benchmark.repeats=3", GENERATED],
        "benchmark.gen_kwargs.do_sample=false makes the 3 samples of benchmark.repeats all the same: leave it out, or "
        "set benchmark.repeats=1.",
    ),
    "the likeliest answer again": (
        ["+benchmark.gen_kwargs.temperature=0", "benchmark.repeats=3", GENERATED],
        "benchmark.gen_kwargs.temperature=0 makes the 3 samples of benchmark.repeats all the same: leave it out, or set "
        "benchmark.repeats=1.",
    ),
    "drawn and not drawn": (
        ["+benchmark.gen_kwargs.temperature=0", "+benchmark.gen_kwargs.do_sample=true", GENERATED],
        "benchmark.gen_kwargs.do_sample=true draws nothing with temperature=0: leave one of them out.",
    ),
    "a temperature of nothing": (
        ["+benchmark.gen_kwargs.temperature=0.7", GENERATED],
        "benchmark.gen_kwargs.temperature=0.7 has no effect on answers that are not drawn: set "
        "+benchmark.gen_kwargs.do_sample=true.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", SAID)
def test_what_is_wrong_is_said_alone(what: str, refused) -> None:
    typed, sentence = SAID[what]
    said = refused("benchmark.tasks=[a]", *typed)
    (line,) = [one.removeprefix("hydratune: ") for one in said.splitlines() if one.strip()]
    assert line.endswith(sentence)
    assert line.removesuffix(sentence) in ["", *(f"{one}: " for one in typed)]


def test_a_task_that_nothing_asks_for(refused) -> None:
    said = refused("benchmark.tasks=[b]", HELD_OUT)
    assert "benchmark.own_tasks.a has no effect, as benchmark.tasks doesn't name it: set benchmark.tasks=[b,a]." in said


def test_a_mistake_in_a_file_has_its_line(refused, tmp_path: Path) -> None:
    path = tmp_path / "mine/benchmark/own.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("tasks: [a]\nown_tasks:\n  a:\n    kind: perplexity\n    path: test.jsonl\n    untl: x\n")
    assert "mine/benchmark/own.yaml:6: there is no key benchmark.own_tasks.a.untl." in refused(
        "--config-dir", "mine", "benchmark=own"
    )


@pytest.mark.parametrize(
    "b",
    [
        BenchmarkConf(own_tasks={"a": {"kind": "perplexity", "path": "x"}}, num_fewshot=3, fewshot_as_multiturn=False),
        BenchmarkConf(["a"], own_tasks={"a": {"kind": "perplexity", "path": "x", "num_fewshot": 0}}, num_fewshot=3),
        BenchmarkConf(["a"], own_tasks={"a": {"kind": "perplexity", "path": "x", "fewshot_path": "y"}}, num_fewshot=0),
        BenchmarkConf(["a"], own_tasks={"a": {"kind": "multiple_choice", "path": "x", "choices": [1, 2]}}),
        BenchmarkConf(["a"], own_tasks={"a": {"kind": "generate_until", "path": "x", "until": []}}, repeats=3),
        BenchmarkConf(["arc_easy"], gen_kwargs={"temperature": 0.7, "do_sample": True, "top_p": 0.9}),
        BenchmarkConf(["arc_easy"], gen_kwargs={"temperature": 0.7}, repeats=2),
        BenchmarkConf(["arc_easy"], gen_kwargs={"until": ["\n"], "max_gen_toks": 9, "temperature": 0.0}),
        BenchmarkConf(["arc_easy"], system_instruction="Be brief.", apply_chat_template=False),
    ],
    ids=lambda b: json.dumps([b.own_tasks, b.gen_kwargs])[:60],
)
def test_what_is_sound_is_left_alone(b: BenchmarkConf) -> None:
    config = Config(benchmark=b, stages=["evaluate"])
    assert [one for one in broken_rules(config) if any(key.startswith("benchmark") for key in one.about)] == []


@pytest.mark.parametrize("value", [0, -1, "many", "", None, 1.5, True])
def test_a_batch_size_that_is_none(value: object) -> None:
    assert value_problem("benchmark.batch_size", value)


@pytest.mark.parametrize("value", [1, 64, "auto"])
def test_a_batch_size(value: object) -> None:
    assert value_problem("benchmark.batch_size", value) is None


def test_the_batch_size_that_is_meant(refused) -> None:
    assert "benchmark.batch_size is a whole number above 0, or auto, found 'many': set benchmark.batch_size=auto." in (
        refused("benchmark.batch_size=many")
    )
