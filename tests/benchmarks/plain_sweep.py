"""A plain Hydra application that trains with trl, nothing of hydratune: what Hydra's basic launcher runs in one process."""

from dataclasses import dataclass

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig


@dataclass
class Config:
    """What the sweep sets."""

    model: str = ""
    data: str = ""
    steps: int = 10
    batch: int = 8
    learning_rate: float = 2e-4


ConfigStore.instance().store(name="config", node=Config)


@hydra.main(config_path=None, config_name="config", version_base="1.3")
def main(config: Config) -> float:
    """The last loss."""
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(config.model, dtype=torch.float32),
        args=SFTConfig(
            output_dir=HydraConfig.get().runtime.output_dir, seed=42, max_length=512, max_steps=config.steps,
            per_device_train_batch_size=config.batch, learning_rate=config.learning_rate, lr_scheduler_type="cosine",
            use_cpu=True, bf16=False, gradient_checkpointing=False, logging_steps=1, report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=load_dataset(config.data, split="train"),
        processing_class=AutoTokenizer.from_pretrained(config.model),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )  # fmt: skip
    return float(trainer.train().training_loss)


if __name__ == "__main__":
    main()
