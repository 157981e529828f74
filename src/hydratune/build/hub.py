"""A model or dataset of the Hugging Face hub: whether it is in the cache, and one sentence for why it can't be had."""

import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

import datasets
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.constants import ENV_VARS_TRUE_VALUES
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import REGEX_COMMIT_HASH, repo_folder_name


def is_set(flag: str) -> bool:
    """Whether the environment says yes to it, as the libraries read it."""
    return os.environ.get(flag, "").upper() in ENV_VARS_TRUE_VALUES


HUB = "the hub"
MISSING = "neither here nor in"  # which the sentence about what can't be had without a network says
# the user's own word on it, before anything here may set the same
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
FORBIDDEN = next((name for name in OFFLINE if is_set(name)), None)
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZERS = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


class NotThere(Exception):
    """There is no file at an address outside the hub."""


@dataclass(frozen=True)
class Need:
    """A model or a dataset of the hub, as a run asks for it."""

    kind: str  # model, dataset
    id: str
    revision: str | None = None
    name: str | None = None  # configuration of a dataset
    options: str = "{}"  # further arguments of load_dataset that choose what is read, as JSON
    file: str | None = None  # the GGUF file of a model
    weights: bool = True  # of a model; else its configuration and tokenizer are enough
    asked: str = field(default="", compare=False)  # the setting or the task that asks for it
    token: Any = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        if "data_files" in json.loads(self.options) and "/" not in self.id:
            return f"{self.id} files of {self.asked}"
        of = f" of {self.asked}" if self.asked else ""
        at = f" at revision {self.revision}" if self.revision else ""
        return f"{self.kind} {self.id}{f' ({self.name})' if self.name else ''}{at}{of}"

    @property
    def arguments(self) -> dict[str, Any]:
        """What load_dataset takes besides the path and the revision."""
        return {"name": self.name, **json.loads(self.options)}

    @property
    def addresses(self) -> list[str]:
        """Where the files are that no repository stands for: dataset json with data_files=https://host/rows.jsonl."""
        files = data_files(self.arguments) if self.kind == "dataset" and "/" not in self.id else []
        return [address(file) for file in files if is_remote(file)]

    @property
    def place(self) -> str:
        """Who has it: the hub, or another host."""
        hosts = [HUB if one.startswith("hf://") else urlsplit(one).netloc for one in self.addresses]
        return " and ".join(dict.fromkeys(hosts)) or HUB


def data_files(arguments: dict[str, Any]) -> list[str]:
    """Those that load_dataset is given, in whichever of its ways."""
    files = arguments.get("data_files") or []
    parts = files.values() if isinstance(files, dict) else [files]
    return [str(name) for part in parts for name in (part if isinstance(part, list) else [part])]


def address(file: str) -> str:
    """What has to be fetched for it: of the chain zip://rows.jsonl::https://host/all.zip the last link."""
    return file.rpartition("::")[2]


def is_remote(file: str) -> bool:
    return "://" in address(file) and not address(file).startswith("file://")


def is_cached(need: Need) -> bool:
    """Whether its files are in the cache, as the libraries find them without a network."""
    if need.kind == "dataset":
        return _is_prepared(need)
    where: dict[str, Any] = {"repo_id": need.id, "revision": need.revision}
    if need.file:
        return isinstance(try_to_load_from_cache(filename=need.file, **where), str)

    def has(*names: str) -> bool:
        return any(isinstance(try_to_load_from_cache(filename=name, **where), str) for name in names)

    if not has("config.json") or not has(*TOKENIZERS):
        return False
    if not need.weights:
        return True
    index = try_to_load_from_cache(filename=INDEX, **where)
    if not isinstance(index, str):
        return has(WEIGHTS)
    shards = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()
    return all((Path(index).parent / shard).is_file() for shard in set(shards))


def _is_prepared(need: Need) -> bool:
    """Without a network datasets takes the rows that it has written as Arrow files, not the files of the repository."""
    before = datasets.logging.get_verbosity()
    try:
        datasets.logging.set_verbosity_error()  # it warns of what is wanted here
        with no_network():
            builder = datasets.load.load_dataset_builder(need.id, revision=need.revision, **need.arguments)
    except Exception:  # of many kinds: there is none, or another configuration
        return False
    finally:
        datasets.logging.set_verbosity(before)
    if need.revision not in (None, "main") and builder.hash != _commit(need):
        return False  # without a network the library takes what it has prepared last
    return any(Path(builder.cache_dir).glob("*.arrow"))


