"""4-bit layers keep their gradients after a forward without gradients."""

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from hydratune.build.hardware import resolve
from hydratune.build.model import load_model
from hydratune.build.quantization import build_quantization
from hydratune.config.schema import Config, ModelConf, QuantizationConf

AVX512_BF16 = "avx512_bf16" in Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else False


def loaded(folder: Path) -> PreTrainedModel:
    return load_model(ModelConf(), str(folder), resolve(Config()), QuantizationConf("nf4"))


def input_gradient(folder: Path, evaluate_first: bool, cured: bool) -> torch.Tensor:
    """Gradient of the loss for the input embeddings, shape (1, T, H); `cured`: of a model as hydratune loads it."""
    model = (
        loaded(folder)
        if cured
        else AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, quantization_config=build_quantization(QuantizationConf("nf4"), "float32")
        )
    )
    ids = torch.tensor([[3, 4, 5, 6, 7, 8]])
    if evaluate_first:
        with torch.no_grad():
            model.eval()(ids)
            model(ids[:, :1])
    embeddings = model.get_input_embeddings()(ids).detach().requires_grad_()
    model.train()(inputs_embeds=embeddings, labels=ids).loss.backward()
    assert embeddings.grad is not None
    return copy.deepcopy(embeddings.grad)


def test_gradients_survive_an_evaluation_during_training(wide: Path) -> None:
    """Two models take the same steps, one of them evaluated before and between: their gradients stay the same."""
    found = []
    for evaluates in (False, True):
        torch.manual_seed(0)
        model = get_peft_model(loaded(wide), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
        learnt = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learnt, lr=1e-2)
        ids = torch.tensor([[3, 4, 5, 6, 7, 8]])
        for _ in range(3):
            if evaluates:
                with torch.no_grad():
                    model.eval()(ids)
                    model(ids[:, :1])
            optimizer.zero_grad()
            model.train()(ids, labels=ids).loss.backward()
            optimizer.step()
        found.append(torch.cat([p.grad.flatten() for p in learnt if p.grad is not None]))
    assert found[0].norm() > 0
    assert torch.equal(*found)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


def test_gradients_survive_an_evaluation(wide: Path) -> None:
    fresh = input_gradient(wide, evaluate_first=False, cured=True)
    assert cosine(fresh, input_gradient(wide, evaluate_first=True, cured=True)) > 0.9999


@pytest.mark.skipif(not AVX512_BF16, reason="the processor has no avx512_bf16, where bitsandbytes repacks nothing")
def test_the_cure_is_needed(wide: Path) -> None:
    fresh = input_gradient(wide, evaluate_first=False, cured=False)
    assert cosine(fresh, input_gradient(wide, evaluate_first=True, cured=False)) < 0.9


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose layers are wide enough for bitsandbytes' packed path."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("wide")
    LlamaForCausalLM(
        LlamaConfig(vocab_size=64, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4)
    ).save_pretrained(folder)
    return folder
