"""`auto` settled on the machine where the job runs; what the machine can't do, refused."""

import importlib.util
import os
import shutil
from dataclasses import dataclass

import torch

from hydratune.build.together import world_size
from hydratune.config.schema import Config, MachineError


@dataclass(frozen=True)
class Hardware:
    """What `auto` became here. Names are those of the libraries."""

    device: str
    dtype: str
    compute_dtype: str  # of bitsandbytes' 4-bit layers
    precision: str  # autocast
    optim: str
    attn_implementation: str
    world_size: int = 1  # processes


def _processes(config: Config, cuda: bool) -> tuple[list[str], list[str]]:
    """What is wrong with sharding, and what doesn't fit this machine or how many processes there are."""
    wrong: list[str] = []
    here: list[str] = []
    if world_size() > 1 and config.model.device_map:
        here.append(
            f"model.device_map={config.model.device_map} is one process's placement of a model on several devices, and "
            f"{world_size()} processes were started, each with a device of its own: set model.device_map=null."
        )
    if not config.trainer.fsdp:
        return wrong, here
    if not cuda:  # accelerate would train without it, and not say so
        here.append("trainer.fsdp=true needs CUDA, and this machine has none: set trainer.fsdp=false.")
    elif world_size() == 1:
        here.append(
            "trainer.fsdp=true puts the weights in shards over processes, and one was started: start the run by "
            "launchers/node.sh, or set trainer.fsdp=false."
        )
    if config.quantization.kind == "int8":
        wrong.append("trainer.fsdp=true can't shard LLM.int8's weights: set quantization=nf4, or trainer.fsdp=false.")
    if config.trainer.optim.startswith("paged") or "8bit" in config.trainer.optim:
        wrong.append(
            f"trainer.optim={config.trainer.optim} is bitsandbytes', which knows no weights in shards: "
            "set trainer.optim=adamw_torch, or trainer.fsdp=false."
        )
    return wrong, here


def resolve(config: Config) -> Hardware:
    """Settle dtype, optimizer and attention. Raises ConfigError, one sentence for each value refused."""
    cuda = torch.cuda.is_available()
    # bf16 products are slower than float32 ones on CPUs without AMX, so a CPU's auto is float32
    best = ("bfloat16" if torch.cuda.is_bf16_supported() else "float16") if cuda else "float32"
    wrong, here = _processes(config, cuda)
    if not cuda:
        if config.model.device_map and "cuda" in config.model.device_map:
            here.append(
                f"model.device_map={config.model.device_map} needs CUDA, and this machine has none: "
                "set model.device_map=null."
            )
        if config.trainer.optim.startswith("paged"):
            here.append(
                f"trainer.optim={config.trainer.optim} needs CUDA, and this machine has none: set trainer.optim=adamw_torch."
            )
        if config.trainer.precision == "float16":
            here.append(
                "trainer.precision=float16 needs CUDA, and this machine has none: set trainer.precision=float32."
            )
        compilers = [os.environ.get("CXX", "g++"), "g++", "clang++"]
        if config.trainer.torch_compile and not any(map(shutil.which, compilers)):
            here.append(
                "trainer.torch_compile=true needs a C++ compiler on a CPU, and there is none: install g++, or set "
                "trainer.torch_compile=false."
            )
        if config.model.attn_implementation == "flash_attention_2":
            here.append(
                "model.attn_implementation=flash_attention_2 needs CUDA, and this machine has none: "
                "set model.attn_implementation=sdpa."
            )
    elif config.model.attn_implementation == "flash_attention_2" and not importlib.util.find_spec("flash_attn"):
        here.append(
            "model.attn_implementation=flash_attention_2 needs the package flash-attn: "
            "pip install flash-attn, or set model.attn_implementation=sdpa."
        )

    def settle(value: str, default: str) -> str:
        return default if value == "auto" else value

    # what trains needs float32's digits: 16 bits would round most of an optimizer's steps away
    dtype = settle(config.model.dtype, "float32" if config.lora.kind == "none" else best)
    storage = config.quantization.bnb_4bit_quant_storage
    if config.trainer.fsdp and config.quantization.kind in ("nf4", "fp4") and storage != dtype:
        wrong.append(  # accelerate would leave the quantized weights whole on each device
            f"trainer.fsdp=true shards 4-bit weights only where they are stored in the others' type, {dtype}, found "
            f"{storage}: set quantization.bnb_4bit_quant_storage={dtype}."
        )
    if wrong or here:
        raise MachineError(wrong, here)
    paged = cuda and config.quantization.kind != "none" and not config.trainer.fsdp
    return Hardware(
        device="cuda" if cuda else "cpu",
        dtype=dtype,
        compute_dtype=settle(config.quantization.bnb_4bit_compute_dtype, best),
        precision=settle(config.trainer.precision, best),
        optim=settle(config.trainer.optim, "paged_adamw_32bit" if paged else "adamw_torch"),
        attn_implementation=settle(config.model.attn_implementation, "sdpa"),
        world_size=world_size(),
    )
