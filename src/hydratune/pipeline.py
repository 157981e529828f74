"""Run the named stages in order; what has a receipt is skipped."""

import errno
import glob
import importlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from hydratune.config.load import saved_form
from hydratune.config.schema import STAGES, BenchmarkConf, Config, ConfigError, RunError
from hydratune.config.secrets import redacted_override
from hydratune.follow import SHARED, shared
from hydratune.preflight_hub import as_prefetched
from hydratune.run import receipt
from hydratune.run.console import quiet, say
from hydratune.run.layout import RunDir, alone_in, write_atomically, write_json
from hydratune.run.objective import Objective, objective_of
from hydratune.run.ranks import ALONE, Ranks
from hydratune.run.table import certificate_text, comparison_table, samples_text


def run(config: Config, typed: list[str], me: Ranks = ALONE) -> Objective | None:
    """Run `config.stages` in the run directory. Returns the metric that a sweep looks at."""
    assert config.run_dir
    run_dir = RunDir(Path(config.run_dir).resolve())
    say(f"run directory: {config.run_dir}")
    finished = all(_finished(stage, config, run_dir) for stage in config.stages)
    if not config.stages:
        say("checked: nothing stands in the way, and stages=[] starts nothing")
        return None
    if finished:
        for stage in config.stages:
            say(_skipped(stage, run_dir))
    else:
        try:
            run_dir.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"run_dir={config.run_dir} can't be made: {error.strerror}.") from None
        with alone_in(run_dir):
            text = yaml.safe_dump(saved_form(config), sort_keys=False, allow_unicode=True)
            write_atomically(run_dir.config, text)
            words = [redacted_override(one) for one in typed]
            if not run_dir.overrides.is_file():
                write_atomically(run_dir.overrides, yaml.safe_dump(words))
            with run_dir.commands.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"time": datetime.now(UTC).isoformat(timespec="seconds"), "typed": words}) + "\n")
            _run_stages(config, run_dir, me)
    metrics = _collect(run_dir)
    comparison = run_dir.benchmark / "comparison.json"
    if "evaluate" in config.stages and comparison.is_file():
        say("\n" + comparison_table(json.loads(comparison.read_text())))
    certificate = run_dir.root / "merge_report.json"
    if "merge" in config.stages and certificate.is_file():
        say("\n" + certificate_text(json.loads(certificate.read_text(encoding="utf-8"))))
    if finished and "generate" in config.stages and run_dir.samples.is_file():
        say("\n" + samples_text([json.loads(line) for line in run_dir.samples.read_text().splitlines()]))
    say(f"\nrun directory: {config.run_dir}")
    return objective_of(config, metrics)


def check_inputs(config: Config) -> None:
    """Refuse a stage whose input is missing, and a typed stage that has nothing to do."""
    assert config.run_dir
    run_dir = RunDir(Path(config.run_dir))
    wrong = []
    for stage in config.stages:
        missing = _missing(stage, config, run_dir)
        if missing:
            chain = [s for s in STAGES if s in {*missing, *config.stages}]
            wrong.append(f"{stage} needs {' and '.join(missing)}: set stages=[{','.join(chain)}].")
        reason = nothing_to_do(stage, config)
        if reason and config.stages != list(STAGES):
            wrong.append(f"stage {stage} was asked for, but has nothing to do: {reason}.")
    if wrong:
        raise ConfigError(wrong)


def _missing(stage: str, config: Config, run_dir: RunDir) -> list[str]:
    """The stages that `stage` needs, directly or not, that are neither asked for nor finished, in their order."""
    missing: set[str] = set()
    for need in needs(stage, config):
        if need not in config.stages and not receipt.is_whole(run_dir, need):
            missing |= {need, *_missing(need, config, run_dir)}
    return [s for s in STAGES if s in missing]


def unfinished(config: Config) -> list[str]:
    """Those of `config.stages` that a run would really do."""
    assert config.run_dir
    run_dir = RunDir(Path(config.run_dir))
    stages = config.stages or STAGES  # stages=[] checks what a whole run needs
    redone: list[str] = []
    for stage in stages:
        again = not _finished(stage, config, run_dir) or set(needs(stage, config)) & set(redone)
        if again and not nothing_to_do(stage, config):
            redone.append(stage)
    return redone


def needs(stage: str, config: Config) -> list[str]:
    """The stages whose files `stage` reads."""
    last = "train" if config.lora.kind == "none" else "merge"  # the one that writes merged/
    if stage in ("evaluate", "generate"):
        models = (config.benchmark if stage == "evaluate" else config.generate).models
        read = {"adapter": "train", "merged": last}
        return sorted({read[model] for model in models if model in read})
    return {"train": ["prepare"], "merge": ["train"]}.get(stage, [])


def nothing_to_do(stage: str, config: Config) -> str | None:
    """Why `stage` has no work under this configuration, or None."""
    if stage == "merge" and config.lora.kind == "none":
        return "lora=none trains the whole model, and train writes merged/ itself"
    if stage == "evaluate" and not config.benchmark.tasks:
        return "benchmark=none; set benchmark=demo, or benchmark.tasks=[...]"
    if stage == "evaluate" and not set(config.benchmark.models) - (
        {"adapter"} if config.lora.kind == "none" else set()
    ):
        return "benchmark.models names no model that there is; set benchmark.models=[base,merged]"
    if stage == "generate" and not config.generate.prompts and not config.generate.file:
        return "generate.prompts is empty, and generate.file names none"
    return None


