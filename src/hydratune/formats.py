"""One raw row of any usual format -> a conversation or a text. Pure: standard library only."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

ROLES = ("system", "user", "assistant", "tool")
# what ShareGPT-like files call them
ALIASES = {
    "human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "model": "assistant", "observation": "tool", "function": "tool", "function_response": "tool", "developer": "system",
}  # fmt: skip
KEPT = ("tool_calls", "tool_call_id", "name", "reasoning_content")  # of a message, besides its role and content
# each format, the columns that it reads, and those of them that a row must have
FORMATS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "messages": (("messages", "tools", "role", "content"), ("messages",)),
    "sharegpt": (("conversations", "system", "tools", "from", "value"), ("conversations",)),
    "alpaca": (("instruction", "input", "output", "history", "system", "tools"), ("instruction", "output")),
    "prompt_completion": (("prompt", "completion", "tools"), ("prompt", "completion")),
    "text": (("text",), ("text",)),
}
IN_A_MESSAGE = ("role", "content", "from", "value")  # names inside a column, not of one


@dataclass(frozen=True)
class Chat:
    """Messages for the chat template. The first `prompt` of them are what the completion answers."""

    messages: list[dict[str, Any]]
    prompt: int
    tools: list[Any] | None = None
    unsupervised: frozenset[int] = field(default=frozenset())  # assistant turns that the row itself weighs 0


@dataclass(frozen=True)
class Text:
    """Plain text, without a chat template; all of it is the completion where there is no prompt."""

    prompt: str
    completion: str


def detect(row: Any, columns: Mapping[str, str]) -> str:
    """The format of `row` by its columns. Raises ValueError, in words that finish the sentence "row 1: ..."."""
    if not isinstance(row, dict):
        raise ValueError(f"a row is an object with named columns, found {row!r:.60}")
    has = set(row) | {ours for ours, theirs in columns.items() if theirs in row}
    for name, (reads, needed) in FORMATS.items():
        # a format that reads nothing of what data.columns names is not what was meant
        if has >= set(needed) and (not columns or set(reads) & set(columns)):
            # conversations are written in OpenAI's way too
            turns = _Columns(row, columns).get("conversations") if name == "sharegpt" else None
            openai = isinstance(turns, list) and turns and isinstance(turns[0], dict) and "role" in turns[0]
            return "messages" if openai else name
    named = f" and data.columns={{{', '.join(f'{ours}: {theirs}' for ours, theirs in columns.items())}}}"
    found = f"the columns {', '.join(sorted(map(str, row)))}" if row else "no columns"
    raise ValueError(
        f"no format is known with {found}{named if columns else ''}: name them, as in "
        "+data.columns.messages=chat, or set data.formatter"
    )


def example(row: Any, kind: str, columns: Mapping[str, str]) -> Chat | Text:
    """The row, whose format is `kind`; `columns` maps the format's own names to those of the row.

    Raises ValueError with what is wrong, in words that finish the sentence "row 3: ...".
    """
    if not isinstance(row, dict):
        raise ValueError(f"a row is an object with named columns, found {row!r:.60}")
    made = READERS[kind](_Columns(row, columns))
    said = [made.prompt, made.completion] if isinstance(made, Text) else [made.messages, made.tools]
    try:
        json.dumps(said, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start : error.end]
        raise ValueError(f"it holds {half!a}, a half of a character: leave it out, or write the whole one") from None
    return made


class _Columns:
    """A row's columns under the names that the format has for them."""

    def __init__(self, row: dict[str, Any], names: Mapping[str, str]) -> None:
        self.row, self.names = row, names

    def name(self, column: str) -> str:
        if column == "messages" and column not in self.names and column not in self.row:
            other = self.name("conversations")
            return other if other in self.row else column
        return self.names.get(column, column)

    def get(self, column: str) -> Any:
        """None where the row has none, and JSON that a CSV cell holds as text is read."""
        value = self.row.get(self.name(column))
        if column in ("messages", "conversations", "tools", "history") and isinstance(value, str):
            if not value.strip():
                return None
            try:
                return _json(value)
            except ValueError:
                raise ValueError(f"{self.name(column)} must be a list, or JSON of one, found {value!r:.60}") from None
        return value

    def need(self, column: str) -> Any:
        if self.name(column) not in self.row:
            found = ", ".join(sorted(map(str, self.row))) or "none"
            raise ValueError(f"no column {self.name(column)!r}, found {found}; set +data.columns.{column}=NAME")
        return self.get(column)

    def text(self, column: str, *, may_be_empty: bool = False) -> str:
        value = self.get(column) if may_be_empty else self.need(column)
        if may_be_empty and value is None:
            return ""
        if not isinstance(value, str) or not (value.strip() or may_be_empty):
            what = "text" if may_be_empty else "text that is not empty"
            raise ValueError(f"{self.name(column)} must be {what}, found {value!r:.60}")
        return value


