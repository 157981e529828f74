"""Every mistake of a command line at once, each with the place where it stands."""

import re
from pathlib import Path
from typing import Any, get_origin

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hydratune.config.hydras_own import HYDRA_OURS, HYDRA_WRITES, hydra_problems, in_one_line
from hydratune.config.load import to_config
from hydratune.config.rules import Broken, broken_rules
from hydratune.config.schema import Config, ConfigError
from hydratune.config.secrets import redacted_override
from hydratune.config.settings import Setting, config_loader, group_options, parse
from hydratune.config.sources import read_sources
from hydratune.config.typed import Typed
from hydratune.config.values import groups, owner, schema_keys, unknown_key, value_problem, value_problems
from hydratune.config.yamlfile import saved_settings


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
        problem = _differs(setting.key, setting.value) or setting_problem(setting, sound)
        if problem:
            wrong.append((setting.place, problem))
            spoilt.add(setting.key.lstrip("+~"))
        else:
            sound.append(setting)
    wrong += hydra_problems(typed, found)
    if "" not in spoilt and not {one.key for one in found.settings} >= set(HYDRA_OURS):
        wrong.append((f"--config-name {typed.config_name}", HYDRA_WRITES))
    lines = [f"{redacted_override(place)}: {sentence}." for place, sentence in wrong]
    sweeping = typed.multirun or _last(found.settings, "hydra.mode") == "MULTIRUN"
    if sweeping:
        lines += [
            f"{one.place}: run_dir is one folder for all jobs: leave it out, or set hydra.sweep.dir."
            for one in sound
            if one.key == "run_dir" and one.value is not None
        ]
    else:
        lines += [
            f"{redacted_override(text)}: several values make a sweep: put -m before them, or [ ] around a list."
            for text in typed.overrides
            if _sweeps(text, typed)
        ]
    if "" not in spoilt and not typed.from_run:
        lines += _after_composition(sound, spoilt, rules=not sweeping and not _opens_run(sound))
    return list(dict.fromkeys(lines))


def checked(config: Config, typed: Typed, saved: Path | None = None) -> Config:
    """`config` where it is sound. Raises ConfigError with every sentence; `saved`: the run's file that is its base."""
    wrong = [f"{said}." for said in value_problems(config).values()]
    broken = broken_rules(config)
    if broken and saved:
        typed_here = {text.lstrip("+~").partition("=")[0] for text in typed.overrides}
        written = [one for one in saved_settings(saved) if one.key not in typed_here]
        wrong += [_with_place(rule, written) for rule in broken]
    else:
        wrong += [f"{rule.sentence}." for rule in broken]
    if wrong:
        raise ConfigError((not saved and diagnose(typed)) or wrong)
    return config


def refuse_mistakes(typed: Typed) -> None:
    """Raises ConfigError with every mistake that is found."""
    if mistakes := diagnose(typed):
        raise ConfigError(mistakes)


def looks_wrong(typed: Typed) -> bool:
    """Whether an override is wrong by itself: quicker told than composed, and for some, Hydra would take them."""
    if (
        typed.config_dir
        or typed.multirun
        or any(text.startswith(("sweep=", "hydra.mode=")) for text in typed.overrides)
    ):
        return True  # a file of the user's, or a sweep: Hydra would say of neither where it is wrong, or say nothing
    loader = config_loader(typed.config_dir)
    for text in typed.overrides:
        try:
            override = parse(text, loader)
        except HydraException:
            return True
        if _differs(override.key_or_group, text):
            return True
        key, name = override.key_or_group, override.get_key_element()
        if not key or key == "cluster" or name.startswith("~") or key.startswith(("hydra.", "hydra/")):
            return True
        if (
            group_options(loader, key)
            and not override.is_sweep_override()
            and not isinstance(override.value(), str | list)
        ):
            return True
        if group_options(loader, key) or override.is_sweep_override():
            continue
        already = [Setting(key, None, "")]  # whether its mapping has it is for the composition to say
        if setting_problem(Setting(name, override.value(), text, form="typed"), already):
            return True
    return False


def _differs(key: str, value: Any) -> str | None:
    """That an interpolation reads the clock or the job: the same command would ask for another run the next time."""
    found = re.search(r"(?<!\\)\$\{\s*(now|hydra)\s*:", str(value)) if "${" in str(value) else None
    if not found or (found[1] == "hydra" and key.lstrip("+").startswith("hydra.")):
        return None
    return f"${{{found[1]}:...}} may differ when the same command is typed again, and a run goes on only with the same settings: write a value"


def _last(settings: list[Setting], key: str) -> Any:
    return next((one.value for one in reversed(settings) if one.key == key), None)


def _sweeps(text: str, typed: Typed) -> bool:
    try:
        return bool(parse(text, config_loader(typed.config_dir)).is_sweep_override())
    except HydraException:
        return False