def _commit(need: Need) -> str | None:
    """The commit that the revision was when the hub was last asked for it."""
    if REGEX_COMMIT_HASH.fullmatch(need.revision or ""):
        return need.revision
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=need.id, repo_type=need.kind)
    ref = folder / "refs" / str(need.revision)
    return ref.read_text() if ref.is_file() else None


@contextmanager
def no_network() -> Iterator[None]:
    """Inside, the libraries ask the hub for nothing."""
    with (
        patch.object(constants, "HF_HUB_OFFLINE", True),
        patch.object(datasets.config, "HF_HUB_OFFLINE", True),
        patch.object(datasets.config, "HF_DATASETS_OFFLINE", True),
    ):
        yield


def explain(need: Need, error: BaseException) -> str | None:
    """One sentence for what the libraries say about the hub, or None where it is about something else."""
    chain = list(causes(error))

    def found(*kinds: type[BaseException]) -> bool:
        return any(isinstance(one, kinds) for one in chain)

    answer = next((one.response for one in chain if isinstance(one, HfHubHTTPError)), None)
    status = answer.status_code if answer is not None else 0
    said = " ".join(str(one) for one in chain)
    if found(NotThere):
        return f"The {need} can't be had: there is no file at {error}."
    if found(GatedRepoError) or "gated dataset" in said:
        page = f"{constants.ENDPOINT}/{'datasets/' * (need.kind == 'dataset')}{need.id}"
        return (
            f"The {need} is gated: accept its terms at {page}, then type hf auth login, or set HF_TOKEN to a "
            "token that may read it."
        )
    if found(DisabledRepoError):
        return f"The {need} can't be had: the hub has disabled {need.id}."
    if answer is not None and status == 403:
        why = answer.headers.get("X-Error-Message") or "it doesn't say why"
        return (
            f"The {need} can't be had: {urlsplit(str(answer.url)).netloc} answers 403 Forbidden ({why}): set HF_TOKEN to a "
            "token that may read it, or, where a proxy answers in its place, ask who runs that."
        )
    if found(RevisionNotFoundError):
        return f"The {need} can't be had: the hub has {need.id}, but not that revision."
    if found(RepositoryNotFoundError) or status == 401 or f"'{need.id}' doesn't exist on the Hub" in said:
        return (
            f"The {need} is neither a folder here nor on the hub: correct the name, or, if it is private, type "
            "hf auth login, or set HF_TOKEN."
        )
    unreached = found(OfflineModeIsEnabled, LocalEntryNotFoundError, ConnectionError, TimeoutError)
    if unreached or status >= 500 or any(type(one).__module__.startswith("httpx") for one in chain):
        return missing([need])
    if f"Couldn't find cache for {need.id}" in said:
        return missing([need])
    return None


def missing(needs: Sequence[Need]) -> str:
    """The sentence for what can't be had without a network, with what to type where there is one."""
    first, *others = [f"the {need}" + (f", file {need.file}" if need.file else "") for need in needs]
    what = " and ".join([", ".join([first, *others[:-1]]), *others[-1:]])
    places = " and ".join(dict.fromkeys(need.place for need in needs))
    why = f" ({FORBIDDEN} is set)" if FORBIDDEN else ""
    are = "are" if others else "is"
    return (
        f"{what[0].upper()}{what[1:]} {are} {MISSING} {constants.HF_HOME}, and {places} can't be reached{why}: "
        f"type {prefetching()} where there is a network."
    )


def prefetching() -> str:
    """The command that brings what the command typed here needs."""
    words = sys.argv[1:]
    if {"-m", "--multirun"} & set(words):
        return "hydratune prefetch with the settings of a job"
    typed = sys.orig_argv
    # taken out of sys.argv before Hydra sees it
    whose = [
        part
        for at, word in enumerate(typed)
        if word.startswith("--from")
        for part in typed[at : at + 1 + ("=" not in word)]
    ]
    return shlex.join(["hydratune", "prefetch", *whose, *words])


def causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
