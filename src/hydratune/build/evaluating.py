"""Tasks, as the configuration wants them asked, and a model's results on them in lm-eval's own form."""

import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval import evaluator
from lm_eval.loggers.utils import add_tokenizer_info
from lm_eval.utils import hash_string, sanitize_list

from hydratune.build.benchmark import build_tasks
from hydratune.build.lm import EvaluatedLM
from hydratune.build.needs import files_here
from hydratune.build.own_tasks import build_own_tasks
from hydratune.build.rendering import Renderer
from hydratune.config.load import cache_dir
from hydratune.config.schema import Config, ConfigError, RunError
from hydratune.formats import Chat

BOOTSTRAPS = 1000  # of lm-eval, for the standard error of what is no mean; within 2 % of many


def load_tasks(config: Config) -> dict[str, Any]:
    """lm-eval's {"tasks", "groups", "group_map"}, with few-shot examples and generation as `config.benchmark` says.

    Raises RunError where a task's rows can't be had.
    """
    conf = config.benchmark
    names = [name for name in conf.tasks if name not in conf.own_tasks]
    try:
        found: Any = build_tasks(conf, cache_dir(config)).load([*names, *build_own_tasks(conf)])
    except (ConfigError, RunError):
        raise
    except Exception as error:  # of any kind: of a dataset's builder, of a task's own template or code
        said = " ".join(str(error).split())[:300].rstrip(".")
        raise RunError(f"The tasks {', '.join(conf.tasks)} can't be loaded: {type(error).__name__}: {said}.") from error
    for task in found["tasks"].values():
        if task.get_config("output_type") == "generate_until":
            given = sampling(conf.gen_kwargs, conf.repeats)
            if given.get("do_sample") and not (task.get_config("generation_kwargs") or {}).get("temperature"):
                given = {"temperature": 1.0} | given  # its own 0 draws nothing
            task.set_config("generation_kwargs", given, update=True)
        own = task.get_config("num_fewshot")
        if own is None or (conf.num_fewshot is not None and own != 0):  # 0 in a task's file means never
            task.set_config("num_fewshot", conf.num_fewshot or 0)
    return dict(found)


def rows_of(tasks: dict[str, Any]) -> list[Path]:
    """The files on this machine that the tasks' rows come from."""
    keys = ("dataset_path", "dataset_kwargs", "custom_dataset")
    configs = [{key: task.get_config(key) for key in keys} for task in tasks["tasks"].values()]
    return sorted({file for config in configs for file in files_here(config)})


def sampling(gen_kwargs: dict[str, Any], repeats: int) -> dict[str, Any]:
    """What is set in place of a task's own: several answers to one question can only be drawn."""
    return ({"do_sample": True, "temperature": 1.0} if repeats > 1 else {}) | gen_kwargs


def generative(tasks: dict[str, Any]) -> dict[str, Any]:
    """Those that a second sampling would answer otherwise."""
    chosen = {name: task for name, task in tasks["tasks"].items() if task.OUTPUT_TYPE == "generate_until"}
    return {"tasks": chosen, "groups": {}, "group_map": {}}


