"""`hydratune compare`: the paired comparison of any runs, from their samples on disk."""

from pathlib import Path

from hydratune.build.again import again
from hydratune.build.comparison import compare, refuse_other_questions
from hydratune.build.scores import MODELS, Scores, read_scores
from hydratune.config.schema import Config, ConfigError
from hydratune.run import receipt
from hydratune.run.console import say
from hydratune.run.layout import RunDir
from hydratune.run.table import comparison_table

ALL = "benchmark.models=[base,adapter,merged]"


def show(words: list[str]) -> None:
    """Print it; each word is RUN or RUN:MODEL, the first the reference. Writes nothing. Raises ConfigError."""
    named = [_named(word) for word in words]
    if not named:
        raise ConfigError("compare takes folders of runs: hydratune compare RUN RUN ..., also RUN:base or RUN:adapter.")
    if len(named) == 1:
        run, model = named[0]
        others = [other for other in _evaluated(run) if other != model]
        if not others:
            raise ConfigError(f"{run} has results of {model} alone: name another run, or type {again(run, ALL)}.")
        named = [(run, others[0]), (run, model)]
    if len({(run.resolve(), model) for run, model in named}) < len(named):
        raise ConfigError("A model is named twice: name each run once, or as RUN:base, RUN:adapter, RUN:merged.")
    for run, model in named:
        _refuse_outdated(run, model)
    asked = {f"{run}:{model}": read_scores(RunDir(run).benchmark, model) for run, model in named}
    reference = next(iter(asked))
    refuse_other_questions(asked, reference)
    tasks = [{one.task: None for one in scores} for scores in asked.values()]
    common = set(tasks[0]).intersection(*tasks[1:])
    if not common:
        has = "; ".join(f"{name} has {', '.join([*found][:5])}" for name, found in zip(asked, tasks, strict=True))
        wanted = f"benchmark.tasks=[{','.join([*tasks[0]][:5])}]"
        typed = again(named[1][0], wanted, tasks_of=named[0][0])
        raise ConfigError(f"There is no task in common ({has}): type {typed}.")
    names = dict(zip(asked, _short_names(named), strict=True))
    kept = {names[name]: [one for one in scores if one.task in common] for name, scores in asked.items()}
    say(comparison_table(compare(kept, names[reference], Config().benchmark.seed)))
    meant = [f"{names[name]} is {model} of {run}" for name, (run, model) in zip(asked, named, strict=True)]
    say(f"models: {'; '.join(meant)}")
    others = [names[name] for name, scores in asked.items() if _has_own_template(asked[reference], scores)]
    if others:
        mine = f"{names[reference]}'s is not that of {', '.join(others)}"
        say(f"chat templates: each model was asked through its own, and {mine}")
    left_out = [task for task in dict.fromkeys(task for found in tasks for task in found) if task not in common]
    if left_out:
        say(f"left out, as not all have them: {', '.join(left_out)}")


def _named(word: str) -> tuple[Path, str]:
    """The run's folder and which of its models; without one, the model that its verdict is about."""
    folder, _, model = word.rpartition(":")
    if not folder or model not in MODELS or Path(word).is_dir():
        folder, model = word, ""
    run = Path(folder)
    if not run.is_dir():
        raise ConfigError(
            f"{word}: there is no folder {run}; type hydratune compare RUN RUN ..., with folders of runs."
        )
    found = _evaluated(run)
    if not found:
        raise ConfigError(f"{run} has no benchmark results: type {again(run, 'benchmark=quick')}.")
    if model and model not in found:
        raise ConfigError(
            f"{word}: {run} has results of {' and '.join(found)}, none of {model}: type {again(run, ALL)}."
        )
    return run, model or found[-1]


def _refuse_outdated(run: Path, model: str) -> None:
    """Raises ConfigError where the results may be of another model than the one that is in the run now."""
    done = receipt.read(RunDir(run), "evaluate")
    if done is None or done.get("status") != "done":
        raise ConfigError(f"The last evaluation of {run} did not end: type {again(run)}.")
    if model == "base":
        return  # which no stage changes
    if model not in done["key"][0]["models"]:
        raise ConfigError(
            f"The last evaluation of {run} left {model} out, so its older results may be of another one: type {again(run, ALL)}."
        )
    inputs = done["inputs"]
    maker = "merge" if model == "merged" and "merge" in inputs else "train"
    if inputs.get(maker, "") != receipt.digest(RunDir(run), maker):
        raise ConfigError(f"Stage {maker} of {run} was done again after {model} was evaluated: type {again(run)}.")


def _has_own_template(base: list[Scores], scores: list[Scores]) -> bool:
    """Whether a task that both have came to them as other texts, each through its own chat template."""
    asked = {one.task: one for one in base}
    pairs = [(asked[one.task], one) for one in scores if one.task in asked]
    return any(mine.prompts != other.prompts and mine.template != other.template for mine, other in pairs)


def _evaluated(run: Path) -> list[str]:
    """The models that have results there, the tuned ones last."""
    return [model for model in MODELS if (RunDir(run).benchmark / f"{model}.json").is_file()]


def _short_names(named: list[tuple[Path, str]]) -> list[str]:
    """The folders' names, with as much of the path and of the model as tells them apart."""
    runs = [run.resolve() for run, _ in named]
    if len(set(runs)) == 1:
        return [model for _, model in named]
    depth = next(n for n in range(1, 99) if len({run.parts[-n:] for run in runs}) == len(set(runs)))
    return [
        "/".join(run.parts[-depth:]) + (f":{model}" if runs.count(run) > 1 else "")
        for run, (_, model) in zip(runs, named, strict=True)
    ]
