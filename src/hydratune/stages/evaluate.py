"""lm-eval on base, adapter and merged model, compared document by document."""

import gc
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.utils import resolve_max_length
from lm_eval.utils import handle_non_serializable
from transformers import AutoConfig

from hydratune.build.adapter import named_model, switches_off
from hydratune.build.answers import Answers, key_of
from hydratune.build.comparison import compare
from hydratune.build.content import answering
from hydratune.build.endings import stop_token
from hydratune.build.evaluating import evaluate, generative, load_tasks, plain_samples, rows_of
from hydratune.build.hardware import Hardware
from hydratune.build.identity import tokenizer_digest
from hydratune.build.lm import EvaluatedLM
from hydratune.build.malloc import keep_freed_memory
from hydratune.build.model import load_tokenizer, run_tokenizer
from hydratune.build.scores import read_scores
from hydratune.build.source import model_source
from hydratune.build.units import packed, units_of
from hydratune.config.load import cache_dir
from hydratune.config.schema import Config, RunError
from hydratune.run.console import say
from hydratune.run.layout import RunDir, write_atomically, write_json
from hydratune.run.receipt import state


def run(config: Config, run: RunDir, hardware: Hardware) -> dict[str, Any]:
    """Writes benchmark/<model>.json, its samples, and comparison.json.

    Metrics: <model>/<task>/<metric>; under `files` what the tasks' rows were read from.
    """
    conf = config.benchmark
    tasks = load_tasks(config)
    files = [state(path) for path in rows_of(tasks)]
    (run.benchmark / "comparison.json").unlink(missing_ok=True)
    run.documents.unlink(missing_ok=True)
    if hardware.device == "cpu":
        keep_freed_memory()
    names = [n for n in conf.models if n != "adapter" or config.lora.kind != "none"]
    for name in names:  # of a model that may be another by now
        (run.benchmark / f"{name}.json").unlink(missing_ok=True)
        shutil.rmtree(run.benchmark / name, ignore_errors=True)
    loaded = _Loaded(config, run, hardware, names)
    metrics: dict[str, Any] = {}
    for name in names:
        lm = _lm(name, config, run, hardware, loaded)
        with loaded.asked:
            results = evaluate(name, lm, tasks, config)
            again = [_again(number, name, lm, tasks, config) for number in range(1, conf.repeats)]
        say(f"  {name:8} {lm.asked:,} questions, {lm.asked - lm.computed:,} of them answered before")
        if lm.prompts_cut:
            say(f"  {lm.prompts_cut:,} prompts are longer than the {lm.max_length:,} tokens that the model takes: cut")
        metrics |= {f"{name}/{key}": value for key, value in _means([results, *again])}
        _write(run.benchmark, name, [results, *again])
    scores = {name: read_scores(run.benchmark, name) for name in names}
    write_atomically(run.documents, packed(units_of(scores)))
    rows = compare(scores, names[0], conf.seed)
    write_json(run.benchmark / "comparison.json", rows)
    return metrics | {"files": files}


class _Loaded:
    """The model in memory, one at a time: base and adapter in one where the adapter can be switched off."""

    def __init__(self, config: Config, run: RunDir, hardware: Hardware, names: list[str]) -> None:
        self.config, self.run, self.hardware = config, run, hardware
        self.source = model_source(config.model, cache_dir(config)) if set(names) - {"merged"} else ""
        both = {"base", "adapter"} <= set(names) and config.quantization.kind == "none"
        self.shared = both and switches_off(run.adapter)
        self.named = ""
        self.model: Any = None
        self.asked = ExitStack()  # while a model is asked; at its end an adapter that was off is on again

    def load(self, name: str) -> Any:
        """The model `name`."""
        wanted = "adapter" if self.shared and name == "base" else name
        if wanted != self.named:
            self.named, self.model = "", None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            folders = (self.run.adapter, self.run.merged)
            self.model = named_model(wanted, self.config, self.hardware, self.source, *folders)
            self.named = wanted
        if wanted != name:
            self.asked.enter_context(self.model.disable_adapter())
        return self.model


