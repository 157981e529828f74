"""What tells a sweep from another, and its jobs from each other."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from hydratune.config import secrets
from hydratune.config.load import CONF_DIR, FREE, config_hash, saved_form
from hydratune.config.saved import value_of
from hydratune.config.schema import Config
from hydratune.sweep.folder import SweepDir


def key_of(word: str) -> str:
    """Of an override."""
    return word.partition("=")[0].lstrip("+~")


def swept_keys(loader: ConfigLoader, typed: Sequence[str], jobs: Sequence[Sequence[str]]) -> list[str]:
    """The keys whose values are not those typed, compared as values: a search spells what it doesn't vary anew."""
    parser = OverridesParser.create(config_loader=loader)

    def said(word: str) -> tuple[str, Any]:
        override = parser.parse_override(word)
        return override.get_key_element(), override.value()

    known, fixed = set(typed), [said(word) for word in typed]
    new = dict.fromkeys(word for words in jobs for word in words if word not in known)
    return list(dict.fromkeys(key_of(word) for word in new if said(word) not in fixed))


def info_of(master: DictConfig, swept: list[str]) -> dict[str, Any]:
    """What sweep.json holds. The identity is that of the command: other values of what is swept extend the sweep."""
    sources = {source.provider: str(source.path) for source in master.hydra.runtime.config_sources}
    place, root = sources.get("command-line"), sources.get("main")
    typed = list(master.hydra.overrides.task)
    said = json.dumps(
        [sorted(_fixed(typed, swept)), sorted(swept), [place] if place else [], master.hydra.job.config_name]
    )
    return {
        "identity": hashlib.sha256(said.encode()).hexdigest()[:8],
        "typed": ["hydratune", *(secrets.redacted_override(word) for word in typed)],
        "config_dir": place,
        "config_name": master.hydra.job.config_name,
        "config_path": root if root and Path(root) != CONF_DIR else None,
        "cwd": os.getcwd(),
        "swept": swept,
        "direction": master.sweep.direction,
        "launcher": OmegaConf.to_container(master.hydra.launcher, resolve=True),
    }


def extending(info: dict[str, Any], folder: SweepDir) -> dict[str, Any]:
    """`info` as that of the sweep in `folder`, where it differs from it in keys that have one value here or there."""
    if not (folder.root / "sweep.json").exists():
        return info
    found = {"config_name": "config", "config_path": None, "config_dir": None, "typed": [], "swept": [], **folder.info}
    here, there = ({key_of(w): w for w in _fixed(one["typed"][1:], one["swept"])} for one in (info, found))
    # what one of them sweeps and the other has one value of; of FREE keys a job's hash would be another by it
    single = {*(set(info["swept"]) - set(found["swept"])), *(set(found["swept"]) - set(info["swept"]))}
    typed = {*(set(there) & set(info["swept"])), *(set(here) & set(found["swept"]))}
    alike = all(info[name] == found[name] for name in ("config_dir", "config_name", "config_path"))
    rest = [sorted(word for key, word in words.items() if key not in single) for words in (here, there)]
    if not alike or single != typed or rest[0] != rest[1]:
        return info
    return {**info, "identity": found["identity"], "swept": list(dict.fromkeys([*found["swept"], *info["swept"]]))}


def _fixed(typed: Iterable[str], swept: Sequence[str]) -> list[str]:
    """The words that each job has, and that say what it is."""
    free = {*FREE, "hydra/launcher", "cluster"}
    # sweep=NAME is a file that may set anything; sweep.seeds and the like only say which jobs there are
    return [
        w for w in typed if key_of(w) not in swept and (key_of(w) == "sweep" or key_of(w).partition(".")[0] not in free)
    ]


def job_hash(config: Config, swept: Sequence[str]) -> str:
    """That of what is trained, and with it what else is swept, such as a benchmark's settings."""
    free = _free(config, swept)
    if not free:
        return config_hash(config)
    said = json.dumps([config_hash(config), secrets.redacted(free)], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:8]


def whole_hash(config: Config, swept: Sequence[str]) -> str:
    """The same of so many digits that no two settings share it."""
    kept = {key: value for key, value in saved_form(config).items() if key not in FREE}
    said = json.dumps([kept, secrets.redacted(_free(config, swept))], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()


def _free(config: Config, swept: Sequence[str]) -> dict[str, Any]:
    free = {}
    for key in swept:
        if key.partition(".")[0] in FREE:
            value = value_of(config, key)
            free[key] = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    return free