def _messages(row: _Columns) -> Chat:
    return _chat(row.need("messages"), row.name("messages"), row, "role", "content")


def _sharegpt(row: _Columns) -> Chat:
    turns = row.need("conversations")
    system = row.text("system", may_be_empty=True)
    who, what = row.names.get("from", "from"), row.names.get("value", "value")
    if system.strip() and isinstance(turns, list):
        turns = [{who: "system", what: system}, *turns]
    return _chat(turns, row.name("conversations"), row, "from", "value")


def _alpaca(row: _Columns) -> Chat:
    more = row.text("input", may_be_empty=True)
    question = row.text("instruction") + (f"\n{more}" if more.strip() else "")
    turns = [("user", question), ("assistant", row.text("output"))]
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise ValueError(f"{row.name('history')} must be a list of [question, answer], found {history!r:.60}")
    earlier = [turn for asked, answered in history for turn in (("user", asked), ("assistant", answered))]
    system = row.text("system", may_be_empty=True)
    first = [("system", system)] if system.strip() else []
    role, content = row.names.get("role", "role"), row.names.get("content", "content")  # as _chat will look for them
    messages = [{role: who, content: said} for who, said in [*first, *earlier, *turns]]
    return _chat(messages, "history", row, "role", "content")


def _prompt_completion(row: _Columns) -> Chat | Text:
    prompt, completion = row.need("prompt"), row.need("completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        return Text(row.text("prompt"), row.text("completion"))
    if not isinstance(prompt, list) or not isinstance(completion, list):
        raise ValueError(
            f"{row.name('prompt')} and {row.name('completion')} must both be text, or both lists of messages, found "
            f"{type(prompt).__name__} and {type(completion).__name__}"
        )
    if not completion:
        raise ValueError(f"{row.name('completion')} must be text, or a list of messages, that is not empty, found []")
    chat = _chat([*prompt, *completion], row.name("completion"), row, "role", "content")
    return Chat(chat.messages, len(prompt), chat.tools, chat.unsupervised)


def _text(row: _Columns) -> Text:
    return Text("", row.text("text"))


READERS: dict[str, Callable[[_Columns], Chat | Text]] = {
    "messages": _messages, "sharegpt": _sharegpt, "alpaca": _alpaca, "prompt_completion": _prompt_completion,
    "text": _text,
}  # fmt: skip


def _chat(turns: Any, column: str, row: _Columns, role: str, content: str) -> Chat:
    """The list `turns` of `column`, each checked and in its place."""
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"{column} must be a list of messages that is not empty, found {turns!r:.60}")
    role, content = row.names.get(role, role), row.names.get(content, content)
    messages = [_message(turn, role, content) for turn in turns]
    for before, turn in zip([None, *messages], messages, strict=False):
        _check_order(before, turn)
    if messages[-1]["role"] != "assistant":
        raise ValueError(f"the last message must be the assistant's, found {messages[-1]['role']!r}")
    tools = row.get("tools") or None
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise ValueError(f"{row.name('tools')} must be a list of JSON schemas, found {tools!r:.60}")
    asked = max((n for n, turn in enumerate(messages) if turn["role"] == "user"), default=-1)
    unsupervised = frozenset(n for n, turn in enumerate(turns) if turn.get("weight") == 0)
    return Chat(messages, asked + 1, tools, unsupervised)


