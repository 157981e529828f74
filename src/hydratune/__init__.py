"""hydratune: declarative fine-tuning of language models on Hydra."""

__version__ = "0.1.0"