def evaluate(name: str, lm: EvaluatedLM, tasks: dict[str, Any], config: Config) -> dict[str, Any]:
    """lm-eval's results, with "samples", of the model that the table calls `name`.

    Raises RunError before the first question where prompts are not as in training.
    """
    conf, began = config.benchmark, time.time()
    as_trained = prompt_as_trained(lm) if conf.apply_chat_template else None
    if conf.apply_chat_template and as_trained is None:
        lm.say("  prompts end elsewhere than answers begin in training, as the chat template has it")
    random.seed(conf.seed)
    np.random.seed(conf.seed)
    torch.manual_seed(conf.seed)
    for task in tasks["tasks"].values():  # whose samplers go on from one model to the next
        task.set_fewshot_seed(conf.seed)
    os.environ["DISABLE_MULTIPROC"] = "1"  # a pool of processes for a bootstrap of milliseconds
    results: Any = evaluator.evaluate(
        lm,
        tasks,
        limit=conf.limit,
        bootstrap_iters=BOOTSTRAPS,
        apply_chat_template=conf.apply_chat_template,
        fewshot_as_multiturn=conf.apply_chat_template and conf.fewshot_as_multiturn,
        system_instruction=conf.system_instruction,
        confirm_run_unsafe_code=conf.confirm_run_unsafe_code,
    )
    template = lm.tokenizer.chat_template if conf.apply_chat_template else None
    results["config"] = {
        "model": "hf",
        "model_args": {"pretrained": name},
        **lm.get_model_info(),
        "batch_size": conf.batch_size,
        "limit": conf.limit,
        "num_fewshot": conf.num_fewshot,
        "bootstrap_iters": BOOTSTRAPS,
        "gen_kwargs": sampling(conf.gen_kwargs, conf.repeats) or None,
        "random_seed": conf.seed,
        "numpy_seed": conf.seed,
        "torch_seed": conf.seed,
        "fewshot_seed": conf.seed,
        "sampling": lm.sampling[1],
        "prompts_cut": lm.prompts_cut,
        "prompt_as_trained": as_trained,
    }
    results |= {
        "date": began,
        "model_source": "hf",
        "model_name": name,
        "model_name_sanitized": name,
        "system_instruction": conf.system_instruction,
        "system_instruction_sha": hash_string(conf.system_instruction) if conf.system_instruction else None,
        "fewshot_as_multiturn": conf.fewshot_as_multiturn,
        "chat_template": template,
        "chat_template_sha": hash_string(template) if template else None,
        "total_evaluation_time_seconds": str(time.time() - began),
        "task_hashes": {task: _task_hash(samples) for task, samples in results["samples"].items()},
    }
    add_tokenizer_info(results, lm)
    return dict(results)


def prompt_as_trained(lm: EvaluatedLM) -> bool | None:
    """Whether a prompt begins with the very tokens that a row of training begins with; None where no template could.

    Raises RunError where they differ, or where a prompt has two BOS.
    """
    turns = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "This."}]
    renderer, chat = Renderer(lm.tokenizer), Chat(turns, 1)
    asked = lm.tok_encode(lm.apply_chat_template(turns[:1]))
    bos = lm.tokenizer.bos_token_id
    if bos is not None and bos != lm.tokenizer.eos_token_id and asked[:2] == [bos, bos]:
        raise RunError(
            f"Prompts of this evaluation begin with two {lm.tokenizer.bos_token}, which no row of training does: take it "
            "out of the chat template."
        )
    (row,) = renderer.tokens([chat], "assistant")
    if isinstance(row, ValueError) or not renderer.as_served(chat):
        return None  # the template writes an answer's turn otherwise than its prompt; prepare has warned
    first = next(place for place, label in enumerate(row.labels) if label != -100)
    if asked[:first] != list(row.ids[:first]) or len(asked) > first:
        raise RunError(
            f"A prompt of this evaluation has other tokens ({asked[:8]}, …) than the same prompt in training "
            f"({list(row.ids[:8])}, …): the chat template and the tokenizer don't fit together."
        )
    return True


def plain_samples(samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """As lm-eval's EvaluationTracker writes them, JSON that the library datasets loads."""
    return [
        sample
        | {
            "resps": sanitize_list(sample["resps"]),
            "filtered_resps": sanitize_list(sample["filtered_resps"]),
            "arguments": {
                f"gen_args_{i}": {f"arg_{j}": part for j, part in enumerate(arguments)}
                for i, arguments in enumerate(sample["arguments"])
            },
            "target": str(sample["target"]),
        }
        for sample in samples
    ]


def _task_hash(samples: Sequence[dict[str, Any]]) -> str:
    return str(hash_string("".join(one["doc_hash"] + one["prompt_hash"] + one["target_hash"] for one in samples)))
