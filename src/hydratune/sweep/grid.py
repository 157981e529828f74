"""The overrides of each job: products of the values given, values in step (sweep.zip), and seeds (sweep.seeds)."""

from itertools import product
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser

from hydratune.config.schema import ConfigError


def grid(loader: ConfigLoader, overrides: list[str], zipped: list[Any], seeds: list[int]) -> list[list[str]]:
    """Every combination of the values of sweeping overrides, the last varying fastest; those of a zip vary together.

    `zipped` is sweep.zip, `seeds` those of sweep.seeds or none. Raises ConfigError.
    """
    parser = OverridesParser.create(config_loader=loader)
    values: dict[str, list[str]] = {}  # key -> its words; what doesn't sweep has one
    sweeping = []
    for text in overrides:
        override = parser.parse_override(text)
        key = override.get_key_element()
        if override.is_sweep_override():
            sweeping.append(key)
            values[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
            if not values[key]:
                raise ConfigError(f"{text} has no value, so there is no job: give it one.")
        else:
            values[key] = [text]
    if seeds:
        if "seed" in sweeping:
            raise ConfigError("sweep.seeds and a swept seed are two lists of seeds: leave out one of them.")
        values.pop("seed", None)
        values["seed"] = [f"seed={seed}" for seed in seeds]
    steps: dict[str, list[tuple[str, ...]]] = {}  # the first key of those that vary together -> their words, in step
    group_of = {key: group for group in _groups(zipped, sweeping) for key in group}
    for key, words in values.items():
        group = group_of.get(key, (key,))
        if group[0] not in steps or key == group[0]:
            steps.setdefault(group[0], [])
        if key == group[0]:
            steps[key] = _in_step(group, [values[name] for name in group]) if len(group) > 1 else [(w,) for w in words]
    return [[word for step in combination for word in step] for combination in product(*steps.values())]


def _groups(zipped: list[Any], sweeping: list[str]) -> list[tuple[str, ...]]:
    """sweep.zip as the keys that go together. Raises ConfigError where it names another thing than swept keys."""
    groups = [tuple(map(str, group)) for group in (zipped if zipped and isinstance(zipped[0], list) else [zipped])]
    if any(isinstance(group, list) != isinstance(zipped[0], list) for group in zipped):
        raise ConfigError("sweep.zip is a list of keys, or a list of such lists: set sweep.zip=[KEY,KEY].")
    named = [key for group in groups for key in group]
    for key in named:
        if key not in sweeping:
            raise ConfigError(f"sweep.zip names {key}, which is not swept: type {key}=VALUE,VALUE, or leave it out.")
        if named.count(key) > 1:
            raise ConfigError(f"sweep.zip names {key} twice: leave it out once.")
    if any(len(group) == 1 for group in groups):
        raise ConfigError(f"sweep.zip needs two keys or more, found {groups[0][0]} alone: leave sweep.zip out.")
    return [group for group in groups if group]


def _in_step(group: tuple[str, ...], words: list[list[str]]) -> list[tuple[str, ...]]:
    """Raises ConfigError where one has more values than another."""
    if len({len(one) for one in words}) > 1:
        counts = ", ".join(f"{key} has {len(one)}" for key, one in zip(group, words, strict=True))
        raise ConfigError(f"sweep.zip takes the values of its keys in step, and {counts}: give each as many.")
    return list(zip(*words, strict=True))
