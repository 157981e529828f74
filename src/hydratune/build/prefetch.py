"""Bringing models and datasets of the hub into Hugging Face's caches, with a manifest of each."""

import errno
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import constants, snapshot_download

from hydratune.build.hub import HUB, MISSING, Need, causes, explain, is_set
from hydratune.build.pins import FLAGS, manifest, root_of
from hydratune.build.probe import ask
from hydratune.build.source import LOADED
from hydratune.config.schema import ConfigError, RunError

PATIENCE = 30.0  # seconds for the hub to answer
Manifest = dict[str, Any]


def fetch(need: Need, cache: Path, write: Callable[[Need, Manifest], None]) -> tuple[Manifest, bool]:
    """Bring it, and write its manifest; returns that, and whether all of it was there already.

    Raises ConfigError where the hub refuses it, RunError where it can't be reached or there is no room. What was
    brought stays, and the next call goes on from it.
    """
    before = manifest(need, cache)
    with _plain_errors(need):
        made, was_there = _model(need) if need.kind == "model" else _dataset(need)
    made |= {"fetched": datetime.now(UTC).isoformat(timespec="seconds")}
    if before and before["commit"] == made["commit"] and made["files"].items() <= before["files"].items():
        return before, was_there
    write(need, made)
    return made, was_there


def _model(need: Need) -> tuple[Manifest, bool]:
    which: dict[str, Any] = {"allow_patterns": [need.file]} if need.file else LOADED
    if not need.weights:
        which = {**LOADED, "ignore_patterns": [*LOADED["ignore_patterns"], "*.safetensors"]}
    described = ask(need, PATIENCE)  # snapshot_download is content with its cache where nobody answers
    where: dict[str, Any] = {"repo_id": need.id, "revision": need.revision, "token": need.token, **which}
    plan: Any = snapshot_download(**where, dry_run=True)
    names = [one.filename for one in plan]
    if need.file and need.file not in names:
        others = [one.rfilename for one in described.siblings if one.rfilename.endswith(".gguf")]
        has = ", ".join(others) or "no .gguf file"
        raise ConfigError(f"model.gguf_file={need.file} is not in {need.id} on the hub, which has {has}.")
    if need.weights and not need.file and not any(name.endswith(".safetensors") for name in names):
        raise ConfigError(f"The {need} holds no .safetensors file, the only kind loaded.")
    _refuse_without_room(need, sum(one.file_size or 0 for one in plan if one.will_download))
    folder = Path(snapshot_download(**where))
    return _described(need, folder, folder.name, names), not any(one.will_download for one in plan)


def _dataset(need: Need) -> tuple[Manifest, bool]:
    """As load_dataset prepares it: that is all that the library reads without a network."""
    described = ask(need, PATIENCE)
    commit = None if need.addresses else described.sha  # files that no repository's commit stands for
    builder: Any = datasets.load_dataset_builder(need.id, revision=commit, **need.arguments)
    folder = Path(builder.cache_dir)
    was_there = folder.is_dir()
    builder.download_and_prepare()
    # what later steps keep beside it comes and goes
    names = ["dataset_info.json", *(path.name for path in folder.glob("*.arrow") if not path.name.startswith("cache-"))]
    return _described(need, folder, commit or builder.hash, names), was_there


def _described(need: Need, folder: Path, commit: str, names: Sequence[str]) -> Manifest:
    files = {name: (folder / name).stat().st_size for name in sorted(names)}
    return {
        "kind": need.kind,
        "id": need.id,
        "name": need.name,
        "revision": need.revision or "main",
        "commit": commit,
        "folder": str(folder.resolve().relative_to(root_of(need.kind).resolve())),
        "files": files,
        "bytes": sum(files.values()),
    }


def _refuse_without_room(need: Need, wanted: int) -> None:
    place = root_of(need.kind)
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if wanted > free:
        raise _no_room(need, f"{size_text(wanted)} are to come, and {size_text(free)} are free")


def _no_room(need: Need, why: str) -> RunError:
    return RunError(
        f"There is no room for the {need} in {root_of(need.kind)} ({why}): make some, or set HF_HOME to a larger disk, and "
        "type the same command again."
    )


@contextmanager
def _plain_errors(need: Need) -> Iterator[None]:
    try:
        yield
    except (ConfigError, RunError):
        raise
    except Exception as error:  # of the hub, of two HTTP libraries, and of a dataset's builder
        if any(getattr(one, "errno", None) in (errno.ENOSPC, errno.EDQUOT) for one in causes(error)):
            raise _no_room(need, "the disk is full") from None
        said = " ".join(str(error).split())
        if said.startswith("Not enough disk space"):
            raise _no_room(need, said[:200]) from None
        if "Config name is missing" in said:
            names = said.partition("available configs:")[2].partition("Example")[0].strip()
            raise ConfigError(
                f"The {need} has several configurations, and none is named: set data.name to one of {names}."
            ) from None
        sentence = explain(need, error)
        if sentence and MISSING in sentence:
            where = constants.ENDPOINT if need.place == HUB else need.place
            raise RunError(
                f"The {need} can't be fetched: {where} can't be reached ({said[:200] or type(error).__name__})."
            ) from None
        if sentence:
            raise ConfigError(sentence) from None
        raise RunError(f"The {need} can't be fetched: {type(error).__name__}: {said[:300].rstrip('.')}.") from None


def size_text(count: int) -> str:
    """Bytes in the unit that suits."""
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}"


def refuse_offline() -> None:
    """Raises ConfigError where the user's own settings forbid what is asked for."""
    for flag in FLAGS:
        if is_set(flag):
            raise ConfigError(f"{flag} is set, and prefetch asks the hub: type {flag}=0 before the command.")
