"""What was proven of an architecture is not proven again, and anything that could change the answer has it proven anew."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config, Gemma2ForCausalLM

from hydratune.build import batches, proven
from hydratune.build.hardware import resolve
from hydratune.config.saved import put
from hydratune.config.schema import Config
from hydratune.run.layout import RunDir
from hydratune.stages import prepare, train

LINE = "in one line, each row alone"
Run = Callable[..., tuple[int, train.Trainer]]


@pytest.fixture
def run(tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A trainer of a run of its own with these settings, and how often a proof looked at its model."""
    looked: list[str] = []
    for name in ("seen", "as_alone", "as_lean"):
        monkeypatch.setattr(batches, name, counting(getattr(batches, name), looked))

    def build(**settings: Any) -> tuple[int, train.Trainer]:
        config = Config(cache_dir=str(tmp_path / "cache"))
        config.model.name_or_path, config.data.path, config.lora.kind = str(tiny), str(rows), "lora"
        for key, value in settings.items():
            put(config, key.replace("__", "."), value)
        folder = RunDir(tmp_path / f"run-{len(list(tmp_path.iterdir()))}")
        folder.root.mkdir()
        prepare.run(config, folder, resolve(config))
        looked.clear()
        return len(looked), train.build_trainer(config, folder, resolve(config))

    def counted(**settings: Any) -> tuple[int, train.Trainer]:
        _, trainer = build(**settings)
        return len(looked), trainer

    return counted


def counting(function: Callable[..., Any], looked: list[str]) -> Callable[..., Any]:
    def called(*args: Any) -> Any:
        looked.append(function.__name__)
        return function(*args)

    return called


def answers(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache/proofs").iterdir())


def test_the_second_run_proves_nothing(run: Run, tmp_path: Path) -> None:
    proofs, first = run()
    assert proofs == 3 and first.lean and first.batches.name == LINE
    again, second = run(trainer__learning_rate=1e-3, trainer__max_steps=3)  # which no answer depends on
    assert (
        again == 0 and second.lean and second.proven and second.batches == batches.Batches(first.batches.collator, LINE)
    )
    assert [json.loads(path.read_text()) for path in answers(tmp_path)] == [{"batches": LINE, "lean loss": True}]
    assert [type(one.train().training_loss) for one in (second,)] == [float]


def test_training_is_the_same_with_and_without_the_proofs(run: Run) -> None:
    found = []
    for _ in range(2):
        proofs, trainer = run(trainer__max_steps=2)
        result = trainer.train()
        weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad])
        found.append((proofs, result.training_loss, weights))
    (three, loss, weights), (none, other, others) = found
    assert (three, none) == (3, 0) and loss == other and torch.equal(weights, others)


@pytest.mark.parametrize(
    "changed",
    [
        {"quantization__kind": "nf4"}, {"quantization__kind": "none", "lora__r": 4}, {"data__packing": True}, {"data__padding_free": False},
        {"trainer__max_length": 256}, {"trainer__precision": "bfloat16"}, {"model__dtype": "bfloat16"},
        {"model__attn_implementation": "eager"}, {"trainer__extra": {"neftune_noise_alpha": 5.0}}, {"model__add_tokens": ["<|think|>"]},
    ],
    ids=str,
)  # fmt: skip
def test_a_changed_setting_is_proven_anew(changed: dict[str, Any], run: Run) -> None:
    run()
    proofs, _ = run(**changed)
    assert proofs > 0
    proofs, _ = run(**changed)
    assert proofs == 0


def test_other_weights_are_not(run: Run, tiny: Path, tmp_path: Path) -> None:
    _, first = run()
    torch.manual_seed(1)
    other = AutoModelForCausalLM.from_config(first.model.get_base_model().config)
    _copied(tiny, other, tmp_path / "other")
    assert run(model__name_or_path=str(tmp_path / "other"))[0] == 0


def test_another_architecture_is(run: Run, tiny: Path, tmp_path: Path) -> None:
    run()
    settings = AutoModelForCausalLM.from_pretrained(tiny).config
    settings.rope_parameters = {**settings.rope_parameters, "rope_theta": 5e5}
    _copied(tiny, AutoModelForCausalLM.from_config(settings), tmp_path / "other")
    assert run(model__name_or_path=str(tmp_path / "other"))[0] == 3


