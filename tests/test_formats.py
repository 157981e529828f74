"""A row of each format and the messages or the text that it is, told by its columns or by what maps them."""

from typing import Any

import pytest

from hydratune.formats import FORMATS, Chat, Text, detect, example

SYSTEM = {"role": "system", "content": "Be brief."}
USER, ANSWER = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hi."}
MORE, END = {"role": "user", "content": "And?"}, {"role": "assistant", "content": "Bye."}
FUNCTION = {"name": "add", "arguments": {"a": 2, "b": 3}}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": FUNCTION}]}
RESULT = {"role": "tool", "content": "5"}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
SHORT = Chat([USER, ANSWER], 1)
NULLS = {"name": None, "tool_calls": None, "tool_call_id": None, "weight": None, "reasoning_content": None}


def said(*turns: tuple[str, str]) -> list[dict[str, str]]:
    """Turns in ShareGPT's form."""
    return [{"from": who, "value": what} for who, what in turns]


# the row, what maps its columns, its format, and what it is
ROWS: dict[str, tuple[dict[str, Any], dict[str, str], str, Chat | Text]] = {
    "messages": ({"messages": [USER, ANSWER]}, {}, "messages", SHORT),
    "several turns": (
        {"messages": [SYSTEM, USER, ANSWER, MORE, END]}, {}, "messages", Chat([SYSTEM, USER, ANSWER, MORE, END], 4)
    ),
    "further keys": (
        {"messages": [{**USER, "id": 7}, {**ANSWER, "reasoning_content": "Easy.", "weight": 1}], "source": "x"}, {},
        "messages", Chat([USER, {**ANSWER, "reasoning_content": "Easy."}], 1),
    ),
    "nulls, as Parquet has them": (
        {"messages": [{**USER, **NULLS}, {**ANSWER, **NULLS}], "tools": None}, {}, "messages", SHORT
    ),
    "weight 0": (
        {"messages": [USER, {**ANSWER, "weight": 0}, MORE, {**END, "weight": 1}]}, {}, "messages",
        Chat([USER, ANSWER, MORE, END], 3, None, frozenset({1})),
    ),
    "weight 0 after a system column": (
        {"system": "Be brief.", "conversations": [*said(("human", "Hi?")), {"from": "gpt", "value": "Hi.", "weight": 0}]},
        {}, "sharegpt", Chat([SYSTEM, USER, ANSWER], 2, None, frozenset({2})),
    ),
    "parts of text": (
        {"messages": [
            {"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i?"}]}, ANSWER
        ]}, {}, "messages", SHORT,
    ),
    "developer": ({"messages": [{**SYSTEM, "role": "developer"}, USER, ANSWER]}, {}, "messages", Chat([SYSTEM, USER, ANSWER], 2)),
    "tools": (
        {"messages": [USER, CALL, RESULT, ANSWER], "tools": TOOLS}, {}, "messages", Chat([USER, CALL, RESULT, ANSWER], 1, TOOLS)
    ),
    "a call without content, its arguments as text": (
        {"messages": [
            USER,
            {"role": "assistant", "content": None, "tool_calls": [
                {"type": "function", "id": "c1", "function": {"name": "add", "arguments": '{"a": 2, "b": 3}'}}
            ]},
            {**RESULT, "tool_call_id": "c1", "name": "add"}, ANSWER,
        ]}, {}, "messages",
        Chat([
            USER, {**CALL, "tool_calls": [{"type": "function", "id": "c1", "function": FUNCTION}]},
            {**RESULT, "tool_call_id": "c1", "name": "add"}, ANSWER,
        ], 1),
    ),
    "two answers of tools": (
        {"messages": [USER, CALL, RESULT, RESULT, ANSWER]}, {}, "messages", Chat([USER, CALL, RESULT, RESULT, ANSWER], 1)
    ),
    "an empty answer of a tool": (
        {"messages": [USER, CALL, {**RESULT, "content": ""}, ANSWER]}, {}, "messages",
        Chat([USER, CALL, {**RESULT, "content": ""}, ANSWER], 1),
    ),
    "a call that ends it": ({"messages": [USER, CALL]}, {}, "messages", Chat([USER, CALL], 1)),
    "a cell of JSON": (
        {"messages": '[{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hi."}]', "tools": ""}, {},
        "messages", SHORT,
    ),
    "tools in a cell": (
        {"messages": [USER, ANSWER], "tools": '[{"name": "add"}]'}, {}, "messages", Chat([USER, ANSWER], 1, [{"name": "add"}])
    ),
    "mapped messages": ({"chat": [USER, ANSWER]}, {"messages": "chat"}, "messages", SHORT),
    "mapped inside": (
        {"chat": [{"speaker": "user", "said": "Hi?"}, {"speaker": "assistant", "said": "Hi."}]},
        {"messages": "chat", "role": "speaker", "content": "said"}, "messages", SHORT,
    ),
    "UltraChat": (
        {"prompt": "Hi?", "prompt_id": "f0e37e9f", "messages": [USER, ANSWER]}, {}, "messages", SHORT
    ),
    "messages and a text": ({"text": "Hi? Hi.", "messages": [USER, ANSWER]}, {}, "messages", SHORT),
    "what is mapped comes before messages": (
        {"messages": [MORE, END], "q": "Hi?", "a": "Hi."}, {"instruction": "q", "output": "a"}, "alpaca", SHORT
    ),
    "ShareGPT": ({"id": 1, "conversations": said(("human", "Hi?"), ("gpt", "Hi."))}, {}, "sharegpt", SHORT),
    "ShareGPT with a system column": (
        {"system": "Be brief.", "conversations": said(("human", "Hi?"), ("gpt", "Hi."))}, {}, "sharegpt",
        Chat([SYSTEM, USER, ANSWER], 2),
    ),
    "ShareGPT with an empty one": (
        {"system": "", "conversations": said(("human", "Hi?"), ("gpt", "Hi."))}, {}, "sharegpt", SHORT
    ),
    "ShareGPT in a cell": (
        {"conversations": '[{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hi."}]'}, {}, "sharegpt", SHORT
    ),
    "ShareGPT's calls": (
        {
            "conversations": said(
                ("human", "Hi?"), ("function_call", '{"name": "add", "arguments": {"a": 2, "b": 3}}'),
                ("observation", "5"), ("gpt", "Hi."),
            ),
            "tools": '[{"name": "add"}]',
        }, {}, "sharegpt", Chat([USER, CALL, RESULT, ANSWER], 1, [{"name": "add"}]),
    ),
    "ShareGPT's calls, the arguments as text": (
        {"conversations": said(("human", "Hi?"), ("function_call", '{"name": "add", "arguments": "{\\"a\\": 2, \\"b\\": 3}"}'))},
        {}, "sharegpt", Chat([USER, CALL], 1),
    ),
    "ShareGPT, mapped": (
        {"dialog": [{"who": "human", "text": "Hi?"}, {"who": "gpt", "text": "Hi."}], "sys": "Be brief."},
        {"conversations": "dialog", "from": "who", "value": "text", "system": "sys"}, "sharegpt",
        Chat([SYSTEM, USER, ANSWER], 2),
    ),
    "conversations in OpenAI's form": ({"conversations": [USER, ANSWER]}, {}, "messages", SHORT),
    "mapped conversations in OpenAI's form": ({"dialog": [USER, ANSWER]}, {"conversations": "dialog"}, "messages", SHORT),
    "conversations in OpenAI's form in a cell": (
        {"conversations": '[{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hi."}]'}, {}, "messages",
        SHORT,
    ),
    "Alpaca": ({"instruction": "Hi?", "output": "Hi."}, {}, "alpaca", SHORT),
    "Alpaca with a text": ({"instruction": "Hi?", "input": "", "output": "Hi.", "text": "Below is"}, {}, "alpaca", SHORT),
    "Alpaca with input": (
        {"instruction": "Hi?", "input": "Say it.", "output": "Hi."}, {}, "alpaca",
        Chat([{"role": "user", "content": "Hi?\nSay it."}, ANSWER], 1),
    ),
    "Alpaca with history": (
        {"instruction": "And?", "input": None, "output": "Bye.", "history": [["Hi?", "Hi."]]}, {}, "alpaca",
        Chat([USER, ANSWER, MORE, END], 3),
    ),
    "Alpaca with history in a cell": (
        {"instruction": "And?", "input": "", "output": "Bye.", "history": '[["Hi?", "Hi."]]', "system": "Be brief."}, {},
        "alpaca", Chat([SYSTEM, USER, ANSWER, MORE, END], 4),
    ),
    "Alpaca without history": (
        {"instruction": "Hi?", "output": "Hi.", "history": [], "system": None}, {}, "alpaca", SHORT
    ),
    "Alpaca, mapped": (
        {"question": "Hi?", "answer": "Hi."}, {"instruction": "question", "output": "answer"}, "alpaca", SHORT
    ),
    "prompt and completion": (
        {"prompt": "2+3=", "completion": "5"}, {}, "prompt_completion", Text("2+3=", "5")
    ),
    "prompt and completion, blanks kept": (
        {"prompt": " 2+3= ", "completion": " 5\n"}, {}, "prompt_completion", Text(" 2+3= ", " 5\n")
    ),
    "prompt and completion of messages": (
        {"prompt": [SYSTEM, USER], "completion": [ANSWER]}, {}, "prompt_completion", Chat([SYSTEM, USER, ANSWER], 2)
    ),
    "a completion of several turns": (
        {"prompt": [USER], "completion": [ANSWER, MORE, END]}, {}, "prompt_completion", Chat([USER, ANSWER, MORE, END], 1)
    ),
    "prompt and completion of messages, mapped": (
        {"ask": [USER], "reply": [{**ANSWER, "weight": 0}]}, {"prompt": "ask", "completion": "reply"},
        "prompt_completion", Chat([USER, ANSWER], 1, None, frozenset({1})),
    ),
    "text": ({"text": " Hi.\n"}, {}, "text", Text("", " Hi.\n")),
    "text, mapped": ({"body": "Hi.", "id": 1}, {"text": "body"}, "text", Text("", "Hi.")),
    "text, mapped beside another": ({"text": "no", "body": "Hi."}, {"text": "body"}, "text", Text("", "Hi.")),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_what_a_row_is(name: str) -> None:
    row, columns, kind, expected = ROWS[name]
    assert detect(row, columns) == kind
    assert example(row, kind, columns) == expected


