"""One prompt is the same tokens in training, in lm-eval and in generation."""

from pathlib import Path

import pytest
from lm_eval.models.huggingface import HFLM
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from hydratune.build.rendering import Renderer, Tokens
from hydratune.formats import Chat
from hydratune.stages.generate import prompt_tokens

QUESTION = "What is otter number 3?"
TURNS = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "The otter."}]


@pytest.mark.parametrize("adds_bos", [False, True], ids=["plain", "tokenizer adds BOS"])
@pytest.mark.parametrize("renders_bos", [False, True], ids=["plain", "template renders BOS"])
def test_prompt_tokens_are_the_same_everywhere(tiny: Path, adds_bos: bool, renders_bos: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    if adds_bos:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
        )
    if renders_bos:
        tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    (row,) = Renderer(tokenizer).tokens([Chat(TURNS, 1)], "assistant")
    assert isinstance(row, Tokens)
    prompt = row.ids[: next(i for i, label in enumerate(row.labels) if label != -100)]
    assert prompt.count(tokenizer.bos_token_id) == int(adds_bos or renders_bos)

    lm = HFLM(pretrained=AutoModelForCausalLM.from_pretrained(tiny), tokenizer=tokenizer, max_length=512)
    assert lm.tok_encode(lm.apply_chat_template(TURNS[:1])) == prompt
    assert prompt_tokens(tokenizer, QUESTION, chat=True)["input_ids"][0].tolist() == prompt


def test_the_end_of_turn_is_supervised(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    (row,) = Renderer(tokenizer).tokens([Chat(TURNS, 1)], "assistant")
    assert isinstance(row, Tokens)
    assert tokenizer.decode([label for label in row.labels if label != -100]) == "The otter.</s>\n"
