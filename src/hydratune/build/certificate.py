"""Whether the merged folder, loaded as any other tool would load it, is the model that was trained."""

import gc
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hydratune.build.adapter import with_adapter
from hydratune.build.expected import QUANTIZED, become_plain, compute_as_in_training, in_float32
from hydratune.build.hardware import Hardware
from hydratune.build.model import load_model, load_plain
from hydratune.build.rendering import REFUSED, Renderer
from hydratune.config.schema import Config

POSITIONS = 64  # of a row, its last: the logits of all rows are kept
NEAR = 1e-4  # two tokens whose logits are as close as this are equally likely


@dataclass(frozen=True)
class Certificate:
    """Adapter model against merged folder, both computed in float32."""

    kl: float  # mean KL divergence of the next token's distributions from those of the trained model, nats
    max_logit_difference: float
    same_greedy_tokens: float  # share of positions at which both find the same token likeliest
    # the same two where the trained model's weights are rounded as the folder's
    kl_beyond_rounding: float
    same_greedy_beyond_rounding: float  # of tokens that are equally likely, either will do
    wrong_weights: int  # that are not those of peft's own merge, rounded to the folder's type
    max_weight_difference: float  # of one tensor, relative to its own size; 16-bit rounding gives up to 4e-3
    most_different_weight: str
    tensors: int
    same_prompt_tokens: bool  # the folder's own tokenizer against that of training
    answers_end: bool  # generation_config.json names the token that ends an assistant's turn
    vocabulary_fits: bool  # every token has a row in the embedding
    tied_as_configured: bool  # embedding and head are one tensor exactly where config.json says so
    rows: int

    def as_metrics(self) -> dict[str, Any]:
        return {f"merge/{name}": value for name, value in asdict(self).items()}


@torch.no_grad()
def certify(
    config: Config,
    hardware: Hardware,
    source: str,
    adapter: Path,
    merged: Path,
    rows: list[list[int]],
    tokenizer: PreTrainedTokenizerBase,
    base: str,
) -> Certificate:
    """Over `rows` of token ids. `hardware` with the dtype of training; `base`: onto which the adapter was merged.

    The models are there one after another; only the logits are kept.
    """
    trust = config.model.trust_remote_code
    # flash attention has no float32; both models need the same
    attention = "sdpa" if "flash" in hardware.attn_implementation else hardware.attn_implementation
    exact = replace(hardware, compute_dtype="float32", attn_implementation=attention)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # training may have switched to TF32
    try:
        trained = _load_trained(config, exact, source, adapter)
        of_trained = _logits(trained, rows)
        fresh: Any = load_plain(str(merged), "auto", "cpu", trust, attention)  # its files are mapped, not read
        inner: Any = trained.base_model.model
        originals = None
        if base == "original" and any(isinstance(m, QUANTIZED) for m in inner.modules()):
            plain = replace(config.model, device_map=None)
            originals = load_model(plain, source, replace(exact, device="cpu"))
        device = _room_for(fresh, inner)
        found = become_plain(inner, fresh, originals, device)
        del trained, originals
        of_rounded = _logits(inner, rows)
        del inner
        gc.collect()
        of_fresh = _logits(fresh.to(device), rows)
    finally:
        torch.set_float32_matmul_precision(precision)
    own = AutoTokenizer.from_pretrained(merged, trust_remote_code=trust)
    embedding, head = fresh.get_input_embeddings(), fresh.get_output_embeddings()
    tied = head is not None and head.weight is embedding.weight
    kl, difference, same = _apart(of_trained, of_fresh, 0.0)
    kl_beyond, _, same_beyond = _apart(of_rounded, of_fresh, NEAR)
    return Certificate(
        kl=kl,
        max_logit_difference=difference,
        same_greedy_tokens=same,
        kl_beyond_rounding=kl_beyond,
        same_greedy_beyond_rounding=same_beyond,
        wrong_weights=found.wrong,
        max_weight_difference=found.apart,
        most_different_weight=found.most,
        tensors=found.tensors,
        same_prompt_tokens=_prompts(own, tokenizer) == _prompts(tokenizer, tokenizer),
        answers_end=_answers_end(fresh, tokenizer),
        vocabulary_fits=len(own) <= embedding.weight.shape[0],
        tied_as_configured=tied == bool(fresh.config.get_text_config().tie_word_embeddings),
        rows=len(rows),
    )


