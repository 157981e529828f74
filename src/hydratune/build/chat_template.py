"""conf/model's chat_template and chat_template_kwargs -> the template that training, evaluation and serving share."""

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError, meta, nodes
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template

from hydratune.config.schema import ConfigError
from hydratune.config.values import suggestion

TEMPLATES = Path(__file__).resolve().parents[1] / "chat_templates"
AT_EACH_CALL = {"messages", "tools", "documents", "add_generation_prompt"}  # what apply_chat_template gives a template
ASKS = {"defined", "undefined", "default", "d"}  # Jinja's tests and filters for what may not be given
DAYS = datetime(2001, 2, 3), datetime(2022, 12, 24)


def named_template(name: str) -> str:
    """The text of one of ours, or of a file. Raises ConfigError where `name` is neither."""
    ours = TEMPLATES / f"{name}.jinja"
    path = ours if ours.is_file() else Path(name)
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in TEMPLATES.glob("*.jinja")))
        raise ConfigError(f"model.chat_template={name} is neither a file nor one of ours: {names}.")
    return path.read_text(encoding="utf-8")


def give_defaults(tokenizer: PreTrainedTokenizerBase, defaults: Mapping[str, Any]) -> None:
    """Have the tokenizer's template set `defaults` itself, for whoever asks without them.

    What is saved with the model has them too, so that it is served as it was trained.

    Raises ConfigError for a variable that the template doesn't read.
    """
    known = variables(tokenizer)
    for name in defaults.keys() - known:
        raise ConfigError(
            f"model.chat_template_kwargs.{name} is no variable of the chat template{suggestion(name, known)}, which reads "
            f"{', '.join(sorted(known)) or 'none'}."
        )
    head = "".join(
        f"{{%- if {name} is not defined %}}{{%- set {name} = {value!r} %}}{{%- endif %}}\n"  # a literal of Jinja's too
        for name, value in defaults.items()
    )
    made: Any = {name: head + text for name, text in _templates(tokenizer).items()}
    tokenizer.chat_template = made.get("", made)


def variables(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """What the template may be given besides the conversation: what it never sets, or sets where it is not defined."""
    known: set[str] = set()
    for text in _templates(tokenizer).values():
        tree = _compiled(text).environment.parse(text)
        own = {name.name for name in tree.find_all(nodes.Name) if name.ctx != "load"}
        asks = [*tree.find_all(nodes.Test), *tree.find_all(nodes.Filter)]
        asked = {one.node.name for one in asks if one.name in ASKS and isinstance(one.node, nodes.Name)}
        free = meta.find_undeclared_variables(tree)
        known |= free & asked | free - own
    return known - AT_EACH_CALL - {*tokenizer.special_tokens_map}


def dated(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template writes the day on which it is asked."""
    words = tokenizer.special_tokens_map | {
        "messages": [{"role": "user", "content": "x"}],
        "add_generation_prompt": True,
    }
    for text in _templates(tokenizer).values():
        with suppress(TemplateError, ValueError, TypeError):  # which are said where rows are rendered
            one, other = (_compiled(text).render(words, strftime_now=day.strftime) for day in DAYS)
            if one != other:
                return True
    return False


def _templates(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """By their names, where there are several; else under ''."""
    own: Any = tokenizer.chat_template
    return own if isinstance(own, dict) else {"": own} if own else {}


def _compiled(text: str) -> Template:
    """With the tags and functions that transformers knows in a chat template."""
    template: Template = _compile_jinja_template(text)
    return template
