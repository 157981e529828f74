"""4-bit layers keep their gradients after a forward without gradients, and are what the papers say of them."""

import copy
from pathlib import Path
from typing import Any, cast

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.backends.default.ops import _get_4bit_quantize_bounds
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel

from hydratune.build.hardware import resolve
from hydratune.build.model import load_model
from hydratune.build.quantization import build_quantization, quantized_modules, quick_on_cpu
from hydratune.config.schema import Config, ModelConf, QuantizationConf

AVX512_BF16 = "avx512_bf16" in Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else False
LAYER, BLOCK = "model.layers.0.mlp.up_proj", 64
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip


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


def test_quick_quantization_gives_bitsandbytes_own_weights(wide: Path) -> None:
    """Of every kind, and of numbers that lie on the bounds or are none."""
    torch.manual_seed(0)
    plain = torch.bucketize
    for kind in ("nf4", "fp4"):
        bounds, _ = _get_4bit_quantize_bounds(kind, torch.device("cpu"))
        odd = [
            bounds,
            bounds.nextafter(bounds + 1),
            bounds.nextafter(bounds - 1),
            torch.tensor([0.0, -0.0, 1.0, -1.0, torch.nan]),
        ]
        values = torch.cat([torch.randn(3 * 2**16) / 3, *odd])
        with quick_on_cpu():
            assert torch.bucketize is not plain
            found = torch.bucketize(values.view(1, -1), bounds, out_int32=True)
        assert found.dtype == torch.int32 and torch.equal(found, plain(values.view(1, -1), bounds, out_int32=True))
        for dtype in (torch.float32, torch.bfloat16):
            for shape in ((64, 128), (7, 9)):  # the second leaves a block that is not full
                weight = torch.randn(shape).to(dtype)
                made = [bnb.functional.quantize_4bit(weight, quant_type=kind, compress_statistics=True)]
                with quick_on_cpu():
                    made.append(bnb.functional.quantize_4bit(weight, quant_type=kind, compress_statistics=True))
                assert torch.equal(made[0][0], made[1][0]) and torch.equal(made[0][1].absmax, made[1][1].absmax)
    assert torch.bucketize is plain
    layer: Any = loaded(wide).get_submodule(LAYER)
    theirs: Any = AutoModelForCausalLM.from_pretrained(
        wide, dtype=torch.float32, quantization_config=build_quantization(QuantizationConf("nf4"), "float32")
    )
    assert torch.equal(layer.weight, theirs.get_submodule(LAYER).weight)


@pytest.mark.parametrize("asked", [{"right": True}, {}, {"out_int32": True, "right": True}])
def test_any_other_look_up_is_torchs(asked: dict[str, bool]) -> None:
    values, bounds = torch.tensor([0.0, 3.0, 15.0]), torch.arange(15.0)
    plain = torch.bucketize(values, bounds, **asked)
    with quick_on_cpu():
        assert torch.equal(torch.bucketize(values, bounds, **asked), plain)
        assert torch.bucketize(values, bounds.double(), out_int32=True).tolist() == [0, 3, 15]
        assert torch.bucketize(values, bounds[:3], out_int32=True).tolist() == [0, 3, 3]


# what QLoRA (arXiv:2305.14314) says of its data types, of layers as they are loaded here


def stored(folder: Path, conf: QuantizationConf) -> tuple[Any, torch.Tensor]:
    """The quantized layer of a loaded model, and the weights that it was made of, drawn from a normal distribution."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        weight = file.get_tensor(f"{LAYER}.weight")
    model = load_model(ModelConf(), str(folder), resolve(Config()), conf)
    return model.get_submodule(LAYER), weight


def values(layer: Any) -> torch.Tensor:
    return torch.as_tensor(bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)).float()


def int4(weight: torch.Tensor) -> torch.Tensor:
    """Evenly spaced -7 ... 7, scaled by the greatest magnitude of each 64, as NF4's blocks are."""
    blocks = weight.reshape(-1, BLOCK)
    scale = blocks.abs().amax(1, keepdim=True) / 7
    return (torch.round(blocks / scale) * scale).reshape(weight.shape)


def errors(found: torch.Tensor, weight: torch.Tensor) -> tuple[float, float]:
    """Mean magnitude and root mean square, in standard deviations of the weights."""
    apart = (found - weight) / weight.std()
    return apart.abs().mean().item(), apart.square().mean().sqrt().item()


