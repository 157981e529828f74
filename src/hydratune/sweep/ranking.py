"""Which way a metric is better."""

LOWER: tuple[str, ...] = ("loss", "perplexity", "ppl", "bits_per_byte", "seconds", "ter", "brier_score", "mse", "mae")
HIGHER = {
    "acc", "acc_norm", "acc_mutual_info", "exact_match", "f1", "bleu", "chrf", "mcc", "mc1", "mc2", "em",
    "likelihood", "pass@1", "prompt_level_strict_acc", "inst_level_strict_acc", "prompt_level_loose_acc",
}  # fmt: skip


def least_is_best(metric: str, direction: str) -> bool | None:
    """Whether the least value of `metric` (`<model>/<task>/<metric>[,filter]`) is the best; None where nothing tells."""
    if direction != "auto":
        return direction == "minimize"
    name = metric.rpartition("/")[2].partition(",")[0]
    if name.endswith(LOWER):
        return True
    return False if name in HIGHER else None
