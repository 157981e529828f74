"""Rules within the benchmark group, each a sentence that ends with what to type."""

import re
from collections.abc import Iterator
from typing import Any

from hydratune.config.data_rules import OF_A_SOURCE, broken_columns
from hydratune.config.schema import BenchmarkConf, Broken, Config
from hydratune.config.values import schema_keys, suggestion, value_problem
from hydratune.hints import fits, words

METRICS = ("exact_match", "bleu", "chrf", "chrf++", "ter")  # that lm-eval has for what a model writes
# kind of a task over the user's own rows -> its own keys and their types
KINDS: dict[str, dict[str, Any]] = {
    "multiple_choice": {"choices": str | list[str]},
    "generate_until": {
        "metric": str | list[str], "until": str | list[str], "max_gen_toks": int, "ignore_case": bool,
        "ignore_punctuation": bool,
    },
    "perplexity": {},
}  # fmt: skip
FEWSHOT: dict[str, Any] = {"num_fewshot": int, "fewshot_path": str, "fewshot_split": str}
# a generation argument -> the key that has it
OWNED = {
    "num_return_sequences": "benchmark.repeats", "seed": "seed", "max_length": "benchmark.gen_kwargs.max_gen_toks",
    "max_new_tokens": "benchmark.gen_kwargs.max_gen_toks", "max_tokens": "benchmark.gen_kwargs.max_gen_toks",
    "max_completion_tokens": "benchmark.gen_kwargs.max_gen_toks", "stop": "benchmark.gen_kwargs.until",
    "stop_strings": "benchmark.gen_kwargs.until", "pad_token_id": "hydratune", "use_cache": "hydratune",
    "input_ids": "hydratune", "attention_mask": "hydratune", "stopping_criteria": "hydratune",
    "return_dict_in_generate": "hydratune",
}  # fmt: skip
DRAWN = ("temperature", "top_p", "top_k", "min_p", "typical_p")  # arguments that only drawn answers heed


def broken_benchmark_rules(config: Config) -> Iterator[Broken]:
    """Every rule about evaluation that is broken."""
    b = config.benchmark
    for name, entry in b.own_tasks.items():
        yield from _own_task(f"benchmark.own_tasks.{name}", str(name), entry)
    if not b.tasks:
        return  # benchmark=none: what an experiment says besides is not read
    if not b.models:
        yield Broken(("benchmark.models",), "benchmark.models is empty: set benchmark.models=[base,merged]")
    for name, entry in b.own_tasks.items():
        if name not in b.tasks:
            tasks = ",".join([*b.tasks, str(name)])
            yield Broken(
                (f"benchmark.own_tasks.{name}.kind", f"benchmark.own_tasks.{name}", "benchmark.own_tasks"),
                f"benchmark.own_tasks.{name} has no effect, as benchmark.tasks doesn't name it: set "
                f"benchmark.tasks=[{tasks}]",
            )
        elif isinstance(entry, dict):
            yield from _examples(f"benchmark.own_tasks.{name}", entry, b)
    yield from _generation(b)
    if not b.apply_chat_template and not b.fewshot_as_multiturn:
        yield Broken(
            ("benchmark.fewshot_as_multiturn", "benchmark.apply_chat_template"),
            "benchmark.fewshot_as_multiturn=false has no effect with benchmark.apply_chat_template=false: leave it out",
        )


def _own_task(key: str, name: str, entry: Any) -> Iterator[Broken]:
    """A task over the user's own rows by itself."""

    def wrong(sentence: str, option: str = "kind") -> Broken:
        return Broken((f"{key}.{option}", key, "benchmark.own_tasks"), sentence)

    if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        yield wrong(f"{key}: the name of a task is part of file names: write it with letters, digits, ., - and _")
    if not isinstance(entry, dict):
        yield wrong(f"{key} is a mapping with kind, path and what the kind takes, found {entry!r:.60}")
        return
    kind = entry.get("kind")
    if kind not in KINDS:
        found = f", found {kind!r:.60}{suggestion(str(kind), KINDS)}" if kind is not None else ""
        plus = "" if "kind" in entry else "+"
        yield wrong(f"{key}.kind is one of {', '.join(KINDS)}{found}: set {plus}{key}.kind=multiple_choice")
        return
    if not entry.get("path"):
        yield wrong(f"{key} has no path: set +{key}.path=FILE")
    own = {"kind": str, **KINDS[kind], **FEWSHOT}
    for option, value in entry.items():
        if option in OF_A_SOURCE:
            if said := value_problem(f"data.{option}", value):
                yield wrong(said.replace(f"data.{option}", f"{key}.{option}", 1), option)
        elif option in own:
            if said := _misfit(option, value, own[option]):
                yield wrong(f"{key}.{option} {said}", option)
        else:
            other = next((one for one, options in KINDS.items() if option in options), None)
            near = f", which is for kind={other}" if other else suggestion(str(option), [*own, *OF_A_SOURCE])
            yield wrong(f"there is no key {key}.{option}{near}", option)
    for broken in broken_columns(f"{key}.columns", entry.get("columns", {}), entry.get("format"), f"{key}.columns"):
        yield Broken((*broken.about, f"{key}.columns", key, "benchmark.own_tasks"), broken.sentence)
    metric = entry.get("metric", "exact_match")
    for option in ("ignore_case", "ignore_punctuation"):
        if entry.get(option) and "exact_match" not in (metric if isinstance(metric, list) else [metric]):
            yield wrong(f"{key}.{option} has no effect with metric={metric}: it is for metric=exact_match", option)


