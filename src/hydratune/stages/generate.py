"""Answers of base and tuned model, side by side."""

import json
from typing import Any

import torch
from transformers import set_seed

from hydratune.build.hardware import Hardware
from hydratune.build.model import load_model, load_plain, load_tokenizer
from hydratune.build.source import model_source
from hydratune.config.load import cache_dir
from hydratune.config.schema import Config
from hydratune.run.console import say
from hydratune.run.layout import RunDir, write_atomically


def run(config: Config, run: RunDir, hardware: Hardware) -> dict[str, Any]:
    """Writes samples.jsonl: {"prompt", "base", "tuned"} a line."""
    conf = config.generate
    source = model_source(config.model, cache_dir(config))
    tokenizer = load_tokenizer(config.model, source)
    merged = load_plain(str(run.merged), hardware.dtype, hardware.device)
    answers = {
        "base": _answers(config, load_model(config.model, source, hardware), tokenizer),
        "tuned": _answers(config, merged, tokenizer),
    }
    lines = []
    for prompt, base, tuned in zip(conf.prompts, answers["base"], answers["tuned"], strict=True):
        lines.append(json.dumps({"prompt": prompt, "base": base, "tuned": tuned}, ensure_ascii=False))
        say(f"  {prompt}\n    base:  {base}\n    tuned: {tuned}")
    write_atomically(run.samples, "\n".join(lines) + "\n")
    return {"generate/prompts": len(lines)}


def prompt_tokens(tokenizer: Any, prompt: str, chat: bool) -> Any:
    """input_ids and attention_mask, each of shape (1, T): as in training, with one BOS where the tokenizer has one."""
    if chat:
        turns = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    rendered = tokenizer.bos_token is not None and prompt.startswith(tokenizer.bos_token)
    return tokenizer(prompt, add_special_tokens=not rendered, return_tensors="pt")


def _ends(model: Any, tokenizer: Any) -> list[int] | None:
    """The tokens that end an answer: the tokenizer's, and the model's own, such as Gemma's <end_of_turn>."""
    own = model.generation_config.eos_token_id
    return sorted({tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}) or None


@torch.no_grad()
def _answers(config: Config, model: Any, tokenizer: Any) -> list[str]:
    conf = config.generate
    set_seed(config.seed)
    sampling = {"temperature": conf.temperature, "top_k": conf.top_k, "top_p": conf.top_p} if conf.do_sample else {}
    texts = []
    for prompt in conf.prompts:
        batch = prompt_tokens(tokenizer, prompt, conf.apply_chat_template).to(model.device)
        out = model.eval().generate(
            **batch, max_new_tokens=conf.max_new_tokens, do_sample=conf.do_sample,
            pad_token_id=tokenizer.pad_token_id, eos_token_id=_ends(model, tokenizer), **sampling,
        )  # fmt: skip
        texts.append(tokenizer.decode(out[0, batch["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    return texts
