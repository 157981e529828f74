"""conf/generate -> the prompts: those of the configuration, of a file, or of standard input."""

import json
from pathlib import Path

from hydratune.config.piped import standard_input
from hydratune.config.schema import ConfigError, GenerateConf


def read_prompts(conf: GenerateConf) -> list[str]:
    """`prompts`, and then those of `file`: a prompt a line, or JSON objects with a key prompt; - is standard input.

    Raises ConfigError, naming the line.
    """
    if conf.file is None:
        return list(conf.prompts)
    path = Path(conf.file)
    if conf.file != "-" and not path.is_file():
        raise ConfigError(f"generate.file={conf.file}: there is no such file.")
    try:
        text = standard_input() if conf.file == "-" else path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"generate.file={conf.file} is not UTF-8: save it as UTF-8.") from None
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        if path.suffix == ".jsonl":
            found.append(_prompt_of(line, f"{conf.file}, line {number}"))
        else:
            found.append(line.rstrip("\r"))
    if not found:
        raise ConfigError(f"generate.file={conf.file} holds no prompt.")
    return [*conf.prompts, *found]


def _prompt_of(line: str, place: str) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{place} is not JSON: {error.msg}.") from None
    prompt = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise ConfigError(f"{place} must be an object with a text under prompt, found {line.strip()!r:.60}.")
    return prompt
