"""Chat templates as models ship them, and what each makes of a conversation, written out by hand.

Most are trl's copies; those that trl has none of are here. `pieces` says, without any template, which text a
conversation becomes and which of it is supervised: a test holds the text against what the template writes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trl

from hydratune.build.chat_template import TEMPLATES

TRL = Path(trl.__file__).parent / "chat_templates"
HERE = Path(__file__).parent / "chat_templates"
Turns = list[dict[str, Any]]
Pieces = list[tuple[str, bool]]  # text, and whether it is supervised


def as_is(text: str) -> str:
    return text


def left_of_newlines(text: str) -> str:
    return text.lstrip("\n")


@dataclass(frozen=True)
class Stock:
    """A template, the special tokens of its tokenizer, and how it writes turns; {} stands for a content."""

    template: str
    special: tuple[str, ...]  # besides BOS and EOS
    question: str
    header: str  # before an answer, as the prompt has it
    end: str  # after an answer
    bos: str | None = "<s>"
    eos: str = "</s>"
    start: str = ""
    system: str | None = None  # None: the template refuses one
    in_question: str = ""  # how a system message begins the first question
    without_system: str = ""
    lead: str = ""  # what the model is to write before its words
    thought: str = ""  # an empty think block before an answer
    thought_last: bool = False  # ... before the last answer only
    last_end: str | None = None  # where the last turn ends otherwise
    ended_by: str = ""  # the first token of the next turn, where no other ends one
    stop: str | None = None
    trim: Callable[[str], str] = as_is
    trim_last: Callable[[str], str] = as_is
    trim_question: Callable[[str], str] = as_is
    served: bool = True  # a conversation begins as its prompt does

    def pieces(self, turns: Turns) -> Pieces:
        made, first = [(self.start, False)], ""
        if turns[0]["role"] == "system":
            assert self.system is not None
            made.append((self.system.replace("{}", turns[0]["content"]), False))
            first = self.in_question.replace("{}", turns[0]["content"])
        else:
            made.append((self.without_system, False))
        for n, turn in enumerate(turns):
            last = n + 1 == len(turns)
            if turn["role"] == "user":
                question = self.question.replace("{}", first + self.trim_question(turn["content"]))
                ended = made[-1][1] and self.ended_by
                made += [(self.ended_by, True)] if ended else []
                made.append((question.removeprefix(self.ended_by) if ended else question, False))
                first = ""
            elif turn["role"] == "assistant":
                thought = self.thought if last or not self.thought_last else ""
                words = self.trim_last(turn["content"]) if last else self.trim(turn["content"])
                end = self.end if self.last_end is None or not last else self.last_end
                made += [(self.header + thought, False), (self.lead + words + end, True)]
        return made


def _trl(name: str) -> str:
    return (TRL / f"{name}.jinja").read_text(encoding="utf-8")


CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    + CHATML.removeprefix("{% for message in messages %}")
)
ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>
'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
ALTERNATE = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must "
    "alternate user/assistant/user/assistant/...') }}{% endif %}"
)
MISTRAL_V0_1 = (
    "{{ bos_token }}{% for message in messages %}" + ALTERNATE + "{% if message['role'] == 'user' %}{{ '[INST] ' + "
    "message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + ' ' "
    "}}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]["
    "'content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}" + ALTERNATE + "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}"
    "{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + "
    "content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token "
    "}}{% endif %}{% endfor %}"
)
GLM4 = (  # of glm-4-9b-chat, without what it writes of tools
    "[gMASK]<sop>{% for item in messages %}{% if item['content'] %}<|{{ item['role'] }}|>{{ item['metadata'] }}\n"
    "{{ item['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

INST = (
    "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
)  # fmt: skip


def _deepseek(*names: str) -> list[str]:
    """Its special tokens, written with wide bars and blocks for spaces."""
    return ["<\uff5c" + name.replace(" ", "\u2581") + "\uff5c>" for name in names]


DEEPSEEK_BEGIN, DEEPSEEK_END, DEEPSEEK_USER, DEEPSEEK_ASSISTANT = _deepseek(
    "begin of sentence", "end of sentence", "User", "Assistant"
)
QWEN: dict[str, Any] = {
    "special": ("<|im_start|>", "<|im_end|>", "<|endoftext|>"), "bos": None, "eos": "<|im_end|>",
    "question": "<|im_start|>user\n{}<|im_end|>\n", "header": "<|im_start|>assistant\n", "end": "<|im_end|>\n",
    "system": "<|im_start|>system\n{}<|im_end|>\n", "stop": "<|im_end|>",
}  # fmt: skip
LLAMA_SYSTEM = "<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>"
LLAMA3: dict[str, Any] = {
    "special": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>"),
    "bos": "<|begin_of_text|>", "eos": "<|eot_id|>", "start": "<|begin_of_text|>",
    "question": "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>",
    "header": "<|start_header_id|>assistant<|end_header_id|>\n\n", "end": "<|eot_id|>", "stop": "<|eot_id|>",
    "trim": str.strip, "trim_last": str.strip, "trim_question": str.strip,
}  # fmt: skip
GEMMA: dict[str, Any] = {
    "special": ("<start_of_turn>", "<end_of_turn>"), "bos": "<bos>", "eos": "<eos>", "start": "<bos>",
    "question": "<start_of_turn>user\n{}<end_of_turn>\n", "header": "<start_of_turn>model\n", "end": "<end_of_turn>\n",
    "stop": "<end_of_turn>", "trim": str.strip, "trim_last": str.strip, "trim_question": str.strip,
}  # fmt: skip
ZEPHYRS: dict[str, Any] = {
    "special": (), "question": "<|user|>\n{}</s>\n", "header": "<|assistant|>\n", "end": "</s>\n",
    "system": "<|system|>\n{}</s>\n", "stop": "</s>",
}  # fmt: skip
PHI3: dict[str, Any] = {
    "special": ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), "eos": "<|endoftext|>",
    "question": "<|user|>\n{}<|end|>\n", "header": "<|assistant|>\n", "end": "<|end|>\n",
    "last_end": "<|end|>\n<|endoftext|>", "system": "<|system|>\n{}<|end|>\n", "stop": "<|end|>",
}  # fmt: skip
GLM: dict[str, Any] = {
    "special": ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"), "bos": None,
    "eos": "<|endoftext|>", "start": "[gMASK]<sop>", "question": "<|user|>\n{}", "header": "<|assistant|>", "end": "",
    "ended_by": "<|user|>", "system": "<|system|>\n{}",
}  # fmt: skip


def _dated(day: str) -> dict[str, Any]:
    system = LLAMA_SYSTEM.replace("{}", f"Cutting Knowledge Date: December 2023\nToday Date: {day}\n\n{{}}")
    return {**LLAMA3, "system": system, "without_system": system.replace("{}", "")}


STOCK = {
    "chatml": Stock(CHATML, **QWEN),
    "smollm2": Stock(
        SMOLLM2, **QWEN,
        without_system="<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n",
    ),
    "qwen2_5": Stock(
        _trl("qwen2_5"), **QWEN,
        without_system="<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n",
    ),
    "qwen3": Stock(
        _trl("qwen3"), **QWEN, thought="<think>\n\n</think>\n\n", thought_last=True, trim_last=left_of_newlines, served=False
    ),
    "qwen3_instruct_2507": Stock(_trl("qwen3_instruct_2507"), **QWEN),
    "llama3": Stock(_trl("llama3"), **LLAMA3, system=LLAMA_SYSTEM),
    "llama3_1": Stock(_trl("llama3_1"), **_dated("26 Jul 2024")),
    "llama3_2": Stock(_trl("llama3_2"), **_dated("29 Feb 2028")),
    "gemma": Stock(_trl("gemma"), **GEMMA),
    "gemma3": Stock(_trl("gemma3"), **GEMMA, system="", in_question="{}\n\n"),
    "mistral_v0_1": Stock(
        MISTRAL_V0_1, (), question="[INST] {} [/INST]", header="", end="</s> ", start="<s>", stop="</s>",
    ),
    # with an answer after it, it leaves a system message out
    "mistral_v0_3": Stock(
        (HERE / "mistral_v0_3.jinja").read_text(encoding="utf-8"), INST, question="[INST] {}[/INST]", header="", lead=" ",
        end="</s>", start="<s>", stop="</s>", trim=str.strip, trim_last=str.strip, system="",
    ),
    "llama2": Stock(
        LLAMA2, (), question="<s>[INST] {} [/INST]", header="", lead=" ", end=" </s>", stop="</s>", trim=str.strip,
        trim_last=str.strip, trim_question=str.strip, system="", in_question="<<SYS>>\n{}\n<</SYS>>\n\n",
    ),
    "tinyllama_chat": Stock((TEMPLATES / "tinyllama_chat.jinja").read_text(encoding="utf-8"), **ZEPHYRS),
    "zephyr": Stock(ZEPHYR, **ZEPHYRS),
    "phi3": Stock(_trl("phi3"), **PHI3),
    "phi3_5": Stock(_trl("phi3_5"), **PHI3),
    "deepseek_r1_distill": Stock(
        _trl("deepseek_r1_distill"), (DEEPSEEK_USER, DEEPSEEK_ASSISTANT), bos=DEEPSEEK_BEGIN, eos=DEEPSEEK_END,
        start=DEEPSEEK_BEGIN, question=DEEPSEEK_USER + "{}", header=DEEPSEEK_ASSISTANT, end=DEEPSEEK_END, system="{}",
        stop=DEEPSEEK_END, served=False,
    ),
    "gpt_oss": Stock(
        _trl("gptoss"), ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>"), bos="<|startoftext|>",
        eos="<|return|>", question="<|start|>user<|message|>{}<|end|>", header="<|start|>assistant",
        lead="<|channel|>final<|message|>", end="<|end|>", last_end="<|return|>", stop="<|return|>",
        system="<|start|>developer<|message|># Instructions\n\n{}\n\n<|end|>",
        start="<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: "
        "2024-06\nCurrent date: 2028-02-29\n\nReasoning: medium\n\n# Valid channels: analysis, "
        "commentary, final. Channel must be included for every message.<|end|>",
    ),
    "glm4": Stock(GLM4, **GLM, lead="\n"),
    "glm4_moe": Stock(_trl("glm4moe"), **GLM, thought="\n<think></think>\n", trim=str.strip, trim_last=str.strip, served=False),
}  # fmt: skip
