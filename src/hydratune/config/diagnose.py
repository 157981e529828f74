"""Every mistake of a command line at once, each with the place where it stands."""

import re

from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hydratune.config.load import to_config
from hydratune.config.rules import broken_rules
from hydratune.config.schema import Config, ConfigError
from hydratune.config.sources import Setting, Sources, config_loader, read_sources
from hydratune.config.typed import Typed
from hydratune.config.values import groups, owner, unknown_key, value_problem, value_problems

# mappings of Hydra's own configuration that take any key
HYDRA_OPEN = ("hydra.sweeper.params", "hydra.job.env_set", "hydra.callbacks")


def diagnose(typed: Typed) -> list[str]:
    """`place: sentence.` for each mistake; empty where none is found.

    First what is wrong with single settings, wherever they are written; then the rules that span groups, over what
    is left without those, as far as they are about none of them.
    """
    found = read_sources(typed)
    wrong = list(found.problems)
    spoilt = set(found.spoilt)
    sound: list[Setting] = []
    for setting in found.settings:
        problem = setting_problem(setting, sound)
        if problem:
            wrong.append((setting.place, problem))
            spoilt.add(setting.key.lstrip("+~"))
        else:
            sound.append(setting)
    wrong += _hydra_problems(typed, found)
    lines = [f"{place}: {sentence}." for place, sentence in wrong]
    if "" not in spoilt and not typed.multirun and not typed.from_run:
        lines += _after_composition(sound, spoilt)
    return list(dict.fromkeys(lines))


def checked(config: Config, typed: Typed, saved: bool = False) -> Config:
    """`config` where it is sound. Raises ConfigError with every sentence; `saved`: a run's file is its base."""
    wrong = [f"{said}." for said in value_problems(config).values()]
    wrong += [f"{rule.sentence}." for rule in broken_rules(config)]
    if wrong:
        raise ConfigError((not saved and diagnose(typed)) or wrong)
    return config


def refuse_mistakes(typed: Typed) -> None:
    """Raises ConfigError with every mistake that is found."""
    if mistakes := diagnose(typed):
        raise ConfigError(mistakes)


def looks_wrong(typed: Typed) -> bool:
    """Whether an override is of a kind that Hydra takes without a word although nothing would read it."""
    return any(override.startswith(("~", "+hydra.", "++hydra.")) for override in typed.overrides)


def setting_problem(setting: Setting, before: list[Setting]) -> str | None:
    """What is wrong with one setting, given the sound ones `before` it."""
    key = setting.key.lstrip("+~")
    prefix = setting.key[: len(setting.key) - len(key)]
    if key.startswith("hydra.") or key == "hydra" or "@" in key:
        return None  # Hydra's own, checked by Hydra
    if key in groups():
        if isinstance(setting.value, dict | None):
            return None
        return f"{key} is a group of settings, found {setting.value!r:.60}: set {key}.KEY=VALUE"
    name = owner(key)
    if not name:
        return unknown_key(key)
    entry = name != key
    if prefix == "~":
        return None if entry else f"a key can't be taken away: set {key}=VALUE"
    if prefix == "+" and not entry:
        return f"{key} is there already: type {key}=VALUE"
    typed = ":" not in setting.place  # a file's settings stand at file:line
    if typed and entry and not prefix and not any(other.key.lstrip("+") == key for other in before):
        return f"{key} is not in {name} yet: type +{key}=VALUE"
    return value_problem(key, setting.value)


def _hydra_problems(typed: Typed, found: Sources) -> list[tuple[str, str]]:
    """Overrides of Hydra's own settings that Hydra refuses, or takes although nothing reads them."""
    wrong = []
    for setting in found.settings:
        key = setting.key.lstrip("+~")
        if not key.startswith("hydra."):
            continue
        if setting.key != key and not key.startswith(HYDRA_OPEN):
            wrong.append((setting.place, f"there is no key {key}; type hydratune --hydra-help for Hydra's own"))
            continue
        if setting.place not in typed.overrides:
            continue
        try:
            mode = RunMode.MULTIRUN if typed.multirun else RunMode.RUN
            config_loader(typed.config_dir).load_configuration(typed.config_name, [setting.place], mode)
        except (HydraException, OmegaConfBaseException) as error:
            said = in_one_line(error)
            missing = f"there is no key {key}; type hydratune --hydra-help for Hydra's own"
            wrong.append((setting.place, missing if said.startswith("Could not override") else said))
    return wrong


def _after_composition(sound: list[Setting], spoilt: set[str]) -> list[str]:
    plain: DictConfig = OmegaConf.create({})
    for setting in sound:
        key = setting.key.lstrip("+~")
        if not key.startswith("hydra") and "@" not in key and not setting.key.startswith("~"):
            OmegaConf.update(plain, key, setting.value, force_add=True)
    lines = []
    for setting in sound:
        if "${" in str(setting.value) and not setting.key.startswith("hydra"):
            try:
                value = OmegaConf.select(plain, setting.key.lstrip("+"), throw_on_missing=True)
                problem = value_problem(setting.key.lstrip("+"), value)
            except (OmegaConfBaseException, ConfigError) as error:
                problem = in_one_line(error)
            if problem:
                lines.append(f"{setting.place}: {problem}.")
    if lines:
        return lines
    try:
        config = to_config(plain)
    except (OmegaConfBaseException, ConfigError):
        return []
    return [
        f"{rule.sentence}."
        for rule in broken_rules(config)
        if not any(_overlap(key, about) for key in spoilt for about in rule.about)
    ]


def _overlap(one: str, other: str) -> bool:
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def in_one_line(error: BaseException) -> str:
    """A library's message without line breaks, and without the closing full stop; our own, where one caused it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConfigError):
            return " ".join(cause.sentences).rstrip(".")
        cause = cause.__cause__
    said = [line.strip() for line in f"{error}\n{error.__cause__ or ''}".splitlines()]
    kept = [line for line in said if line and not re.match(r"(full_key|object_type|reference_type)\b", line)]
    return " ".join(kept).rstrip(".")