def _load_trained(config: Config, hardware: Hardware, source: str, adapter: Path) -> PeftModel:
    """The base as training loaded it, in whose type it was quantized, and the adapter on it."""
    model: Any = load_model(config.model, source, hardware, config.quantization)
    settings = PeftConfig.from_pretrained(str(adapter))
    saved = tuple(getattr(settings, "modules_to_save", None) or ())
    # peft rounds what it puts in the place of whole modules and rows to the type that those have
    replaced = [model.get_input_embeddings(), model.get_output_embeddings()]
    replaced += [module for name, module in model.named_modules() if name.endswith(saved)]
    for module in replaced:
        if module is not None and not isinstance(module, QUANTIZED):
            for p in module.parameters():
                p.data = p.data.float() if p.dtype in (torch.bfloat16, torch.float16) else p.data
    compute_as_in_training(model)
    return with_adapter(model, adapter).eval()


def _logits(model: Any, rows: list[list[int]]) -> list[Tensor]:
    """Of each row's last positions, shape (positions, vocabulary), on the CPU."""
    device = model.device
    with in_float32(model, _free(device)):
        return [
            model(torch.tensor([ids], device=device), use_cache=False).logits[0, -POSITIONS:].float().cpu()
            for ids in rows
        ]


def _apart(ours: list[Tensor], theirs: list[Tensor], near: float) -> tuple[float, float, float]:
    """Mean KL divergence, greatest difference of two logits, and share of positions with the same likeliest token."""
    divergences, differences, same, positions = [], [], 0, 0
    for a, b in zip(ours, theirs, strict=True):
        width = min(a.shape[-1], b.shape[-1])
        p, q = a[:, :width].double().log_softmax(-1), b[:, :width].double().log_softmax(-1)
        divergences.append((p.exp() * (p - q)).sum(-1).mean().item())
        differences.append((a[:, :width] - b[:, :width]).abs().max().item())
        likeliest = b[:, :width].argmax(-1, keepdim=True)
        best = a[:, :width].max(-1, keepdim=True)
        chosen = (a.gather(-1, likeliest) >= best.values - near) if near else likeliest == best.indices
        same, positions = same + int(chosen.sum()), positions + len(a)
    return sum(divergences) / len(divergences), max(differences), same / positions


def _room_for(folder: Any, trained: Any) -> torch.device:
    """Where a plain model of the folder's size can run in the place of `trained`: its device, else the CPU."""
    device = cast(torch.device, trained.device)
    if device.type != "cuda":
        return torch.device("cpu")
    widest = max(p.numel() for p in folder.parameters())
    needed = folder.get_memory_footprint() + 12 * widest + (1 << 30)
    return device if needed < _free(device) + trained.get_memory_footprint() else torch.device("cpu")


def _free(device: torch.device) -> int:
    """Bytes of memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


def _prompts(tokenizer: Any, training: Any) -> list[Any]:
    """What the tokenizer makes of conversations and texts; the same are asked of any tokenizer beside `training`'s."""
    special = " ".join(str(token) for token in training.all_special_tokens)
    user = {"role": "user", "content": "What is the capital of France?"}
    answer = {"role": "assistant", "content": "Paris."}
    conversations = [
        [user],
        [{"role": "system", "content": "Answer in one word."}, user],
        [user, answer, {"role": "user", "content": "And of Italy? "}],
        [{"role": "user", "content": f"  What do {special} mean?\n\n"}],
    ]
    found = [_asked(tokenizer, turns) for turns in conversations]
    return [*found, *(tokenizer(text)["input_ids"] for text in ("The capital of France", f"{special} and so on"))]


def _asked(tokenizer: Any, turns: list[dict[str, str]]) -> list[Any] | None:
    """The prompt and its tokens; None where the chat template has no such turns."""
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except REFUSED:
        return None
    return [text, tokenizer(text, add_special_tokens=False)["input_ids"]]


def _answers_end(model: Any, tokenizer: Any) -> bool:
    stop = Renderer(tokenizer).stop
    ends = model.generation_config.eos_token_id
    return stop is None or tokenizer.convert_tokens_to_ids(stop) in (ends if isinstance(ends, list) else [ends])
