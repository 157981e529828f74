"""Where answers end: at the chat template's end-of-turn token too, which a model that was never trained on it may not name."""

import json
from pathlib import Path
from typing import Any


def stop_token(tokenizer: Any) -> int | None:
    """The token that ends an assistant's turn; None where the chat template writes none, or there is none."""
    from hydratune.build.rendering import Renderer

    stop = Renderer(tokenizer).stop if tokenizer.chat_template else None
    return None if stop is None else int(tokenizer.convert_tokens_to_ids(stop))


def ends_of(model: Any, stop: int | None, *more: int | None) -> list[int]:
    """The model's own ends, `stop` and `more`."""
    own = model.generation_config.eos_token_id
    return sorted({stop, *more, *(own if isinstance(own, list) else [own])} - {None})


def end_answers(folder: Path, stop: int | None) -> None:
    """Name `stop` in generation_config.json beside the model's own ends, so that servers stop there too."""
    if stop is None:
        return
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings = settings.get("text_config", {}) | settings
    path = folder / "generation_config.json"
    # without the file, transformers takes these from config.json
    taken = {key: settings[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in settings}
    written = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else taken
    own = written.get("eos_token_id")
    ends = own if isinstance(own, list) else [] if own is None else [own]
    if stop not in ends:
        written["eos_token_id"] = [*ends, stop]
        path.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
