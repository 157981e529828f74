"""The training of test_parity.py and of the benchmarks by hand: transformers, peft and trl, nothing of hydratune."""

import argparse
import json
from pathlib import Path

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
parser.add_argument("--steps", type=int, default=4)
parser.add_argument("--batch", type=int, default=2)
parser.add_argument("--accumulate", type=int, default=1)
parser.add_argument("--warmup", type=int, default=0)
parser.add_argument("--nf4", action="store_true")
args = parser.parse_args()

rows = [json.loads(line) for line in args.data.read_text().splitlines()]
if args.loss == "completion":
    rows = [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in rows]
set_seed(42)
nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
model = AutoModelForCausalLM.from_pretrained(
    args.model, dtype=torch.float32, attn_implementation="sdpa", quantization_config=nf4 if args.nf4 else None
)
if args.nf4:
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
trainer = SFTTrainer(
    model=model,
    args=SFTConfig(
        output_dir=str(args.out / "checkpoints"), seed=42, max_length=512, max_steps=args.steps,
        per_device_train_batch_size=args.batch, gradient_accumulation_steps=args.accumulate, learning_rate=2e-4,
        lr_scheduler_type="cosine", warmup_steps=args.warmup, weight_decay=0.0, max_grad_norm=1.0, optim="adamw_torch",
        bf16=False, fp16=False, use_cpu=True, gradient_checkpointing=False, logging_steps=1, save_steps=100,
        report_to="none", completion_only_loss=args.loss == "completion",
    ),
    train_dataset=Dataset.from_list(rows),
    processing_class=AutoTokenizer.from_pretrained(args.model),
    peft_config=LoraConfig(
        r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", bias="none", task_type="CAUSAL_LM"
    ),
)  # fmt: skip
for parameter in trainer.model.parameters():
    if parameter.requires_grad:
        parameter.data = parameter.data.to(torch.float32)  # trl makes it bfloat16 on a quantized base
trainer.train()
trainer.save_model(str(args.out / "adapter"))
losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
(args.out / "losses.json").write_text(json.dumps(losses))
