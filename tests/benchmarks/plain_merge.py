"""The stage merge by hand: transformers and peft, nothing of hydratune."""

import argparse

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("adapter")
parser.add_argument("out")
parser.add_argument("--nf4", action="store_true", help="onto the values that the model has in NF4")
args = parser.parse_args()

nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
model = AutoModelForCausalLM.from_pretrained(
    args.model, dtype=torch.float32, quantization_config=nf4 if args.nf4 else None
)
if args.nf4:
    model = model.dequantize()
merged = PeftModel.from_pretrained(model, args.adapter).merge_and_unload()
merged.to(AutoConfig.from_pretrained(args.model).dtype).save_pretrained(args.out)
