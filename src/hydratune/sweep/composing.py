"""The configurations of a sweep's jobs, from the words of each."""

from collections.abc import Sequence
from copy import deepcopy

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from hydratune.config.load import to_config
from hydratune.config.saved import put
from hydratune.config.schema import Config
from hydratune.config.settings import group_options
from hydratune.config.values import converted


def composed(loader: ConfigLoader, master: DictConfig, jobs: Sequence[Sequence[str]]) -> list[Config]:
    """The configuration of each job.

    Hydra composes each choice of group options once; single values are then put on the typed result, which is what
    Hydra would do with them, at a hundredth of the time. Where interpolations may depend on them, Hydra does it all.
    """
    parser = OverridesParser.create(config_loader=loader)
    bases: dict[tuple[str, ...], tuple[Config, bool]] = {}
    configs = []
    for words in jobs:
        parsed = [parser.parse_override(word) for word in words]
        choices = tuple(w for w, o in zip(words, parsed, strict=True) if group_options(loader, o.key_or_group))
        values = [o for w, o in zip(words, parsed, strict=True) if w not in choices]
        if choices not in bases:
            chosen = loader.load_sweep_config(master, list(choices))
            plain = str(OmegaConf.to_container(_without_hydra(chosen), resolve=False))
            bases[choices] = to_config(chosen), "${" in plain
        base, interpolated = bases[choices]
        if interpolated or any("${" in str(o.value()) or o.is_delete() or isinstance(o.value(), dict) for o in values):
            configs.append(to_config(loader.load_sweep_config(master, list(words))))
        else:
            configs.append(_with_values(deepcopy(base), values))
    return configs


def _without_hydra(config: DictConfig) -> DictConfig:
    kept = {key: config._get_node(key) for key in config if key != "hydra"}
    return OmegaConf.create(kept)


def _with_values(config: Config, values: list[Override]) -> Config:
    for override in values:
        put(config, override.key_or_group, converted(override.key_or_group, override.value()))
    return config
