"""A model or dataset of the Hugging Face hub: whether it is in the cache, and one sentence for why it can't be had."""

import json
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets
from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.constants import ENV_VARS_TRUE_VALUES
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import REGEX_COMMIT_HASH, repo_folder_name

UNREACHED = "and the hub can't be reached"
# the user's own word on it, before anything here may set the same
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
FORBIDDEN = next((name for name in OFFLINE if os.environ.get(name, "").upper() in ENV_VARS_TRUE_VALUES), None)
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Need:
    """A model or a dataset of the hub, as a run asks for it."""

    kind: str  # model, dataset
    id: str
    revision: str | None = None
    name: str | None = None  # configuration of a dataset
    options: str = "{}"  # further arguments of load_dataset that choose what is read, as JSON
    file: str | None = None  # the GGUF file of a model
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


def ask(need: Need, patience: float) -> Any:
    """The hub's description of the repository, with its commit and files; None of files that are on no repository."""
    api = HfApi(token=need.token)
    if need.kind == "model":
        return api.model_info(need.id, revision=need.revision, timeout=patience)
    if "data_files" in need.arguments and "/" not in need.id:
        found = re.search(r"hf://datasets/([^/@\"]+/[^/@\"]+)", need.options)
        return api.dataset_info(found[1], timeout=patience) if found else None
    return api.dataset_info(need.id, revision=need.revision, timeout=patience)


def is_cached(need: Need) -> bool:
    """Whether its files are in the cache, as the libraries find them without a network."""
    if need.kind == "dataset":
        return _is_prepared(need)
    where: dict[str, Any] = {"repo_id": need.id, "revision": need.revision}
    if need.file:
        return isinstance(try_to_load_from_cache(filename=need.file, **where), str)
    if not isinstance(try_to_load_from_cache(filename="config.json", **where), str):
        return False
    index = try_to_load_from_cache(filename=INDEX, **where)
    if not isinstance(index, str):
        return isinstance(try_to_load_from_cache(filename=WEIGHTS, **where), str)
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

    status = next((one.response.status_code for one in chain if isinstance(one, HfHubHTTPError)), None)
    said = " ".join(str(one) for one in chain)
    if found(GatedRepoError) or "gated dataset" in said or status == 403:
        page = f"{constants.ENDPOINT}/{'datasets/' * (need.kind == 'dataset')}{need.id}"
        return (
            f"The {need} is gated: accept its terms at {page}, then type hf auth login, or set HF_TOKEN to a "
            "token that may read it."
        )
    if found(RevisionNotFoundError):
        return f"The {need} can't be had: the hub has {need.id}, but not that revision."
    if found(RepositoryNotFoundError) or status == 401 or f"'{need.id}' doesn't exist on the Hub" in said:
        return (
            f"The {need} is neither a folder here nor on the hub: correct the name, or, if it is private, type "
            "hf auth login, or set HF_TOKEN."
        )
    unreached = found(OfflineModeIsEnabled, LocalEntryNotFoundError, ConnectionError, TimeoutError)
    if unreached or (status or 0) >= 500 or any(type(one).__module__.startswith("httpx") for one in chain):
        return missing([need])
    if f"Couldn't find cache for {need.id}" in said:
        return missing([need])
    return None


def missing(needs: Sequence[Need]) -> str:
    """The sentence for what can't be had without a network, with what to type where there is one."""
    first, *others = [f"the {need}" + (f", file {need.file}" if need.file else "") for need in needs]
    what = " and ".join([", ".join([first, *others[:-1]]), *others[-1:]])
    why = f"{UNREACHED} ({FORBIDDEN} is set)" if FORBIDDEN else UNREACHED
    are = "are" if others else "is"
    return (
        f"{what[0].upper()}{what[1:]} {are} neither here nor in {constants.HF_HOME}, {why}: "
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