def _misfit(option: str, value: Any, kind: Any) -> str | None:
    """What is wrong with the value of one of a task's own keys, in words that follow its name."""
    if not fits(value, kind):
        return f"is {words(kind)}, found {value!r:.60}"
    several = value if isinstance(value, list) else []
    if option == "choices" and any(not isinstance(one, str | int) or isinstance(one, bool) for one in several):
        return f'is a list of texts, found {value!r:.60}: write them in quotation marks, as in ["yes", "no"]'
    if option == "choices" and isinstance(value, list) and len({str(one) for one in value}) < max(len(value), 2):
        return f"is a list of two or more texts that all differ, found {value!r:.60}"
    if option == "until" and not all(isinstance(one, str) and one for one in several or [value]) and value != []:
        return f"is a text or a list of texts, none empty, found {value!r:.60}"
    if option == "metric":
        unknown = [one for one in (several or [value]) if one not in METRICS]
        if unknown or value == []:
            near = suggestion(str(unknown[0]), METRICS) if unknown else ""
            return f"is one or several of {', '.join(METRICS)}, found {value!r:.60}{near}"
    least = {"max_gen_toks": 1, "num_fewshot": 0}.get(option)
    if least is not None and value < least:
        return f"is a whole number of at least {least}, found {value}"
    return None


def _examples(key: str, entry: dict[str, Any], conf: BenchmarkConf) -> Iterator[Broken]:
    """Few-shot examples that are asked for have rows to come from, and the other way round."""
    have, own = entry.get("fewshot_path") or entry.get("fewshot_split"), entry.get("num_fewshot")
    asked = own if own == 0 or conf.num_fewshot is None else conf.num_fewshot
    about = (f"{key}.num_fewshot", "benchmark.num_fewshot", f"{key}.fewshot_path", key, "benchmark.own_tasks")
    plus = "" if "num_fewshot" in entry else "+"
    if asked and not have:
        yield Broken(
            about,
            f"{key} is asked for {asked} few-shot examples, and has no rows for them: set +{key}.fewshot_path=FILE, or "
            f"{plus}{key}.num_fewshot=0",
        )
    if have and asked is None:
        yield Broken(about, f"{key} names rows for few-shot examples, and takes none: set +{key}.num_fewshot=N")


def _generation(conf: BenchmarkConf) -> Iterator[Broken]:
    given, about = conf.gen_kwargs, ("benchmark.gen_kwargs", "benchmark.repeats")
    for name in given:
        if name in OWNED:
            yield Broken(
                (f"benchmark.gen_kwargs.{name}", *about),
                f"benchmark.gen_kwargs.{name} belongs to {OWNED[name]}: leave it out",
            )
        elif said := _unfit(name, given[name]):
            yield Broken((f"benchmark.gen_kwargs.{name}", *about), said)
    drawn = given.get("do_sample", conf.repeats > 1)
    still = "do_sample=false" if not drawn else "temperature=0" if given.get("temperature", 1) == 0 else ""
    if still and conf.repeats > 1:
        yield Broken(
            about,
            f"benchmark.gen_kwargs.{still} makes the {conf.repeats} samples of benchmark.repeats all the same: leave it "
            "out, or set benchmark.repeats=1",
        )
    elif drawn and still:
        yield Broken(
            about, "benchmark.gen_kwargs.do_sample=true draws nothing with temperature=0: leave one of them out"
        )
    idle = [name for name in DRAWN if given.get(name) and not drawn]
    if idle and conf.repeats == 1:
        yield Broken(
            about,
            f"benchmark.gen_kwargs.{idle[0]}={given[idle[0]]} has no effect on answers that are not drawn: set "
            "+benchmark.gen_kwargs.do_sample=true",
        )


def _unfit(name: str, value: Any) -> str | None:
    """A generation argument that the generate group has too is one of the same values."""
    key, ours = f"benchmark.gen_kwargs.{name}", f"generate.{'max_new_tokens' if name == 'max_gen_toks' else name}"
    if name == "until" and (said := _misfit(name, value, str | list[str])):
        return f"{key} {said}"
    if ours not in schema_keys() or (name == "temperature" and value == 0):
        return None
    said = value_problem(ours, value)
    return said.replace(ours, key, 1) if said else None
