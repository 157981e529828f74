"""sweep.reuse: what another sweep or run beside this one has done with the same settings, taken over."""

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from hydratune.config.load import cache_dir, config_hash
from hydratune.config.schema import Config, ConfigError, ModelConf, RunError
from hydratune.preflight_hub import as_prefetched, settle_hub
from hydratune.run import receipt
from hydratune.run.console import say
from hydratune.run.layout import RunDir, alone_in
from hydratune.sweep import processes
from hydratune.sweep.folder import SweepDir
from hydratune.sweep.jobs import Job, Plan

# what is another run's own
LEFT = {"config.yaml", ".hydra", "job.json", "screen.log", ".lock", "cancelled", "checkpoints"}


def take_over(plan: Plan) -> None:
    """Copy what was trained with a job's settings, and what was made of it, into the job's folder, where it has not begun.

    Weights are linked where the file system can. Nothing is taken over where the rows or the model are others by now.
    """
    beside = plan.folder.root.absolute().parent
    known = _trained_beside(plan.folder.root.absolute())
    found: list[tuple[Job, list[Path]]] = []
    for job in plan.jobs:
        alone = sorted(path for path in beside.glob(f"*-{config_hash(job.config)}") if path.is_dir())
        those = [] if _has_begun(job) else [one for one in [*known[job.hash], *alone] if _is_trained(one)]
        found += [(job, those)] if those else []
    tokens = _tokens_now([job.config for job, _ in found])
    for job, those in found:
        why = ""
        for one in those:
            now = _difference(one, job.config, tokens[_rows_of(job.config)]) or _copied(one, job)
            if not now:
                say(f"{job.label}: taken over from {os.path.relpath(one)}")
                break
            why = why or f"{job.label}: not taken over from {os.path.relpath(one)}: {now}"
        else:
            say(why)


def _trained_beside(root: Path) -> dict[str, list[Path]]:
    """The jobs of the other sweeps in the same folder by their hashes."""
    known: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(root.parent.glob("*/jobs.jsonl")):
        other = SweepDir(path.parent)
        if path.parent == root:
            continue
        try:
            entries = list(other.entries())
        except (OSError, ValueError, TypeError, ConfigError) as error:
            said = " ".join(str(error).split())
            say(f"nothing is taken over from {os.path.relpath(path.parent)}: its jobs.jsonl can't be read ({said})")
            continue
        for entry in entries:
            known[entry.hash].append(other.run_of(entry.number))
    return known


def _is_trained(root: Path) -> bool:
    try:
        return receipt.is_whole(RunDir(root), "train") and receipt.is_whole(RunDir(root), "prepare")
    except (OSError, TypeError, AttributeError):  # somebody else's folder, or a damaged receipt
        return False


def _has_begun(job: Job) -> bool:
    return (job.root / "checkpoints").exists() or receipt.read(RunDir(job.root), "train") is not None


def _rows_of(config: Config) -> str:
    """What tokens depend on; equal for jobs with the same."""
    return json.dumps([asdict(config.model), asdict(config.data), config.trainer.max_length], default=str)


def _tokens_now(configs: Sequence[Config]) -> dict[str, str]:
    """For each of `_rows_of` the key of the tokens that prepare would make now; empty where that can't be told."""
    different = {_rows_of(config): config for config in configs}

    def keys() -> dict[str, str]:
        from hydratune.build.model import load_tokenizer
        from hydratune.build.source import locate
        from hydratune.build.tokens import token_key

        settle_hub([(config, ["prepare"]) for config in different.values()])
        found = {}
        for name, config in different.items():
            try:
                settled, cache = as_prefetched(config), cache_dir(config)
                source, gguf = locate(settled.model, cache)
                tokenizer = load_tokenizer(settled.model, source, **gguf)
                found[name] = token_key(settled.data, tokenizer, settled.trainer.max_length)
            except (ConfigError, OSError):
                found[name] = ""
        return found

    if not different:
        return {}
    # this process is to run nothing of the libraries, where jobs will be forked from it
    return processes.in_a_fork(keys) if processes.may_fork() else keys()


def _difference(source: Path, config: Config, tokens: str) -> str:
    """Why what was trained there would not be trained now; empty where the rows and the model are the same."""
    try:
        then = json.loads(RunDir(source).prepared.read_text(encoding="utf-8"))["tokens"]
        if not tokens or then.partition("-")[0] != tokens.partition("-")[0]:  # what they are, and not where
            return "the rows, the tokenizer, or how hydratune makes tokens of them is not what it was"
        prepared = RunDir(source).receipt("prepare").stat().st_mtime
        changed = [
            path for path in _files_of(config.model) if max(path.stat().st_mtime, path.stat().st_ctime) > prepared
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        return f"{' '.join(str(error).split())}"
    return f"{changed[0]} has changed since" if changed else ""


def _files_of(conf: ModelConf) -> list[Path]:
    """Of a model that lies here: its folder, which tells of files that took another's place, and what is loaded of it."""
    from hydratune.build.source import LOADED, gguf_path, is_on_hub

    if is_on_hub(conf):
        return []
    if conf.gguf_file:
        return [gguf_path(conf)]
    folder = Path(str(conf.name_or_path)).expanduser()
    return [folder, *(path for pattern in LOADED["allow_patterns"] for path in sorted(folder.glob(pattern)))]


def _copied(source: Path, job: Job) -> str:
    """Why it was not; what was copied until then is removed. The receipts are last: they say that the rest is there."""
    files = [path for path in source.rglob("*") if path.is_file() and path.relative_to(source).parts[0] not in LEFT]
    made: list[Path] = []
    try:
        with alone_in(RunDir(job.root)):
            try:
                for path in sorted(files, key=lambda path: (path.parent.name == "receipts", path)):
                    made.append(job.root / path.relative_to(source))
                    _copy(path, made[-1])
            except OSError:
                for path in reversed(made):
                    with suppress(OSError):
                        path.unlink(missing_ok=True)
                        path.parent.rmdir()  # where it is empty
                raise
    except OSError as error:
        return f"{error.strerror} ({error.filename2 or error.filename or job.root})"
    except RunError as error:  # another process has the job
        return str(error).rstrip(".")
    return ""


def _copy(path: Path, new: Path) -> None:
    new.parent.mkdir(parents=True, exist_ok=True)
    new.unlink(missing_ok=True)
    if path.suffix == ".safetensors":
        with suppress(OSError):
            return os.link(path, new)  # nothing writes into such a file: a new one takes its name
    shutil.copy2(path, new)
