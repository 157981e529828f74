"""`hydratune --help`: the commands that people type, the groups and what each option is."""

import textwrap
from collections.abc import Iterator
from pathlib import Path

from hydratune.config.load import CONF_DIR
from hydratune.config.schema import ConfigError

HEAD = """\
hydratune [GROUP=OPTION | KEY=VALUE | +KEY=VALUE]...    run the stages in `stages`: prepare, train, merge, evaluate, generate
hydratune data [ROW]... [OVERRIDE]...                     the rows as tokens, what is supervised, and what may be wrong with them
hydratune generate run_dir=RUN [PROMPT]... [OVERRIDE]... answers of base and tuned model; prompts from standard input too
hydratune compare RUN[:MODEL] RUN[:MODEL]...            models of any runs on the documents that both were asked
hydratune prefetch [OVERRIDE]...                        what a run needs from the hub, for a machine without a network
hydratune sweep status|logs|report|best|resume|cancel DIR   a sweep that is there, from any machine that sees its folder
hydratune explain KEY|GROUP... [OVERRIDE]...            a setting's value, where it comes from, its type and meaning

  hydratune experiment=demo                                          QLoRA on a real small model, minutes on two cores
  hydratune model=local model.name_or_path=DIR data=jsonl data.path=FILE         your own model and rows
  hydratune experiment=demo trainer.learning_rate=5e-4 lora.r=8      settings changed
  hydratune experiment=demo stages=[]                                check everything, start nothing
  hydratune run_dir=runs/RUN                                         go on with a run, or see that it is finished
  hydratune run_dir=runs/RUN stages=[evaluate] benchmark=quick       a run that is there, evaluated
  hydratune --from runs/RUN lora.r=32                                a new run with the settings of another
  hydratune -m experiment=demo lora.r=8,16 trainer.learning_rate=1e-4,1e-3       a sweep: every combination
  hydratune --config-dir mine experiment=x                           your own options beside those below
  hydratune experiment=demo --cfg job                                the composed configuration

Options of each group, chosen by GROUP=OPTION:
"""
TAIL = "\nEvery key: hydratune explain model quantization lora data trainer ...    Hydra's own options: --hydra-help"
ORDER = (
    "experiment", "model", "quantization", "lora", "data", "trainer", "benchmark", "tracking", "sweep",
    "cluster", "hydra/launcher",
)  # fmt: skip


def show_help(config_dir: str | None) -> None:
    """Print it; the user's own options stand among ours."""
    if config_dir and not Path(config_dir).is_dir():
        raise ConfigError(f"--config-dir {config_dir}: there is no such folder.")
    folders = [CONF_DIR, *([Path(config_dir)] if config_dir else [])]
    found = {name: dict(_options(folders, name)) for name in _groups(folders)}
    width = max(len(option) for options in found.values() for option in options)
    lines = []
    for group, options in found.items():
        lines.append(f"  {group}")
        for option, words in sorted(options.items()):
            lines += textwrap.wrap(
                words, 118, initial_indent=f"    {option:{width}}  ", subsequent_indent=" " * (width + 6)
            ) or [f"    {option}"]
    print(HEAD + "\n".join(lines) + TAIL)


def _groups(folders: list[Path]) -> list[str]:
    names = {str(path.relative_to(folder).parent) for folder in folders for path in folder.rglob("*.yaml")} - {
        ".",
        "hydra/sweeper",
    }
    return sorted(names, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


def _options(folders: list[Path], group: str) -> Iterator[tuple[str, str]]:
    for folder in folders:
        for path in (folder / group).glob("*.yaml"):
            yield path.stem, description(path).removesuffix(f": hydratune {group}={path.stem}")


def description(path: Path) -> str:
    """The first comment line that is not Hydra's: what the option is."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.startswith("#"):
            break
        words = line.lstrip("# ").strip()
        if words and not words.startswith("@"):
            return words
    return ""
