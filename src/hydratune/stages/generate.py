"""Answers of base and tuned model, side by side."""

import gc
import json
from typing import Any

import torch
from transformers import GenerationConfig, TextStreamer, set_seed

from hydratune.build.adapter import named_model
from hydratune.build.endings import ends_of, stop_token
from hydratune.build.hardware import Hardware
from hydratune.build.model import load_tokenizer, run_tokenizer
from hydratune.build.prompts import read_prompts
from hydratune.build.source import model_source
from hydratune.config.load import cache_dir
from hydratune.config.schema import Config
from hydratune.run.console import say, show
from hydratune.run.layout import RunDir, write_atomically
from hydratune.run.table import samples_text


def run(config: Config, run: RunDir, hardware: Hardware) -> dict[str, Any]:
    """Writes samples.jsonl, a line each prompt: {"prompt", and each of `generate.models` with its answer}."""
    conf = config.generate
    prompts = read_prompts(conf)
    # the merged model alone, and its tokenizer, need nothing of the base
    source = model_source(config.model, cache_dir(config)) if set(conf.models) - {"merged"} else ""
    saved = run_tokenizer(config.model, [run.merged, run.adapter])
    tokenizer = saved or load_tokenizer(config.model, source or model_source(config.model, cache_dir(config)))
    answers: dict[str, list[str]] = {}
    for name in conf.models:
        if conf.stream:
            say(f"  {name}")
        model = named_model(name, config, hardware, source, run.adapter, run.merged)
        answers[name] = _answers(config, model, tokenizer, prompts)
        del model
        gc.collect()
    rows = [
        {"prompt": prompt, **{name: texts[number] for name, texts in answers.items()}}
        for number, prompt in enumerate(prompts)
    ]
    if not conf.stream:
        say(samples_text(rows))
    write_atomically(run.samples, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return {"generate/prompts": len(rows)}


def prompt_tokens(tokenizer: Any, prompt: str, chat: bool) -> Any:
    """input_ids and attention_mask, each of shape (1, T): as in training, with one BOS where the tokenizer has one."""
    if chat:
        turns = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    rendered = tokenizer.bos_token is not None and prompt.startswith(tokenizer.bos_token)
    return tokenizer(prompt, add_special_tokens=not rendered, return_tensors="pt")


@torch.no_grad()
def _answers(config: Config, model: Any, tokenizer: Any, prompts: list[str]) -> list[str]:
    """In batches, padded on the left; with `generate.stream` one by one, each token shown as it comes."""
    conf = config.generate
    set_seed(config.seed)
    sampling = {"temperature": conf.temperature, "top_k": conf.top_k, "top_p": conf.top_p} if conf.do_sample else {}
    ends = ends_of(model, stop_token(tokenizer), tokenizer.eos_token_id)
    model.generation_config = GenerationConfig()  # the model's own may penalize repetition, or search with beams
    size = 1 if conf.stream else conf.batch_size
    texts: list[str] = []
    for first in range(0, len(prompts), size):
        part = prompts[first : first + size]
        rows = [prompt_tokens(tokenizer, prompt, conf.apply_chat_template) for prompt in part]
        ids = [row["input_ids"][0].tolist() for row in rows]
        batch = tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt").to(model.device)
        if conf.stream:
            say(f"    {part[0]}")
        out = model.generate(
            **batch, max_new_tokens=conf.max_new_tokens, do_sample=conf.do_sample,
            pad_token_id=tokenizer.pad_token_id, eos_token_id=ends or None, **sampling,
            streamer=_OnScreen(tokenizer, skip_prompt=True, skip_special_tokens=True) if conf.stream else None,
        )  # fmt: skip
        answers = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        texts += [answer.strip() for answer in answers]
    return texts


class _OnScreen(TextStreamer):
    """Words as they come, on the user's screen and not in the log."""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        show(text + ("\n" if stream_end else ""))