def test_nf4_is_nearer_to_normal_weights_than_fp4_and_int4(wide: Path) -> None:
    """Section 3 and table 2 of the paper."""
    by_kind = {}
    for kind in ("nf4", "fp4"):
        layer, weight = stored(wide, QuantizationConf(kind))
        assert layer.weight.quant_state.blocksize == BLOCK and layer.weight.quant_state.quant_type == kind
        by_kind[kind] = errors(values(layer), weight)
    by_kind["int4"] = errors(int4(weight), weight)
    for measure in (0, 1):
        assert by_kind["nf4"][measure] < by_kind["int4"][measure] < by_kind["fp4"][measure], by_kind
    # against what anyone can work out: the 16 values of appendix E, looked up for each weight
    table = torch.tensor(NF4)
    blocks = weight.reshape(-1, BLOCK)
    scaled = blocks / blocks.abs().amax(1, keepdim=True)
    nearest = table[(scaled[..., None] - table).abs().argmin(-1)] * blocks.abs().amax(1, keepdim=True)
    assert by_kind["nf4"] == pytest.approx(errors(nearest.reshape(weight.shape), weight), rel=1e-4)


def bits(layer: Any) -> float:
    """Stored bits of a parameter: the packed weights, and the constants of their blocks."""
    state = layer.weight.quant_state
    parts = [layer.weight.data, state.absmax]
    if state.nested:
        parts += [state.state2.absmax, state.offset]
    return 8 * sum(part.numel() * part.element_size() for part in parts) / state.shape.numel()


def test_double_quantization_saves_0_373_bits_a_parameter(wide: Path) -> None:
    """Section 3: from 32/64 bits for the constants to 8/64 + 32/(64 * 256)."""
    plain, weight = stored(wide, QuantizationConf("nf4"))
    double, _ = stored(wide, QuantizationConf("nf4", bnb_4bit_use_double_quant=True))
    assert bits(plain) == pytest.approx(4.5, abs=1e-6)
    assert bits(plain) - bits(double) == pytest.approx(0.373, abs=0.001)
    # and loses next to nothing
    assert errors(values(double), weight) == pytest.approx(errors(values(plain), weight), rel=0.01)


def adapter_gradient(folder: Path, conf: QuantizationConf | None) -> torch.Tensor:
    """Of B of every layer, which starts at zero, so that A's is zero, after a step of training."""
    torch.manual_seed(0)
    model = load_model(ModelConf(), str(folder), resolve(Config()), conf)
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    ids = torch.arange(3, 60)[None]
    tuned.train()(ids, labels=ids).loss.backward()
    learnt = [p.grad for name, p in tuned.named_parameters() if "lora_B" in name]
    return torch.cat([gradient.float().flatten() for gradient in learnt if gradient is not None])


@pytest.mark.parametrize(("kind", "least"), [("int8", 0.999), ("nf4", 0.97), ("fp4", 0.93)])
def test_an_adapter_learns_on_a_quantized_base_what_it_would_on_the_base(kind: str, least: float, wide: Path) -> None:
    plain = adapter_gradient(wide, None)
    assert least < cosine(adapter_gradient(wide, QuantizationConf(kind)), plain) < 0.99999


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_skipped_modules_stay_as_they_are(kind: str, wide: Path) -> None:
    skipped = ["lm_head", "down_proj"]
    model = load_model(ModelConf(), str(wide), resolve(Config()), QuantizationConf(kind, llm_int8_skip_modules=skipped))
    found = set(quantized_modules(model))
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert linear - found == {"lm_head", "model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"}
    with safe_open(wide / "model.safetensors", "pt") as file:
        for name in linear - found:
            assert torch.equal(cast(torch.Tensor, model.get_submodule(name).weight), file.get_tensor(f"{name}.weight"))
    by_default = load_model(ModelConf(), str(wide), resolve(Config()), QuantizationConf(kind))
    assert linear - set(quantized_modules(by_default)) == {"lm_head"}


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize("storage", ["uint8", "bfloat16", "float32"])
def test_types_are_those_that_were_asked_for(compute: str, storage: str, wide: Path) -> None:
    conf = QuantizationConf("nf4", bnb_4bit_compute_dtype=compute, bnb_4bit_quant_storage=storage)
    config = Config(quantization=conf)
    model = load_model(ModelConf(), str(wide), resolve(config), conf)
    layer: Any = model.get_submodule(LAYER)
    assert layer.compute_dtype == getattr(torch, compute)
    assert layer.weight.dtype == layer.weight.quant_storage == getattr(torch, storage)
    product = layer(torch.ones(1, layer.in_features))
    exact = torch.ones(layer.in_features) @ values(layer).T
    rounded = (product[0] - exact).abs().max() / exact.abs().max()
    assert rounded < (1e-5 if compute == "float32" else 2e-2)
    assert (rounded > 1e-5) == (compute == "bfloat16")
