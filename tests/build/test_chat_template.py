"""A chat template's variables, given once for training, evaluation and whoever serves the model."""

from pathlib import Path
from typing import Any

import pytest
from stock_templates import TRL
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hydratune.build.chat_template import dated, give_defaults, variables
from hydratune.build.rendering import Renderer
from hydratune.config.schema import ConfigError
from hydratune.formats import Chat

GIVEN = {
    "enable_thinking": False, "preserve_thinking": True, "date_string": "1 May 2020", "custom_tools": [], "content": "x",
    "builtin_tools": ["python"], "reasoning_effort": "low", "model_identity": 'It\'s "me" \\ {{ x }} %} é 😀', "low_effort": True,
    "current_date": "2020-05-01", "reasoning_strength": "3", "knowledge_cutoff": "2019-01", "truncate_history_thinking": False,
    "medium_effort": True, "system_message": "Be brief.", "add_vision_id": True, "tools_in_user_message": False,
    "tool_namespace_descriptions": {"a": "b"},
}  # fmt: skip
TEMPLATES = sorted(path.stem for path in TRL.glob("*.jinja") if not path.stem.endswith("_training"))
PARTS = {"idefics3", "llava_next", "smolvlm"}  # contents are lists of parts


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny)


def _with(tokenizer: PreTrainedTokenizerBase, template: str, **defaults: Any) -> PreTrainedTokenizerBase:
    tokenizer.chat_template = (TRL / f"{template}.jinja").read_text(encoding="utf-8")
    give_defaults(tokenizer, defaults)
    return tokenizer


def _asked(tokenizer: PreTrainedTokenizerBase, template: str, **given: Any) -> str:
    said = [("user", "What is fern?"), ("assistant", "A plant."), ("user", "And otter?")]
    in_parts = template in PARTS
    turns = [{"role": role, "content": [{"type": "text", "text": text}] if in_parts else text} for role, text in said]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **given))


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_default_is_what_is_given_at_each_call(template: str, tokenizer: PreTrainedTokenizerBase) -> None:
    for name in variables(_with(tokenizer, template)):
        value = GIVEN[name]
        given = _asked(_with(tokenizer, template), template, **{name: value})
        assert _asked(_with(tokenizer, template, **{name: value}), template) == given
        # whoever asks may still say otherwise
        assert _asked(_with(tokenizer, template, **{name: "other"}), template, **{name: value}) == given


@pytest.mark.parametrize(
    ("template", "known"),
    [
        ("llama3_2", {"date_string", "custom_tools", "tools_in_user_message"}), ("qwen3", {"enable_thinking"}),
        ("gptoss", {"reasoning_effort", "model_identity", "builtin_tools"}), ("qwen2_5", set()), ("gemma3", set()),
        ("gemma4_v5", {"enable_thinking", "preserve_thinking"}),
    ],
)  # fmt: skip
def test_the_variables_of_a_template(template: str, known: set[str], tokenizer: PreTrainedTokenizerBase) -> None:
    assert variables(_with(tokenizer, template)) == known
    with pytest.raises(ConfigError) as caught:
        _with(tokenizer, template, enable_thinkin=False)
    (said,) = caught.value.sentences
    begins = "model.chat_template_kwargs.enable_thinkin is no variable of the chat template"
    near = " (did you mean enable_thinking?)" if "enable_thinking" in known else ""
    assert said == f"{begins}{near}, which reads {', '.join(sorted(known)) or 'none'}."


@pytest.mark.parametrize(
    ("template", "fixed"),
    [("llama3_2", {"date_string": "26 Jul 2024"}), ("muse_glimmer", {"current_date": "2024-07-26"}), ("gptoss", None)],
)
def test_a_template_that_writes_the_day(
    template: str, fixed: dict[str, str] | None, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert dated(_with(tokenizer, template))
    assert not fixed or not dated(_with(tokenizer, template, **fixed))
    assert not dated(_with(tokenizer, "llama3_1"))


def test_qwen3_without_thinking_is_asked_as_it_is_trained(tokenizer: PreTrainedTokenizerBase) -> None:
    """Its rows have an empty think block before the answer, its prompts with enable_thinking=false alone."""
    row = Chat([{"role": "user", "content": "What is fern?"}, {"role": "assistant", "content": "A plant."}], 1)
    assert not Renderer(_with(tokenizer, "qwen3")).as_served(row)
    assert Renderer(_with(tokenizer, "qwen3", enable_thinking=False)).as_served(row)


def test_several_templates_of_one_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = {"default": "{{ tone }}", "tool_use": "{{ tone }}!"}
    give_defaults(tokenizer, {"tone": "dry"})
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "dry"