def test_every_format_is_in_the_table() -> None:
    assert {kind for _, _, kind, _ in ROWS.values()} == set(FORMATS)


def test_a_chosen_format_needs_no_telling() -> None:
    """A row of several formats' columns."""
    row = {
        "messages": [USER, ANSWER],
        "prompt": "2+3=",
        "completion": "5",
        "text": "Hi.",
        "instruction": "a",
        "output": "b",
    }
    assert example(row, "text", {}) == Text("", "Hi.")
    assert example(row, "prompt_completion", {}) == Text("2+3=", "5")
    assert example(row, "alpaca", {}) == Chat(
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], 1
    )


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("human", "user"), ("user", "user"), ("gpt", "assistant"), ("chatgpt", "assistant"), ("bing", "assistant"),
        ("bard", "assistant"), ("model", "assistant"), ("assistant", "assistant"),
    ],
)  # fmt: skip
def test_names_of_the_two_who_talk(theirs: str, ours: str) -> None:
    turns = said(("human" if ours == "assistant" else theirs, "Hi?"), (theirs if ours == "assistant" else "gpt", "Hi."))
    assert example({"conversations": turns}, "sharegpt", {}) == SHORT


@pytest.mark.parametrize("theirs", ["observation", "function", "function_response", "tool"])
def test_names_of_a_tool(theirs: str) -> None:
    call = ("function_call", '{"name": "add", "arguments": {"a": 2, "b": 3}}')
    turns = said(("human", "Hi?"), call, (theirs, "5"), ("gpt", "Hi."))
    assert example({"conversations": turns}, "sharegpt", {}) == Chat([USER, CALL, RESULT, ANSWER], 1)


@pytest.mark.parametrize("arguments", ["", "2, 3", "[2, 3]", "null"])
def test_arguments_that_are_no_json_of_an_object_stay(arguments: str) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": arguments}}
    row = {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [call]}]}
    made = example(row, "messages", {})
    assert isinstance(made, Chat) and made.messages[1]["tool_calls"] == [call]


def test_the_row_itself_is_left_alone() -> None:
    row = {"system": "Be brief.", "conversations": said(("human", "Hi?"), ("gpt", "Hi."))}
    example(row, "sharegpt", {})
    assert row == {"system": "Be brief.", "conversations": said(("human", "Hi?"), ("gpt", "Hi."))}
