"""What `hydratune prefetch` has brought: a manifest for each thing, and loading at the commits that they name."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
from datasets.packaged_modules.cache.cache import Cache
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name
from xxhash import xxh3_64

from hydratune.build.hub import HUB, MISSING, Need, explain, is_cached, is_set, missing, prefetching
from hydratune.build.needs import model_need
from hydratune.build.probe import ask
from hydratune.config.schema import Config, ConfigError

FLAGS = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_EVALUATE_OFFLINE")
PATIENCE = 5.0  # seconds for the hub to say whether it has something
# arguments of load_dataset_builder that don't choose what is read
USUAL = ("cache_dir", "features", "download_config", "download_mode", "token", "storage_options")
NAMED = 3  # files that a sentence names

_load_dataset_builder = datasets.load.load_dataset_builder
_pins: list[Path] = []  # the cache whose manifests count in this process


def manifest_path(need: Need, cache: Path) -> Path:
    """Where the manifest of a thing is: one file for each thing and revision as they are asked for."""
    # with or without the weights it is one thing
    key = json.dumps([need.kind, need.id, need.revision or "main", need.name, need.options, need.file])
    name = repo_folder_name(repo_id=need.id, repo_type=need.kind)
    return cache / "prefetched" / f"{name}-{xxh3_64(key.encode()).hexdigest()[:8]}.json"


def manifest(need: Need, cache: Path) -> dict[str, Any] | None:
    """What was prefetched of it: kind, id, name, revision, commit, folder, files with their bytes, bytes.

    None also where the weights are needed, and the model was prefetched without.
    """
    try:
        found: dict[str, Any] = json.loads(manifest_path(need, cache).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        raise ConfigError(
            f"{manifest_path(need, cache)} is damaged: type {prefetching()} where there is a network."
        ) from None
    whole = need.kind != "model" or need.file or any(name.endswith(".safetensors") for name in found["files"])
    return found if whole or not need.weights else None


def root_of(kind: str) -> Path:
    """The cache of Hugging Face that the folders of manifests are in."""
    return Path(constants.HF_HUB_CACHE if kind == "model" else datasets.config.HF_DATASETS_CACHE).expanduser()


def _files_gone(need: Need, kept: dict[str, Any]) -> list[str]:
    """Those of a manifest's files that are needed and no longer there as they were."""
    folder = root_of(kept["kind"]) / kept["folder"]
    needed = [name for name in kept["files"] if need.weights or not name.endswith(".safetensors")]
    return [name for name in needed if not _has_size(folder / name, kept["files"][name])]


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def pinned(config: Config, cache: Path) -> Config:
    """The configuration with the model's commit as its revision, where it was prefetched; datasets are pinned as well.

    What is saved and compared is the configuration as it was typed: this one is for loading alone.
    """
    _pins[:] = [cache]
    datasets.load.load_dataset_builder = _pinned_builder
    need = model_need(config.model)
    kept = need and manifest(replace(need, weights=False), cache)
    return replace(config, model=replace(config.model, revision=kept["commit"])) if kept else config


def go_offline() -> list[str]:
    """No library asks the hub for anything from here on; returns the flags by which the user has set otherwise.

    Each is as `FLAG=value`. The processes that this one starts, such as the jobs of a sweep, have the flags too.
    """
    ours = [flag for flag in FLAGS if not os.environ.get(flag)]
    others = [f"{flag}={os.environ[flag]}" for flag in FLAGS if flag not in ours and not is_set(flag)]
    os.environ.update(dict.fromkeys(ours, "1"))
    heed_flags()
    return others


def heed_flags() -> None:
    """Tell the libraries of the flags, which they read when they were imported: before, or in a process that was forked."""
    if is_set("HF_HUB_OFFLINE"):
        constants.HF_HUB_OFFLINE = True
    if is_set("HF_DATASETS_OFFLINE"):
        datasets.config.HF_HUB_OFFLINE = datasets.config.HF_DATASETS_OFFLINE = True
    evaluate = sys.modules.get("evaluate.config")
    if evaluate and is_set("HF_EVALUATE_OFFLINE"):
        evaluate.HF_EVALUATE_OFFLINE = True  # type: ignore[attr-defined]


