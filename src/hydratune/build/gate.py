"""The data gate: what the rows are, what training on them will be, and what in them may be a mistake."""

import math
from collections.abc import Iterator
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from hydratune.build.chat_template import dated, variables
from hydratune.build.together import world_size
from hydratune.config.schema import Config

MANY_PASSES = 10
FEW_SUPERVISED = 0.01


def course(config: Config, report: dict[str, Any]) -> dict[str, float]:
    """Optimizer steps, passes over the rows, and tokens that training will see."""
    t, rows = config.trainer, report["training"]
    batches = math.ceil(rows.get("packs", rows["rows"]) / (t.per_device_train_batch_size * world_size()))
    a_pass = max(1, math.ceil(batches / t.gradient_accumulation_steps))
    steps = t.max_steps if t.max_steps > 0 else math.ceil(a_pass * t.num_train_epochs)
    whole, rest = divmod(steps, a_pass)  # the last step of a pass may have fewer batches
    passes = whole + min(rest * t.gradient_accumulation_steps, batches) / batches
    return {"steps": steps, "epochs": round(passes, 3), "tokens": round(rows["tokens"] * passes)}


def table(report: dict[str, Any], ahead: dict[str, float]) -> list[str]:
    """The report in lines for the screen."""
    lines = []
    for split in ("training", "validation"):
        if rows := report.get(split):
            packs = f" in {rows['packs']} packs, {_fill(rows, report):.1%} full" if "packs" in rows else ""
            lines.append(
                f"{split:10} {rows['rows']} rows{packs}, {rows['tokens']} tokens, {rows['supervised_tokens']} of them "
                f"({rows['supervised_tokens'] / rows['tokens']:.1%}) supervised, the longest row {rows['longest']}"
            )
    lengths, step = report["training"]["lengths"], report["max_length"] / len(report["training"]["lengths"])
    most = max(lengths)
    for number, count in enumerate(lengths):
        first, last = math.floor(number * step) + 1, math.floor((number + 1) * step)
        lines.append(f"{first:>7} to {last:<6} {'█' * math.ceil(30 * count / most):30} {count}")
    lines.append(f"to come    {ahead['steps']} steps, {ahead['epochs']:g} epochs, {ahead['tokens']} tokens")
    return lines


def _fill(rows: dict[str, Any], report: dict[str, Any]) -> float:
    return float(rows["tokens"] / (rows["packs"] * report["max_length"]))


def findings(
    config: Config, report: dict[str, Any], ahead: dict[str, float], tokenizer: PreTrainedTokenizerBase, source: str
) -> list[str]:
    """A sentence for each thing that may be a mistake, with the first rows it is about."""
    may_think = "enable_thinking" in variables(tokenizer) - config.model.chat_template_kwargs.keys()
    said = [sentence for split in ("training", "validation") for sentence in _of_rows(split, report, may_think)]
    return [*said, *_of_course(config, report, ahead), *_of_stop(report, tokenizer, source), *_of_day(tokenizer)]


def _of_stop(report: dict[str, Any], tokenizer: PreTrainedTokenizerBase, source: str) -> Iterator[str]:
    """That an assistant's turn ends with another token than those at which the model stops."""
    stops = {tokenizer.eos_token_id}
    try:
        more = GenerationConfig.from_pretrained(source).eos_token_id
        stops |= set(more if isinstance(more, list) else [more])
    except (OSError, ValueError):
        pass  # the model has none
    stop = report["stop"]
    if stop and tokenizer.convert_tokens_to_ids(stop) not in stops:
        known = ", ".join(str(tokenizer.convert_ids_to_tokens(one)) for one in sorted(stops - {None}))
        yield (
            f"An assistant's turn ends with {stop}, and the model by itself stops at {known or 'no token'}: merged/ names "
            f"{stop} in its generation_config.json, and who serves the adapter must stop there too."
        )


def _of_day(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    if dated(tokenizer):
        keys = [
            f"model.chat_template_kwargs.{name} to a day" for name in sorted(variables(tokenizer)) if "date" in name
        ]
        yield (
            "The chat template writes the day on which it is asked, so a prompt of tomorrow is not one of today's training: "
            f"set {', '.join([*keys, 'model.chat_template to a copy with a day written out'][:1])}."
        )


def _of_rows(split: str, report: dict[str, Any], may_think: bool) -> Iterator[str]:
    rows = report.get(split)
    hint = "; an empty think block is in the prompt too with +model.chat_template_kwargs.enable_thinking=false"
    thinks = hint if may_think else ""
    if not rows:
        return
    limit = f"trainer.max_length={report['max_length']}"
    said = {
        "answers_cut": f"lose a part of what is supervised at {limit}: raise it, or set data.on_long_row=skip",
        "too_long": f"are above {limit} and were left out",
        "duplicates": f"repeat another row within {limit}",
        "also_in_validation": "are validation rows too, and were left out of training",
        "unended": "have a supervised turn that no special token ends, so the model isn't taught to stop there: let the "
        "chat template write {{ eos_token }} after it",
        "template_words": "hold one of the chat template's own special tokens as text",
        "not_as_served": "have an answer that begins elsewhere than the prompt ends that the chat template makes when the "
        f"model is asked, as far as the first rows show{thinks}",
    }
    for kind, words in said.items():
        if count := rows["found"].get(kind):
            first = rows["first"][kind]
            more = ", …" if count > len(first) else ""
            yield f"{count} {split} rows {words} ({'; '.join(first)}{more})."


def _of_course(config: Config, report: dict[str, Any], ahead: dict[str, float]) -> Iterator[str]:
    if report["bad"]:
        yield f"{report['bad']} rows can't be trained on and were left out, such as {report['bad_rows'][0]}"
    share = report["training"]["supervised_tokens"] / report["training"]["tokens"]
    if share < FEW_SUPERVISED:
        yield f"Only {share:.2%} of the tokens are supervised: is data.loss={config.data.loss} what was meant?"
    if ahead["epochs"] > MANY_PASSES:
        yield f"Training passes over the rows {ahead['epochs']:.0f} times, as trainer.max_steps or num_train_epochs say."
