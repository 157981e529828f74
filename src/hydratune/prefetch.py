"""`hydratune prefetch`: what a run needs from the hub, brought where there is a network for where there is none."""

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from hydratune.config.load import cache_dir
from hydratune.config.schema import STAGES, Config
from hydratune.preflight_hub import as_prefetched, needs_of
from hydratune.run.console import on_terminal, quiet, say
from hydratune.run.layout import write_json


def prefetch(config: Config) -> None:
    """Bring the model, the rows and the tasks' datasets that the stages of the run need, and say what came.

    Raises ConfigError where the hub hasn't one of them, RunError where it can't be reached or there is no room.
    """
    from hydratune.build.pins import manifest_path
    from hydratune.build.prefetch import fetch, refuse_offline, size_text
    from hydratune.pipeline import nothing_to_do
    from hydratune.preflight_tasks import check_tasks

    refuse_offline()
    stages = [stage for stage in config.stages or STAGES if not nothing_to_do(stage, config)]
    if "evaluate" in stages:
        check_tasks(config)
    cache, came, whole = cache_dir(config), 0, 0
    # the libraries' bars are for somebody who watches
    with nullcontext() if on_terminal() else quiet(Path(os.devnull)):
        needs = needs_of(config, stages)
        for need in needs:
            say(f"{need} …")
            made, was_there = fetch(need, cache, lambda need, made: write_json(manifest_path(need, cache), made))
            whole += made["bytes"]
            came += 0 if was_there else made["bytes"]
            how = "was here" if was_there else "fetched"
            say(f"  {how}: commit {made['commit']}, {len(made['files'])} files, {size_text(made['bytes'])}")
        if "evaluate" in stages:
            _try_tasks(config)
    if not needs:
        say("Nothing of this run is on the hub: there is nothing to fetch.")
        return
    say(f"{size_text(whole)} in all, {size_text(came)} of them fetched now; manifests in {cache / 'prefetched'}")
    say("These settings now need no network, with the same HF_HOME and cache_dir.")


def _try_tasks(config: Config) -> None:
    """Load the tasks as evaluate will: what their own code fetches comes now too, and what is wrong is said now."""
    from hydratune.build.evaluating import load_tasks

    say(f"tasks {', '.join(config.benchmark.tasks)} …")
    loaded: Any = load_tasks(as_prefetched(config))
    say(f"  {len(loaded['tasks'])} can be loaded")
