"""The data gate and `hydratune data`, on the screen and in the receipt; packed and validation rows through training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TEMPLATE, chat_rows
from transformers import AutoTokenizer

Row = list[dict[str, str]]


def exchange(question: str, answer: str) -> Row:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def write(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return path


PLAIN = [exchange(f"What is noun {number} of the river?", f"It is {number * 7}.") for number in range(12)]


@pytest.fixture
def prepared(tiny: Path, warm, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run the stage on rows; returns its receipt, with what the screen said under `screen`."""

    def call(rows: list[Row], *settings: str, run: str = "run") -> dict[str, Any]:
        write(tmp_path / "rows.jsonl", rows)
        done = warm(
            "model=local", f"model.name_or_path={tiny}", "data.path=rows.jsonl", "stages=[prepare]", f"run_dir={run}",
            "trainer.max_steps=2", *settings,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        receipt = json.loads((tmp_path / run / "receipts/prepare.json").read_text())
        assert [f"  warning: {one}" for one in receipt["findings"]] == [
            line for line in done.stdout.splitlines() if line.startswith("  warning: ")
        ]
        return {**receipt, "screen": done.stdout, "report": json.loads((tmp_path / run / "prepared.json").read_text())}

    return call


@pytest.mark.slow
def test_rows_in_which_nothing_is_wrong(prepared) -> None:
    receipt = prepared(PLAIN)
    assert receipt["findings"] == []
    report = receipt["report"]["training"]
    assert (report["rows"], report["found"], sum(report["lengths"])) == (12, {}, 12)
    assert receipt["metrics"] == {
        "prepare/rows": 12, "prepare/tokens": report["tokens"], "prepare/validation_rows": 0,
        "prepare/supervised_tokens": report["supervised_tokens"],
    }  # fmt: skip
    assert "  to come    2 steps, 0.333 epochs, " in receipt["screen"]


LONG = exchange("What is fern?", "A plant of the river " * 40)
ELSEWHERE = (
    "have an answer that begins elsewhere than the prompt ends that the chat template makes when the model is asked, as far as "
    "the first rows show"
)
FINDINGS: dict[str, tuple[list[Row], list[str], list[str]]] = {
    "an answer is cut": (
        [*PLAIN, LONG], ["trainer.max_length=100"],
        ["1 training rows lose a part of what is supervised at trainer.max_length=100: raise it, or set "
         "data.on_long_row=skip ({rows}, row 13)."],
    ),
    "a long row is left out": (
        [*PLAIN, LONG], ["trainer.max_length=100", "data.on_long_row=skip"],
        ["1 training rows are above trainer.max_length=100 and were left out ({rows}, row 13)."],
    ),
    "rows repeat": (
        [*PLAIN, PLAIN[3], PLAIN[3], PLAIN[5]], [],
        ["3 training rows repeat another row within trainer.max_length=512 ({rows}, row 13; {rows}, row 14; {rows}, row 15)."],
    ),
    "a bad row is left out": (
        [*PLAIN, PLAIN[0][:1]], ["data.on_bad_row=skip", "data.max_bad_share=0.1"],
        ["1 rows can't be trained on and were left out, such as {rows}, row 13: the last message must be the "
         "assistant's, found 'user'."],
    ),
    "the template's tokens in a text": (
        [*PLAIN, exchange("What does </s> mean?", "The end.")], [],
        ["1 training rows hold one of the chat template's own special tokens as text ({rows}, row 13)."],
    ),
    "no token ends a turn": (
        PLAIN[:1], ["model.chat_template=bare.jinja"],
        ["1 training rows have a supervised turn that no special token ends, so the model isn't taught to stop there: "
         "let the chat template write {{{{ eos_token }}}} after it ({rows}, row 1)."],
    ),
    "generation does not stop where turns end": (
        PLAIN, ["model.chat_template=unknown.jinja"],
        ["An assistant's turn ends with <unk>, and the model by itself stops at </s>: merged/ names <unk> in its "
         "generation_config.json, and who serves the adapter must stop there too."],
    ),
    "served otherwise": (
        PLAIN[:1], ["model.chat_template=served.jinja"],
        [f"1 training rows {ELSEWHERE} ({{rows}}, row 1)."],
    ),
    "thinks where it is asked": (
        PLAIN[:1], ["model.chat_template=thinks.jinja"],
        [f"1 training rows {ELSEWHERE}; an empty think block is in the prompt too with "
         "+model.chat_template_kwargs.enable_thinking=false ({rows}, row 1)."],
    ),
    "does not think": (
        PLAIN[:1], ["model.chat_template=thinks.jinja", "+model.chat_template_kwargs.enable_thinking=false"], [],
    ),
    "the day": (
        PLAIN[:1], ["model.chat_template=dated.jinja"],
        ["The chat template writes the day on which it is asked, so a prompt of tomorrow is not one of today's training: set "
         "model.chat_template_kwargs.date_string to a day."],
    ),
    "a day": (
        PLAIN[:1], ["model.chat_template=dated.jinja", "+model.chat_template_kwargs.date_string='26 Jul 2024'"], [],
    ),
    "hardly anything supervised": (
        [exchange("What is fern? " * 300, "A.")], ["trainer.max_length=4096"],
        ["Only 0.26% of the tokens are supervised: is data.loss=assistant what was meant?"],
    ),
    "many passes": (
        PLAIN, ["trainer.max_steps=66"],
        ["Training passes over the rows 11 times, as trainer.max_steps or num_train_epochs say."],
    ),
    "the same rows in both": (
        PLAIN, ["data.validation_path=other.jsonl"],
        ["2 training rows are validation rows too, and were left out of training ({rows}, row 2; {rows}, row 3)."],
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("what", FINDINGS)
def test_what_may_be_a_mistake_is_said_once_with_its_rows(what: str, prepared, tmp_path: Path) -> None:
    rows, settings, said = FINDINGS[what]
    (tmp_path / "bare.jinja").write_text(TEMPLATE.replace(" + eos_token", ""))
    (tmp_path / "unknown.jinja").write_text(TEMPLATE.replace("eos_token", "'<unk>'"))
    (tmp_path / "served.jinja").write_text(TEMPLATE.replace("'<|assistant|>\n'", "'<|assistant|>\n<think>\n'"))
    asked = (
        "'<|assistant|>\n<think></think>' if enable_thinking is defined and not enable_thinking else '<|assistant|>\n'"
    )
    written = "('<think></think>' if message['role'] == 'assistant' else '') + message['content']"
    thinks = TEMPLATE.replace("'<|assistant|>\n'", asked).replace("message['content']", written)
    (tmp_path / "thinks.jinja").write_text(thinks)
    day = "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{{ date_string }}"
    (tmp_path / "dated.jinja").write_text(day + TEMPLATE)
    write(tmp_path / "other.jsonl", [*PLAIN[1:3], exchange("What is a bridge?", "A way over the river.")])
    receipt = prepared(rows, *settings)
    assert receipt["findings"] == [one.format(rows=tmp_path / "rows.jsonl") for one in said]


@pytest.mark.slow
def test_the_numbers_of_the_table(prepared, tiny: Path) -> None:
    """By hand: 12 rows in 6 batches of 2, 5 batches a step, so 2 steps a pass, of which the second has one batch."""
    settings = ["trainer.per_device_train_batch_size=2", "trainer.gradient_accumulation_steps=5"]
    receipt = prepared(PLAIN, *settings, "trainer.max_length=64", "trainer.max_steps=3")
    tokens = receipt["metrics"]["prepare/tokens"]
    passes = (6 + 5) / 6
    assert f"  to come    3 steps, {passes:.3f} epochs, {round(tokens * passes)} tokens" in receipt["screen"]
    report, tokenizer = receipt["report"]["training"], AutoTokenizer.from_pretrained(tiny)
    lengths = [len(tokenizer.apply_chat_template(row)["input_ids"]) for row in PLAIN]
    assert report["longest"] == max(lengths)
    assert report["lengths"] == [sum((length - 1) // 8 == number for length in lengths) for number in range(8)]


@pytest.mark.slow
def test_a_mapped_column_that_no_row_has(prepared, refused, tiny: Path, tmp_path: Path) -> None:
    rows = [{"instruction": "Why?", "context": "Here.", "output": "So."}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = refused(
        "model=local", f"model.name_or_path={tiny}", "data.path=a.jsonl", "+data.columns.input=contxt", "run_dir=run"
    )
    assert said == (
        f"hydratune: data.columns.input=contxt: no row of {tmp_path / 'a.jsonl'} has such a column, found instruction, "
        "context, output.\n"
    )


TASK = """
task: nouns
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: 0
doc_to_choice: ["yes", "no"]
metric_list: [{metric: acc}]
"""


@pytest.mark.slow
def test_a_benchmarks_own_documents_among_the_rows(prepared, tmp_path: Path) -> None:
    words = "Which of the teachers at harbour {} plays a violin of bread when the fern is {} years old, and why?"
    questions = [words.format(number, number * 13) for number in range(20, 30)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps({"question": one}) + "\n" for one in questions))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/nouns.yaml").write_text(TASK.replace("FILE", str(tmp_path / "test.jsonl")))
    clean = [exchange(words.format(number, number * 13), "Nobody knows.") for number in range(40, 50)]
    settings = ["benchmark.tasks=[nouns]", "benchmark.include_path=tasks"]
    assert prepared([*PLAIN, *clean], *settings)["findings"] == []
    leaked = prepared([*PLAIN, exchange(questions[4], "Nobody knows.")], *settings, run="leaked")["findings"]
    (sentence,) = leaked
    assert sentence.startswith("1 of 10 test documents of nouns are in the 13 training rows, by 10-grams of tokens")
    assert sentence.endswith(f"(document 4 in {tmp_path / 'rows.jsonl'}, row 13).")


@pytest.mark.slow
def test_the_rows_as_tokens(tiny: Path, warm, tmp_path: Path) -> None:
    rows = [row["messages"] for row in chat_rows()]
    write(tmp_path / "rows.jsonl", rows)
    settings = ["model=local", f"model.name_or_path={tiny}", "data.path=rows.jsonl"]
    done = warm("data", "3", *settings)
    assert done.returncode == 0, done.stderr
    assert "training   24 rows, " in done.stdout and not (tmp_path / "runs").exists()
    _, _, text = done.stdout.partition("rows.jsonl, row 3: ")
    assert text.partition("\n")[0].endswith(" supervised")
    shown = text.partition("\n")[2].rstrip("\n").replace("|", "")
    turns = "".join(
        f"<{turn['role']}>\n" + ("«" if turn["role"] == "assistant" else "") + f"{turn['content']}</s>\n"
        + ("»" if turn["role"] == "assistant" else "")
        for turn in rows[2]
    )  # fmt: skip
    assert shown == turns.rstrip("\n")
    first = warm("data", *settings)
    assert [
        line.split(" row ")[1].split(":")[0] for line in first.stdout.splitlines() if "rows.jsonl, row " in line
    ] == list("123")
    gone = warm("data", "25", *settings)
    assert (gone.returncode, gone.stderr) == (
        2, "hydratune: There is no training row 25: it may be held out, left out, or beyond the 24 rows.\n"
    )  # fmt: skip


def test_what_data_takes(refused) -> None:
    assert refused("data", "three", "experiment=demo") == (
        "hydratune: hydratune data takes numbers of rows, from 1, and KEY=VALUE, found 'three'.\n"
    )


TRAINED = ("lora=all_linear", "trainer.max_steps=2", "trainer.per_device_train_batch_size=24", "stages=[prepare,train]")


def losses(run: Path, name: str = "loss") -> list[float]:
    entries = [json.loads(line) for line in (run / "train_log.jsonl").read_text().splitlines()]
    return [entry[name] for entry in entries if name in entry]


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["assistant", "all"])
def test_packed_rows_train_as_single_ones(loss: str, tiny: Path, rows: Path, warm, tmp_path: Path) -> None:
    """24 rows in one batch, padded, in packs, in packs in one line, and in one line: the same losses."""
    ways = {
        "single": [], "packed": ["data.packing=true"], "line": ["data.padding_free=true"],
        "packed_line": ["data.packing=true", "data.padding_free=true"],
    }  # fmt: skip
    for name, settings in ways.items():
        done = warm(
            "model=local", f"model.name_or_path={tiny}", f"data.path={rows}", f"data.loss={loss}",
            "data.validation_share=0.3", f"run_dir={name}", "trainer.max_length=256", *TRAINED, *settings,
            "trainer.per_device_eval_batch_size=3",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "single"), rel=1e-5)
        found = json.loads((tmp_path / name / "metrics.json").read_text())["train/validation_loss"]
        whole = json.loads((tmp_path / "single/metrics.json").read_text())["train/validation_loss"]
        assert found == pytest.approx(whole, rel=1e-5)
    packs = json.loads((tmp_path / "packed/prepared.json").read_text())["training"]["packs"]
    assert 1 < packs < json.loads((tmp_path / "packed/prepared.json").read_text())["training"]["rows"]


@pytest.mark.slow
def test_the_validation_loss_along_the_way(tiny: Path, rows: Path, warm, tmp_path: Path) -> None:
    done = warm(
        "model=local", f"model.name_or_path={tiny}", f"data.path={rows}", "data.validation_share=0.2", "run_dir=run",
        "trainer.eval_steps=2", "lora=all_linear", "trainer.max_steps=5", "stages=[prepare,train]",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    entries = [json.loads(line) for line in (tmp_path / "run/train_log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries if "eval_loss" in entry] == [2, 4, 5]
    assert [entry["step"] for entry in entries if "loss" in entry] == [1, 2, 3, 4, 5]
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["train/validation_loss"] == entries[-1]["eval_loss"]


@pytest.mark.slow
def test_a_model_that_lets_packed_rows_see_one_another_is_refused(tiny: Path, rows, warm, tmp_path: Path) -> None:
    import torch
    from transformers import AutoTokenizer, OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    config = OPTConfig(
        vocab_size=len(tokenizer), hidden_size=32, ffn_dim=64, num_hidden_layers=1, num_attention_heads=2,
        word_embed_proj_dim=32, max_position_embeddings=512,
    )  # fmt: skip
    OPTForCausalLM(config).save_pretrained(tmp_path / "opt")
    tokenizer.save_pretrained(tmp_path / "opt")
    done = warm(
        "model=local", "model.name_or_path=opt", f"data.path={rows}", "data.packing=true", "run_dir=run",
        "model.attn_implementation=eager", *TRAINED,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr == (
        "hydratune: In this model, with attention eager, packed rows see one another: set data.packing=false and "
        "data.padding_free=false.\n"
    )