def _copied(tiny: Path, model: Any, folder: Path) -> None:
    """`model` with the tokenizer of `tiny`."""
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"batches": "as ever"}', '{"batches": [], "lean loss": "yes"}'])
def test_a_damaged_answer_is_proven_anew(text: str, run: Run, tmp_path: Path) -> None:
    run()
    (path,) = answers(tmp_path)
    whole = path.read_text()
    path.write_text(text)
    proofs, trainer = run()
    assert proofs == 3 and trainer.lean and trainer.batches.name == LINE
    assert path.read_text() == whole
    path.write_bytes(b"\xff\xfe")
    assert run()[0] == 3


def test_other_code_of_ours_and_other_libraries_are_proven_anew(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    monkeypatch.setattr(proven, "versions", lambda: {"torch": "0"})
    assert run()[0] == 3
    digest = proven._digest
    monkeypatch.setattr(proven, "_digest", lambda path: digest(path) + ("x" if path.name == "proofs.py" else ""))
    assert run()[0] == 3


def test_a_model_for_which_the_proof_fails_is_known_as_such(run: Run, tiny: Path, tmp_path: Path) -> None:
    """A cap on the logits below what the settings tell: Gemma 2 with one so high that nothing caps, by its own code."""
    words = len(AutoTokenizer.from_pretrained(tiny))
    torch.manual_seed(0)
    made = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=words, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, pad_token_id=0, attn_logit_softcapping=20.0, final_logit_softcapping=30.0,
        )
    )  # fmt: skip
    _copied(tiny, made, tmp_path / "gemma2")
    settings = {"model__name_or_path": str(tmp_path / "gemma2"), "model__attn_implementation": "eager"}
    proofs, first = run(**settings)
    assert proofs > 0 and not first.lean and first.batches.name == "padded"
    again, second = run(**settings)
    assert again == 0 and not second.lean and second.batches.name == "padded"
    assert json.loads(answers(tmp_path)[0].read_text()) == {"batches": "padded", "trl's loss": True}


def test_what_is_asked_later_is_proven_then(run: Run, tmp_path: Path) -> None:
    """trl's own loss is looked at only where it is used."""
    run()
    proofs, plain = run(trainer__lean_loss=False)
    assert proofs == 1 and plain.proven and not plain.lean
    assert run(trainer__lean_loss=False)[0] == 0
    assert json.loads(answers(tmp_path)[0].read_text()) == {"batches": LINE, "lean loss": True, "trl's loss": True}


@pytest.mark.parametrize(
    "theirs",
    [
        {"model__trust_remote_code": True}, {"trainer__callbacks": ["transformers:PrinterCallback"]},
        {"data__formatter": "copy:copy"},
    ],
    ids=str,
)  # fmt: skip
def test_with_code_that_no_version_tells_it_is_proven_each_time(
    theirs: dict[str, Any], run: Run, tmp_path: Path
) -> None:
    for _ in range(2):
        assert run(**theirs)[0] == 3
    assert not (tmp_path / "cache/proofs").exists()


def test_a_single_number_among_the_weights_is_part_of_the_key(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    load, value = train.load_model, [1.0]

    def gated(*args: Any) -> Any:
        model = load(*args)
        model.gate = torch.nn.Parameter(torch.tensor(value))
        return model

    monkeypatch.setattr(train, "load_model", gated)
    assert run()[0] == 3 and run()[0] == 0
    value[0] = 0.5
    assert run()[0] == 3


def test_broken_weights_prove_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = train.load_model

    def broken(*args: Any) -> Any:
        model = load(*args)
        model.get_output_embeddings().weight.data.fill_(torch.nan)
        return model

    with monkeypatch.context() as patched:
        patched.setattr(train, "load_model", broken)
        run(trainer__extra={"loss_type": "dft"})  # whose loss is not refused before the first step
    assert not (tmp_path / "cache/proofs").exists()
    assert run(trainer__extra={"loss_type": "dft"})[1].batches.name == LINE


def test_a_cache_that_cannot_be_written_stops_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/proofs").write_text("a file in the folder's place")
    for _ in range(2):
        proofs, trainer = run()
        assert proofs == 3 and trainer.lean
