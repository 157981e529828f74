"""`auto` settled on the machine where the job runs; what the machine can't do, refused."""

import importlib.util
import os
from dataclasses import dataclass

import torch

from hydratune.config.schema import Config, ConfigError


@dataclass(frozen=True)
class Hardware:
    """What `auto` became here. Names are those of the libraries."""

    device: str
    dtype: str
    compute_dtype: str  # of bitsandbytes' 4-bit layers
    precision: str  # autocast
    optim: str
    attn_implementation: str


def _processes() -> list[str]:
    """What is wrong with how many processes were started: each would take itself for the only one."""
    environment = os.environ
    if int(environment.get("WORLD_SIZE", "1")) > 1:
        return [f"WORLD_SIZE={environment['WORLD_SIZE']}: a run is one process; start it without torchrun."]
    if "SLURM_PROCID" in environment and int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return [f"This Slurm step has {environment['SLURM_STEP_NUM_TASKS']} tasks: a run is one; set --ntasks=1."]
    return []


def resolve(config: Config) -> Hardware:
    """Settle dtype, optimizer and attention. Raises ConfigError, one sentence for each value refused."""
    cuda = torch.cuda.is_available()
    # bf16 products are slower than float32 ones on CPUs without AMX, so a CPU's auto is float32
    best = ("bfloat16" if torch.cuda.is_bf16_supported() else "float16") if cuda else "float32"
    wrong = _processes()
    if not cuda:
        if config.model.device_map and "cuda" in config.model.device_map:
            wrong.append(
                f"model.device_map={config.model.device_map} needs CUDA, and this machine has none: "
                "set model.device_map=null."
            )
        if config.trainer.optim.startswith("paged"):
            wrong.append(
                f"trainer.optim={config.trainer.optim} needs CUDA, and this machine has none: set trainer.optim=adamw_torch."
            )
        if config.trainer.precision == "float16":
            wrong.append(
                "trainer.precision=float16 needs CUDA, and this machine has none: set trainer.precision=float32."
            )
        if config.model.attn_implementation == "flash_attention_2":
            wrong.append(
                "model.attn_implementation=flash_attention_2 needs CUDA, and this machine has none: "
                "set model.attn_implementation=sdpa."
            )
    elif config.model.attn_implementation == "flash_attention_2" and not importlib.util.find_spec("flash_attn"):
        wrong.append(
            "model.attn_implementation=flash_attention_2 needs the package flash-attn: "
            "pip install flash-attn, or set model.attn_implementation=sdpa."
        )
    if wrong:
        raise ConfigError(wrong)

    def settle(value: str, default: str) -> str:
        return default if value == "auto" else value

    paged = cuda and config.quantization.kind != "none"
    return Hardware(
        device="cuda" if cuda else "cpu",
        # what trains needs float32's digits: 16 bits would round most of an optimizer's steps away
        dtype=settle(config.model.dtype, "float32" if config.lora.kind == "none" else best),
        compute_dtype=settle(config.quantization.bnb_4bit_compute_dtype, best),
        precision=settle(config.trainer.precision, best),
        optim=settle(config.trainer.optim, "paged_adamw_32bit" if paged else "adamw_torch"),
        attn_implementation=settle(config.model.attn_implementation, "sdpa"),
    )
