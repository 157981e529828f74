"""A plain trl script, nothing of hydratune: with the best settings that are exact, or with its defaults."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, set_seed
from trl import SFTConfig, SFTTrainer

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("data", type=Path)
parser.add_argument("out", type=Path)
parser.add_argument("--loss", choices=["all", "completion"], required=True)
parser.add_argument("--steps", type=int, required=True)
parser.add_argument("--batch", type=int, required=True)
parser.add_argument("--accumulate", type=int, required=True)
parser.add_argument("--nf4", action="store_true")
parser.add_argument("--packing", action="store_true")
parser.add_argument("--defaults", action="store_true")
args = parser.parse_args()

rows = [json.loads(line) for line in args.data.read_text().splitlines()]
if args.loss == "completion":
    rows = [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in rows]
set_seed(42)
nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
model = AutoModelForCausalLM.from_pretrained(
    args.model, dtype=torch.float32, attn_implementation="sdpa", quantization_config=nf4 if args.nf4 else None
)
best: dict[str, Any] = {} if args.defaults else {"bf16": False, "gradient_checkpointing": False}
if args.nf4:
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
trainer = SFTTrainer(
    model=model,
    args=SFTConfig(
        output_dir=str(args.out / "checkpoints"), seed=42, max_length=512, max_steps=args.steps,
        per_device_train_batch_size=args.batch, gradient_accumulation_steps=args.accumulate, learning_rate=2e-4,
        lr_scheduler_type="cosine", use_cpu=True, logging_steps=1, save_strategy="no", report_to="none",
        completion_only_loss=args.loss == "completion", packing=args.packing, disable_tqdm=True, **best,
    ),
    train_dataset=Dataset.from_list(rows),
    processing_class=AutoTokenizer.from_pretrained(args.model),
    peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
)  # fmt: skip
if not args.defaults:
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)  # trl makes it bfloat16 on a quantized base
trainer.train()
log = [{name: entry[name] for name in ("loss", "num_tokens")} for entry in trainer.state.log_history if "loss" in entry]
args.out.mkdir(parents=True, exist_ok=True)
(args.out / "log.json").write_text(json.dumps(log))