def _opens_run(sound: list[Setting]) -> bool:
    """Whether the settings of a saved run are to come under these."""
    root = _last(sound, "run_dir")
    return isinstance(root, str) and (Path(root) / "config.yaml").is_file()


def setting_problem(setting: Setting, before: list[Setting]) -> str | None:
    """What is wrong with one setting, given the sound ones `before` it."""
    key = setting.key.lstrip("+~")
    prefix = setting.key[: len(setting.key) - len(key)]
    if key.startswith("hydra.") or key == "hydra" or "@" in key:
        return None  # Hydra's own, checked by Hydra
    typed, sign = setting.form != "file", ": " if setting.form == "swept" else "="
    if key in groups():
        if isinstance(setting.value, dict):
            return None
        what = f"{key} is a group of settings, found {'null' if setting.value is None else f'{setting.value!r:.60}'}"
        if typed:
            return f"{what}: set {key}.KEY{sign}VALUE"
        return f"{what}: write its keys below it, and choose an option under defaults, - override /{key}: OPTION"
    name = owner(key)
    if not name:
        first, _, rest = key.partition(".")
        if not typed and first in ("experiment", "sweep") and (owner(rest) or rest.partition(".")[0] in groups()):
            return f"there is no key {key}: the file's first line must be # @package _global_"
        above = next((one for one in _above(key) if one in schema_keys()), None)
        return (value_problem(above, {}) if above else None) or unknown_key(key, setting.form)
    entry = name != key
    there = {other.key.lstrip("+") for other in before}
    if prefix == "~" and entry:
        return None if key in there else f"{key} is not there, so it can't be taken away"
    if prefix == "~":
        return f"a key can't be taken away: set {key}{sign}VALUE"
    entries = setting.value if isinstance(setting.value, dict) and get_origin(schema_keys()[name][0]) is dict else {}
    new = next((one for one in entries if f"{key}.{one}" not in there), None)
    if typed and prefix != "++" and new is not None:
        each = f", or +{key}.{new}{sign}VALUE for each entry" if str(new).isidentifier() else ""
        mapping = "'{...}'" if setting.form == "swept" else "{...}"
        return f"{new} is not in {key} yet: type ++{key}{sign}{mapping}{each}"
    if prefix == "+" and not entry:
        return f"{key} is there already: type {key}{sign}VALUE"
    if typed and entry and not prefix and key not in there:
        return f"{key} is not in {name} yet: type +{key}{sign}VALUE"
    return next(filter(None, (value_problem(f"{key}.{one}", inner) for one, inner in entries.items())), None) or (
        value_problem(key, setting.value)
    )


def _above(key: str) -> list[str]:
    """The keys that `key` lies in, the nearest first."""
    parts = key.split(".")
    return [".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]


def _after_composition(sound: list[Setting], spoilt: set[str], rules: bool) -> list[str]:
    plain: DictConfig = OmegaConf.create({})
    for setting in sound:
        key = setting.key.lstrip("+~")
        if not key.startswith("hydra") and "@" not in key and not setting.key.startswith("~"):
            OmegaConf.update(plain, key, setting.value, force_add=True)
    lines = []
    last = {setting.key.lstrip("+"): setting.place for setting in sound}
    for setting in sound:
        if "${" in str(setting.value) and not setting.key.startswith("hydra"):
            try:
                if last[setting.key.lstrip("+")] == setting.place:  # a sweep sets the key several times
                    OmegaConf.update(plain, setting.key.lstrip("+"), setting.value, force_add=True)
                value = OmegaConf.select(plain, setting.key.lstrip("+"), throw_on_missing=True)
                if OmegaConf.is_config(value):
                    value = OmegaConf.to_container(value, resolve=True)
                problem = value_problem(setting.key.lstrip("+"), value)
            except (OmegaConfBaseException, ConfigError) as error:
                problem = in_one_line(error)
            if problem:
                lines.append(f"{setting.place}: {problem}.")
    if lines or not rules:
        return lines
    try:
        config = to_config(plain)
    except (OmegaConfBaseException, ConfigError):
        return []
    return [
        _with_place(rule, sound)
        for rule in broken_rules(config)
        if not any(_overlap(key, about) for key in spoilt for about in rule.about)
    ]


def _with_place(rule: Broken, sound: list[Setting]) -> str:
    """A rule's sentence after the place of the first key that it is about, where that is written anywhere."""
    keys = [key for key in rule.about if owner(key)]
    places = [one.place for key in keys for one in reversed(sound) if one.key.lstrip("+") == key]
    if not places or rule.sentence.startswith(redacted_override(places[0])):
        return f"{rule.sentence}."
    return f"{redacted_override(places[0])}: {rule.sentence}."


def _overlap(one: str, other: str) -> bool:
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")