def _message(turn: Any, role_key: str, content_key: str) -> dict[str, Any]:
    calls = isinstance(turn, dict) and turn.get("tool_calls")
    if not isinstance(turn, dict) or role_key not in turn or not (content_key in turn or calls):
        raise ValueError(f"a message needs {role_key} and {content_key}, found {turn!r:.60}")
    role, content = turn[role_key], _plain_content(turn.get(content_key))
    if role == "function_call":  # of ShareGPT: a call as JSON
        return {"role": "assistant", "content": "", "tool_calls": [_call(content)]}
    role = ALIASES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise ValueError(f"a role is one of {', '.join(ROLES)}, found {role!r:.60}")
    if turn.get("weight") not in (None, 0, 1):
        raise ValueError(f"the weight of a message is 0 or 1, found {turn['weight']!r:.60}")
    if not isinstance(content, str) or not (content.strip() or calls or role == "tool"):
        if not (content is None and calls):
            raise ValueError(f"the content of a message is text that is not empty, found {content!r:.60}")
        content = ""
    if calls and (role != "assistant" or not isinstance(calls, list) or not all(isinstance(c, dict) for c in calls)):
        raise ValueError(f"tool_calls is a list of calls in an assistant's message, found {calls!r:.60}")
    # columns of Arrow and Parquet give each message every key, null where it has none
    kept = {key: turn[key] for key in KEPT if turn.get(key) is not None}
    if calls:
        kept["tool_calls"] = [_with_arguments(call) for call in calls]
    return {"role": role, "content": content, **kept}


def _plain_content(content: Any) -> Any:
    """Parts of text, in OpenAI's form, as one text; anything else as it is."""
    parts = content if isinstance(content, list) else []
    texts = [part["text"] for part in parts if isinstance(part, dict) and part.get("type") == "text" and "text" in part]
    if parts and len(texts) == len(parts) and all(isinstance(text, str) for text in texts):
        return "".join(texts)
    return content


def _call(text: Any) -> dict[str, Any]:
    try:
        call = _json(text) if isinstance(text, str) else text
    except ValueError:
        call = None
    if not isinstance(call, dict) or "name" not in call:
        raise ValueError(f"a function_call is JSON with name and arguments, found {text!r:.60}")
    return _with_arguments(
        {"type": "function", "function": {"name": call["name"], "arguments": call.get("arguments", {})}}
    )


def _with_arguments(call: dict[str, Any]) -> dict[str, Any]:
    """Arguments that are JSON text, as in OpenAI's form, as an object: chat templates write it as JSON themselves."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = _json(function["arguments"])
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": arguments}} if isinstance(arguments, dict) else call


def _json(text: str) -> Any:
    """Raises ValueError, whatever is wrong with it: the library has other errors too."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _check_order(before: dict[str, Any] | None, turn: dict[str, Any]) -> None:
    role, earlier = turn["role"], before["role"] if before else None
    if role == "system" and before:
        raise ValueError(f"a system message comes first, found one after {earlier!r}")
    if role == "assistant" and earlier in (None, "system"):
        raise ValueError("the first message must be the user's, found 'assistant'")
    if role == earlier and role in ("user", "assistant"):
        raise ValueError(f"two {role} messages follow one another: join them, or leave one out")
    if role == "tool" and not (earlier == "tool" or (before and earlier == "assistant" and before.get("tool_calls"))):
        raise ValueError(f"a tool's message follows the assistant's tool_calls, found one after {earlier!r}")