def why_offline(needs: Sequence[Need], cache: Path) -> str | None:
    """Why no library is to ask the hub for `needs`, or None where they are to.

    Of the hub one short question is asked, and one more for each repository that is not in the cache; another host is
    asked for its files that are not. Raises ConfigError for what is neither in the cache nor to be had, and for what was
    prefetched and is no longer whole.
    """
    kept = {need: found for need in needs if (found := manifest(need, cache))}
    gone = [_gone(need, found) for need, found in kept.items() if _files_gone(need, found)]
    if gone:
        raise ConfigError(gone)
    if len(kept) == len(needs):
        return f"prefetched: all {len(needs)} models and datasets that are needed here, so the hub is not asked"
    lacking = [need for need in needs if need not in kept and not is_cached(need)]
    repositories = _by_repository(lacking)
    offline = constants.is_offline_mode()  # the user's own word
    # where nothing lacks, the hub is asked whether it answers at all
    asked = repositories or [need for need in needs if need.place == HUB][:1]
    refused: list[str] = []
    silent: set[str] = set()  # places that don't answer
    for need in asked if not offline else []:
        sentence = None if need.place in silent else _refusal(need)
        if sentence and MISSING in sentence:
            silent.add(need.place)
        elif sentence and need in lacking:
            refused.append(sentence)
    if unreached := [need for need in repositories if offline or need.place in silent]:
        refused.insert(0, missing(unreached))
    if refused:
        raise ConfigError(refused)
    return "the hub can't be reached: all that is needed here is in its cache" if HUB in silent else None


def _by_repository(needs: Sequence[Need]) -> list[Need]:
    """One of each repository, which says how many others of it there are."""
    found: dict[tuple[Any, ...], list[Need]] = {}
    for need in needs:
        found.setdefault((need.kind, need.id, need.revision, need.options), []).append(need)
    return [
        replace(first, asked=f"{first.asked} and {len(others)} more") if others else first
        for first, *others in found.values()
    ]


def _refusal(need: Need) -> str | None:
    """Why the hub doesn't give it; None where it will, and where only the loading can tell."""
    try:
        ask(need, PATIENCE)
    except Exception as error:  # of the hub and of two HTTP libraries
        return explain(need, error)
    return None


def _gone(need: Need, kept: dict[str, Any]) -> str:
    gone = _files_gone(need, kept)
    named = ", ".join(gone[:NAMED]) + (f" and {len(gone) - NAMED} more" if len(gone) > NAMED else "")
    return (
        f"The {need}, prefetched at {kept['commit']}, lacks {named} in {root_of(need.kind) / kept['folder']}: type "
        f"{prefetching()} where there is a network."
    )


def _pinned_builder(
    path: str,
    name: str | None = None,
    data_dir: str | None = None,
    data_files: Any = None,
    revision: Any = None,
    **rest: Any,
) -> Any:
    """datasets.load_dataset_builder, at the commit that was prefetched.

    Without a network the library takes whichever commit it has prepared last, whatever revision it is asked for.
    """
    chosen = {"data_dir": data_dir, "data_files": data_files, **{k: v for k, v in rest.items() if k not in USUAL}}
    options = json.dumps(
        {key: value for key, value in chosen.items() if value is not None}, sort_keys=True, default=str
    )
    need = Need("dataset", path, revision and str(revision), name, options)
    kept = manifest(need, _pins[0]) if _pins and not rest.get("cache_dir") and not rest.get("features") else None
    if kept is None:
        return _load_dataset_builder(path, name, data_dir, data_files, revision=revision, **rest)
    config_id, version, digest = Path(kept["folder"]).parts[-3:]
    dataset = path.rpartition("/")[2]
    return Cache(dataset_name=dataset, repo_id=path, config_name=config_id, version=version, hash=digest)
