"""PiSSA: begins as the base, is saved as a plain adapter of it, and goes on to the bit after a stop."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from hydratune.build.lora import build_lora
from hydratune.build.pissa import as_plain_lora, not_by_pissa, start_from_pissa
from hydratune.config.schema import LoraConf

IDS = torch.arange(3, 60)[None]


def tuned(base: Any, conf: LoraConf, folder: Path) -> Any:
    """The base with an adapter that has not learnt."""
    model = get_peft_model(base, build_lora(conf))  # type: ignore[arg-type]
    start_from_pissa(model, conf.init_lora_weights, folder)
    return model.eval()


def plain(tiny: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny).eval()


def conf(**options: Any) -> LoraConf:
    return LoraConf(kind="lora", r=4, lora_alpha=8, init_lora_weights="pissa", **options)


def learn(model: Any) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)


def difference(one: Any, other: Any) -> float:
    with torch.no_grad():
        return float((one(IDS).logits - other(IDS).logits).abs().max())


def test_it_begins_as_the_base_and_holds_its_principal_components(tiny: Path, tmp_path: Path) -> None:
    model = tuned(plain(tiny), conf(), tmp_path / "pissa")
    assert difference(model, plain(tiny)) < 1e-5
    layer = model.get_submodule("base_model.model.model.layers.0.mlp.up_proj")
    weight = plain(tiny).get_submodule("model.layers.0.mlp.up_proj").weight
    spectrum = torch.linalg.svdvals(weight.detach()).tolist()
    product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * layer.scaling["default"]
    assert torch.linalg.svdvals(product.detach())[:4].tolist() == pytest.approx(spectrum[:4], rel=1e-4)
    assert torch.linalg.svdvals(layer.base_layer.weight)[:4].tolist() == pytest.approx(spectrum[4:8], rel=1e-4)


@pytest.mark.parametrize("rslora", [False, True])
def test_it_is_converted_as_peft_converts(rslora: bool, tiny: Path, tmp_path: Path) -> None:
    model = tuned(plain(tiny), conf(use_rslora=rslora), tmp_path / "pissa")
    model.save_pretrained(tmp_path / "initial")
    learn(model)
    model.save_pretrained(tmp_path / "ours")
    as_plain_lora(tmp_path / "ours", tmp_path / "pissa")
    model.save_pretrained(tmp_path / "theirs", path_initial_model_for_weight_conversion=str(tmp_path / "initial"))
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys() and all(torch.equal(one, theirs[name]) for name, one in ours.items())
    settings = [PeftConfig.from_pretrained(str(tmp_path / name)).to_dict() for name in ("ours", "theirs")]
    assert settings[0] == settings[1]
    again = PeftModel.from_pretrained(plain(tiny), str(tmp_path / "ours")).eval()
    assert difference(again, model) < 1e-5
    assert difference(again, plain(tiny)) > 1e-2


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [3, 5]},
        {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
        {"init_lora_weights": "pissa_niter_4"},
    ],
    ids=str,
)
def test_nothing_that_was_trained_is_lost(options: dict[str, Any], tiny: Path, tmp_path: Path) -> None:
    """peft's own conversion drops what is neither A nor B, and refuses patterns with rslora."""
    given: dict[str, Any] = {"kind": "lora", "r": 4, "init_lora_weights": "pissa", **options}
    settings = LoraConf(**given)
    model = tuned(plain(tiny), settings, tmp_path / "pissa")
    learn(model)
    model.save_pretrained(tmp_path / "adapter")
    as_plain_lora(tmp_path / "adapter", tmp_path / "pissa")
    again = PeftModel.from_pretrained(plain(tiny), str(tmp_path / "adapter")).eval()
    assert difference(again, model) < 2e-5


def test_a_model_of_transposed_weights(tmp_path: Path) -> None:
    def gpt2() -> Any:
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=128)).eval()

    model = tuned(gpt2(), conf(), tmp_path / "pissa")
    assert difference(model, gpt2()) < 1e-5
    learn(model)
    model.save_pretrained(tmp_path / "adapter")
    as_plain_lora(tmp_path / "adapter", tmp_path / "pissa")
    assert difference(PeftModel.from_pretrained(gpt2(), str(tmp_path / "adapter")).eval(), model) < 1e-5


def test_the_second_start_decomposes_nothing(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tuned(plain(tiny), conf(), tmp_path / "pissa").state_dict()
    monkeypatch.setattr(torch.linalg, "svd", None)
    second = tuned(plain(tiny), conf(), tmp_path / "pissa").state_dict()
    assert first.keys() == second.keys() and all(torch.equal(one, second[name]) for name, one in first.items())


def test_layers_that_it_cannot_begin_in(tiny: Path) -> None:
    def said(settings: LoraConf) -> str | None:
        return not_by_pissa(get_peft_model(plain(tiny), build_lora(settings)), "lm_head.weight")  # type: ignore[arg-type]

    assert said(conf()) is None
    assert "and model.embed_tokens is adapted too" in str(said(conf(target_modules=["q_proj", "embed_tokens"])))
    assert "and lm_head is adapted too" in str(said(conf(target_modules=["q_proj", "lm_head"])))
    assert "has 32 principal components, and its adapter the rank 33" in str(said(conf(rank_pattern={"q_proj": 33})))
