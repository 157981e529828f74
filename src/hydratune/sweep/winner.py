"""What the words of a sweep's job give when they are typed again, and the command that gives its settings in any case."""

import os
import re
from collections.abc import Sequence
from typing import Any

from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

from hydratune.config.load import to_config
from hydratune.config.saved import CODE, make_absolute, read_saved, value_of
from hydratune.config.schema import STAGES, ConfigError, SweepConf
from hydratune.config.secrets import REDACTED
from hydratune.config.settings import config_loader
from hydratune.config.typed import quoted
from hydratune.sweep.composing import composed
from hydratune.sweep.folder import Entry, SweepDir
from hydratune.sweep.identity import job_hash

ROOT = "config"  # the name of the file that a command begins with where none is named


def command(folder: SweepDir, entry: Entry) -> list[str]:
    """What trains the job's settings again: its words, where they still give them, else from the run itself."""
    info, root = folder.info, folder.run_of(entry.number)
    if _is_given_by_words(info, entry):
        place, name = info.get("config_dir"), info.get("config_name") or ROOT
        options = [*(["--config-dir", place] if place else []), *(["--config-name", name] if name != ROOT else [])]
        return ["hydratune", *options, *entry.words]
    config = read_saved(root)
    named = {key: value_of(config, key) for key in CODE}
    # what a file names is run where the command line names it too
    words = [
        f"{'++' if isinstance(value, dict) else ''}{key}={_spelled(value)}"
        for key, value in named.items()
        if value and value != "demo" and REDACTED not in str(value)
    ]
    stages = entry.stages or config.stages
    if list(stages) != list(STAGES):  # which a run that begins with another doesn't take over
        words.append(f"stages=[{','.join(stages)}]")
    return ["hydratune", "--from", str(root), *words]


def changed(folder: SweepDir, entries: Sequence[Entry]) -> list[int]:
    """Those of `entries` whose words give other settings by now; none where the command can't be given as it was."""
    info = folder.info
    if info.get("cwd") != os.getcwd() or info.get("config_path"):  # whose files would be others
        return []
    try:
        hashes = _hashes(info, entries)
    except (ConfigError, HydraException, OmegaConfBaseException, OSError):
        return []
    return [entry.number for entry, now in zip(entries, hashes, strict=True) if not entry.hash.startswith(now)]


def _hashes(info: dict[str, Any], entries: Sequence[Entry]) -> list[str]:
    """Those that the words of the jobs would have in the same sweep now."""
    loader = config_loader(info.get("config_dir"))
    master = loader.load_configuration(info.get("config_name") or ROOT, [], RunMode.MULTIRUN)
    grids = [word for word in info["typed"] if word.startswith("sweep=")]
    configs = composed(loader, master, [[*grids, *entry.words] for entry in entries])
    for config in configs:
        make_absolute(config)
    return [job_hash(config, info["swept"]) for config in configs]


def _is_given_by_words(info: dict[str, Any], entry: Entry) -> bool:
    """Whether a single run of the same settings comes of them, typed here and now."""
    # a named grid may set more than what it sweeps, and typed again it would be a sweep
    if info.get("config_path") or any(word.startswith("sweep=") for word in info.get("typed", [])):
        return False
    try:
        loader = config_loader(info.get("config_dir"))
        single = loader.load_configuration(info.get("config_name") or ROOT, list(entry.words), RunMode.RUN)
        mode, config = single.hydra.mode, to_config(single)
        make_absolute(config)
        sweeps = mode == RunMode.MULTIRUN or config.sweep != SweepConf()
        return not sweeps and entry.hash.startswith(job_hash(config, info["swept"]))
    except (ConfigError, HydraException, OmegaConfBaseException, OSError):
        return False


def _spelled(value: Any) -> str:
    """As Hydra's grammar has it."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_spelled(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return f"[{','.join(_spelled(inner) for inner in value)}]"
    if isinstance(value, str):
        bare = re.fullmatch(r"[A-Za-z_/][\w./:-]*", value) and value.lower() not in (
            "true",
            "false",
            "null",
            "nan",
            "inf",
        )
        return value if bare else quoted(value)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