def _lm(name: str, config: Config, run: RunDir, hardware: Hardware, loaded: _Loaded) -> EvaluatedLM:
    cache, conf = cache_dir(config), config.benchmark
    source = str(run.merged) if name == "merged" else loaded.source
    commit = None if name == "merged" else config.model.revision
    extra = {} if name == "merged" else config.model.extra  # as where the model is loaded
    settings = AutoConfig.from_pretrained(
        source, revision=commit, trust_remote_code=config.model.trust_remote_code, **extra
    )
    tokenizer = _tokenizer(name, config, run, loaded.source)
    folders = {"adapter": run.adapter, "merged": run.merged}
    commit = getattr(settings, "_commit_hash", None) or commit
    stop = stop_token(tokenizer) if conf.apply_chat_template else None
    what = answering(name, config, hardware, source, commit, tokenizer, folders, cache)
    length = resolve_max_length(settings, tokenizer)
    answers = Answers(cache / "answers" / key_of([what, length, stop])[:16])
    size = None if conf.batch_size == "auto" else int(conf.batch_size)
    lm = EvaluatedLM(lambda: loaded.load(name), settings, hardware.device, tokenizer, answers, size, length, say, stop)
    lm.sampling = (conf.seed, 0)
    return lm


def _tokenizer(name: str, config: Config, run: RunDir, source: str) -> Any:
    """That of training, for the base too; the merged folder has its own, which must be the same.

    Raises RunError where it isn't.
    """
    own = run_tokenizer(config.model, [run.merged]) if name == "merged" else None
    trained = run_tokenizer(config.model, [run.adapter, run.merged])  # model.chat_template may be another file by now
    if own and trained and tokenizer_digest(own) != tokenizer_digest(trained):
        raise RunError(
            f"The tokenizer in {run.merged} is not the one that training used, in {run.adapter}: "
            "set stages=[merge,evaluate] merge.verify=true."
        )
    return trained or load_tokenizer(config.model, source or model_source(config.model, cache_dir(config)))


def _again(number: int, name: str, lm: EvaluatedLM, tasks: dict[str, Any], config: Config) -> dict[str, Any]:
    """The results of another sampling of the tasks that are sampled."""
    lm.sampling = (config.benchmark.seed, number)
    return evaluate(name, lm, generative(tasks), config)


def _write(folder: Path, name: str, samplings: list[dict[str, Any]]) -> None:
    """benchmark/<name>/ and <name>.json, whole or not at all; of further samplings seeds/<number>/ within."""
    new, stamp = folder / f".{name}.new", datetime.now().isoformat().replace(":", "-")
    shutil.rmtree(new, ignore_errors=True)
    for number, results in enumerate(samplings):
        inner = new / "seeds" / str(number) if number else new
        for task, samples in results.pop("samples").items():
            lines = [
                json.dumps(one, default=handle_non_serializable, ensure_ascii=False) for one in plain_samples(samples)
            ]
            write_atomically(inner / f"samples_{task}_{stamp}.jsonl", "".join(f"{line}\n" for line in lines))
        _write_results(inner / f"results_{stamp}.json", results)
    whole = folder / name
    shutil.rmtree(whole, ignore_errors=True)
    new.rename(whole)
    _write_results(folder / f"{name}.json", samplings[0])


def _write_results(path: Path, results: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(results, indent=2, default=handle_non_serializable, ensure_ascii=False) + "\n")


def _means(samplings: list[dict[str, Any]]) -> Iterator[tuple[str, float]]:
    """As _aggregated, each metric the mean of the samplings that have it; standard errors are the first's."""
    first, *again = [dict(_aggregated(results)) for results in samplings]
    for key, value in first.items():
        values = [value, *(one[key] for one in again if key in one and not key.partition(",")[0].endswith("_stderr"))]
        yield key, sum(values) / len(values)


def _aggregated(results: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """`<task>/<metric>` and its value, and the same with `_stderr`, of every task and group of lm-eval's."""
    for task, metrics in results["results"].items():
        for key, value in metrics.items():
            if "," in key and isinstance(value, (int, float)):
                metric, filtered = key.split(",", 1)
                yield f"{task}/{metric}" + ("" if filtered == "none" else f",{filtered}"), value