def _key(stage: str, config: Config) -> Any:
    """The settings that may change in a run directory and that `stage` depends on."""
    whole = saved_form(config)
    if stage == "prepare":  # before training has begun
        return [whole["model"], whole["data"], whole["trainer"]["max_length"]]
    if stage == "evaluate":
        return [whole["benchmark"], _files_of(config.benchmark)]
    return whole[stage] if stage in ("merge", "generate") else None


def _files_of(conf: BenchmarkConf) -> list[tuple[str, int, int]]:
    """The user's task files and rows, with size and time: they may hold something else by now."""
    named = [conf.include_path] if conf.include_path else []
    for entry in conf.own_tasks.values():
        if isinstance(entry, dict):
            named += [entry[key] for key in ("path", "fewshot_path") if isinstance(entry.get(key), str)]
    found: set[Path] = set()
    for name in named:
        for path in map(Path, glob.glob(str(Path(name).expanduser()), recursive=True)):
            found |= {path} if path.is_file() else {inner for inner in path.rglob("*") if inner.is_file()}
    return [receipt.state(path) for path in sorted(found) if "__pycache__" not in path.parts]


def _finished(stage: str, config: Config, run_dir: RunDir) -> bool:
    """Whether `stage` is done with these settings, on what the stages before it have left, and its files are there."""
    done = receipt.read(run_dir, stage)
    if stage == "generate" and config.generate.file:
        return False  # the file may hold other prompts by now
    return (
        done is not None
        and receipt.is_whole(run_dir, stage)
        and done.get("key") == _plain(_key(stage, config))
        and done.get("inputs") == _inputs(stage, config, run_dir)
        and all(receipt.is_unchanged(*file) for file in done.get("files", []))
    )


def _inputs(stage: str, config: Config, run_dir: RunDir) -> dict[str, str | None]:
    """Each needed stage and the digest of its receipt, which changes when that stage is done again."""
    return {need: receipt.digest(run_dir, need) for need in needs(stage, config)}


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _skipped(stage: str, run_dir: RunDir) -> str:
    done = receipt.read(run_dir, stage)
    assert done is not None
    return f"{stage:9} {done['status']}" if done["status"] != "done" else f"{stage:9} done: already finished, skipped"


def _run_stages(config: Config, run_dir: RunDir, me: Ranks) -> None:
    hardware: Any = None
    for stage in config.stages:
        if _finished(stage, config, run_dir):
            say(_skipped(stage, run_dir))
            continue
        facts = {"key": _key(stage, config), "inputs": _inputs(stage, config, run_dir)}
        reason = nothing_to_do(stage, config)
        if reason:
            receipt.write(run_dir, stage, {"status": f"skipped: {reason}", "metrics": {}, "outputs": {}, **facts})
            say(_skipped(stage, run_dir))
            continue
        receipt.remove(run_dir, stage)  # so that none tells of files which are being replaced
        say(f"{stage:9} …")
        start, began = time.monotonic(), time.time()
        with quiet(run_dir.log):
            if hardware is None:
                hardware = importlib.import_module("hydratune.build.hardware").resolve(config)
                say("  " + " ".join(f"{key}={value}" for key, value in asdict(hardware).items()))
            here = replace(hardware, world_size=me.world_size if stage in SHARED else 1)
            with _disk_errors(stage, run_dir), shared(stage, config, run_dir, here, me):
                metrics = importlib.import_module(f"hydratune.stages.{stage}").run(as_prefetched(config), run_dir, here)
        seconds = time.monotonic() - start
        said = {key: metrics.pop(key) for key in ("findings", "files") if key in metrics}
        facts |= {
            "status": "done",
            "seconds": round(seconds, 2),
            "metrics": metrics,
            "hardware": asdict(here),
            **({"batch_rows": _batch_rows(config, me)} if stage == "train" else {}),
        } | said
        receipt.write(run_dir, stage, facts | {"outputs": run_dir.written_since(began)})
        say(f"{stage:9} done in {seconds:.0f} s")


def _batch_rows(config: Config, me: Ranks) -> int:
    """Rows of an optimizer step, of all processes."""
    trainer = config.trainer
    return trainer.per_device_train_batch_size * trainer.gradient_accumulation_steps * me.world_size


@contextmanager
def _disk_errors(stage: str, run_dir: RunDir) -> Iterator[None]:
    """A disk that is full is no crash: what was written before is whole, and the same command goes on."""
    try:
        yield
    except OSError as error:
        where = error.filename or run_dir.root
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(
                f"No room was left for what stage {stage} writes ({where}): make some, and type the same command again."
            ) from None
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise RunError(f"Stage {stage} may not write {where}: {error.strerror}.") from None
        raise


def _collect(run_dir: RunDir) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    for stage in STAGES:
        metrics |= (receipt.read(run_dir, stage) or {}).get("metrics", {})
    write_json(run_dir.metrics, metrics)
    return metrics
