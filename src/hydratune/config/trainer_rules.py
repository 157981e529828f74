"""Rules within the trainer group, and between it and the others, each a sentence that ends with what to type."""

from collections.abc import Iterator

from hydratune.config.schema import Broken, Config


def broken_trainer_rules(config: Config) -> Iterator[Broken]:
    """Every rule about training that is broken."""
    t = config.trainer
    if t.max_steps == 0:
        yield Broken(("trainer.max_steps",), "trainer.max_steps is above 0, or -1 for whole epochs, found 0")
    if 0 < t.max_steps <= t.warmup_steps:
        yield Broken(
            ("trainer.max_steps", "trainer.warmup_steps"),
            f"trainer.warmup_steps={t.warmup_steps:g} takes all of trainer.max_steps={t.max_steps}, so the learning rate "
            "never gets where it should: set a smaller trainer.warmup_steps",
        )
    if config.lora.kind == "none" and t.precision == "float16" and config.model.dtype == "float16":
        yield Broken(
            ("trainer.precision", "model.dtype", "lora"),
            "trainer.precision=float16 scales gradients of float32 weights, found model.dtype=float16: "
            "set model.dtype=float32",
        )
    yield from _validation(config)


def _validation(config: Config) -> Iterator[Broken]:
    """What follows the validation loss along the way needs one."""
    t = config.trainer
    for key, asked in (
        ("trainer.load_best_model_at_end", t.load_best_model_at_end),
        ("trainer.early_stopping_patience", t.early_stopping_patience is not None),
    ):
        if asked and t.eval_steps is None:
            yield Broken((key,), f"{key} goes by the validation losses along the way: set trainer.eval_steps=N")
    if t.eval_steps and t.load_best_model_at_end and t.save_steps != t.eval_steps:
        yield Broken(
            ("trainer.load_best_model_at_end", "trainer.save_steps", "trainer.eval_steps"),
            f"trainer.load_best_model_at_end=true needs a checkpoint at each validation loss, found trainer.save_steps="
            f"{t.save_steps} and trainer.eval_steps={t.eval_steps}: set trainer.save_steps={t.eval_steps}",
        )
