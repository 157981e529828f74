"""Log-likelihoods of continuations: a context that several of them share is computed once, the head where it is read."""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from hydratune.build.attention import each_row_alone, fit_in_line, steady_length
from hydratune.build.failures import out_of_memory
from hydratune.build.halving import in_batches
from hydratune.config.schema import RunError

LINE = 1024  # tokens that go through a CPU at once, in one line; more would only leave its caches
LOGITS = 2**25  # of a line
CELLS = 16_384  # tokens of a padded batch, where its size is not given
ROWS = 64  # at most, where the size is not given
PROOF = 2  # trees that a proof looks at, and continuations of each

T = TypeVar("T")
Pair = tuple[list[int], list[int]]  # tokens of a context and of its continuation
Score = tuple[float, bool]  # log-likelihood in nats, and whether greedy decoding gives the continuation


@dataclass
class Tree:
    """A context, and the continuations that are asked for after it."""

    context: list[int]
    asked: list[tuple[int, list[int]]] = field(default_factory=list)  # number of the request, its continuation
    starts: dict[tuple[int, ...], int] = field(default_factory=dict)  # branch -> its place in the tree

    @property
    def tokens(self) -> int:
        return len(self.context) + sum(map(len, self.starts))

    @property
    def places(self) -> range:
        """Where something that is asked for is predicted."""
        return range(len(self.context) - 1, self.tokens)

    def ask(self, number: int, continuation: list[int]) -> None:
        # the last token is predicted, and predicts nothing
        branch = tuple(continuation[:-1])
        if branch and branch not in self.starts:
            self.starts[branch] = self.tokens
        self.asked.append((number, continuation))

    def ids(self) -> list[int]:
        return [*self.context, *(token for branch in self.starts for token in branch)]

    def positions(self) -> list[int]:
        return [*range(len(self.context)), *(len(self.context) + n for one in self.starts for n in range(len(one)))]

    def mask(self, shared: int) -> Tensor | None:
        """(tokens - shared, tokens), true where a token sees another; None where plain causal attention is meant."""
        if len(self.starts) < 2 and not shared:
            return None
        mask = torch.ones(self.tokens, self.tokens, dtype=torch.bool).tril()
        for branch, start in self.starts.items():
            mask[start : start + len(branch), len(self.context) : start] = False
        return mask[shared:]

    def predicted_at(self, continuation: list[int]) -> list[int]:
        """The place of each token of `continuation`, counted from the first of `places`."""
        start = self.starts.get(tuple(continuation[:-1]), 0) - len(self.context) + 1
        return [0, *range(start, start + len(continuation) - 1)]


def build_trees(pairs: Sequence[Pair], max_length: int, shared: bool) -> list[Tree]:
    """The trees of all requests; contexts that are too long lose their beginnings.

    `shared`: a tree for each context that is worth it, in the order of their tokens, so that neighbours begin alike. Otherwise one for
    each sequence of tokens that the model gets, longest first. Raises RunError for what is longer than `max_length`.
    """
    found: dict[tuple[int, ...], Tree] = {}
    whole: list[Tree] = []
    for number, (context, continuation) in enumerate(pairs):
        if not 0 < len(continuation) <= max_length:
            raise RunError(
                f"A task asks for the likelihood of {len(continuation):,} tokens at once, and the model takes 1 to "
                f"{max_length:,}: leave the task out, or ask for shorter answers."
            )
        room = max_length + 1 - len(continuation)
        if len(context) > room:
            context = context[-max(room, 1) :]
        # a mask over long continuations costs more than a short context
        worth = shared and len(context) > len(continuation)
        key = tuple(context) if worth else (len(context), *context, *continuation[:-1])
        tree = found.setdefault(key, Tree(context))
        if tree.starts and tree.tokens + len(continuation) > LINE:
            whole.append(tree)
            tree = found[key] = Tree(context)
        tree.ask(number, continuation)
    whole += found.values()
    return sorted(whole, key=lambda tree: tree.ids() if shared else (-tree.tokens, tree.ids()))


class Scorer:
    """Answers requests in batches.

    On a CPU the trees of a batch stand in one line behind the tokens that all of them begin with, each with an
    attention of its own, once that is proven to give the logits that each sequence gives alone. Elsewhere, and where
    the proof fails, sequences are padded, as lm-eval does.
    """

    def __init__(self, model: Any, batch_size: int | None, max_length: int) -> None:
        """`batch_size`: trees at once; None: as many as the memory holds."""
        self.model, self.size, self.max_length = model, batch_size, max_length
        self.selects = selects_logits(model)
        self.in_line = takes_lines(model)
        self.proven = False

    @torch.no_grad()
    def score(self, pairs: Sequence[Pair], done: Callable[[dict[int, Score]], None]) -> None:
        """`done` is told the answers of each batch by the requests' numbers, as soon as they are there."""
        longest = max((min(len(c) + len(t), self.max_length + 1) for c, t in pairs), default=0)
        in_line = self.in_line and fit_in_line(self.model.config, longest)
        trees = build_trees(pairs, self.max_length, in_line)
        if in_line and not self.proven:
            in_line = self.in_line = self.proven = self._line_is_right(trees[:PROOF])
            trees = trees if in_line else build_trees(pairs, self.max_length, False)
        compute = self._line if in_line else self._padded
        vocabulary = self.model.config.get_text_config().vocab_size

        def fits(some: Sequence[Tree]) -> bool:
            if not in_line and some[0].tokens > steady_length(self.model.config):  # the longest
                return False
            if self.size is not None:
                return len(some) <= self.size
            if in_line:
                shared, predictions = _shared(some), sum(len(tree.places) for tree in some)
                return sum(tree.tokens - shared for tree in some) <= LINE and predictions * vocabulary <= LOGITS
            return len(some) <= ROWS and len(some) * max(tree.tokens for tree in some) <= CELLS

        in_batches(trees, fits, lambda some: done(self._scores(some, compute(some))))

    def _scores(self, trees: Sequence[Tree], logits: Iterable[Tensor]) -> dict[int, Score]:
        """`logits` of each tree, (places, vocabulary)."""
        found: dict[int, Score] = {}
        for tree, rows in zip(trees, logits, strict=True):
            rows = rows.float()
            norms, likeliest = rows.logsumexp(-1), rows.argmax(-1)
            for number, continuation in tree.asked:
                at = torch.tensor(tree.predicted_at(continuation), device=rows.device)
                tokens = torch.tensor(continuation, device=rows.device)
                likelihood = float((rows[at, tokens] - norms[at]).sum())
                if math.isnan(likelihood):
                    raise RunError(
                        f"The model's logits are no numbers in {self.model.dtype}: its weights are damaged, or too large for "
                        "that type; in the latter case set model.dtype=float32."
                    )
                found[number] = (likelihood, bool((likeliest[at] == tokens).all()))
        return found

    def _line(self, trees: Sequence[Tree]) -> Sequence[Tensor]:
        shared = _shared(trees)
        lengths = [shared] * bool(shared) + [tree.tokens - shared for tree in trees]
        firsts = [shared + sum(lengths[bool(shared) : bool(shared) + number]) for number in range(len(trees))]
        ids, positions = trees[0].ids()[:shared], trees[0].positions()[:shared]
        keep: list[int] = []
        for tree, first in zip(trees, firsts, strict=True):
            ids += tree.ids()[shared:]
            positions += tree.positions()[shared:]
            keep += [first + place - shared for place in tree.places]
        masks = [tree.mask(shared) for tree in trees]
        with each_row_alone(self.model.config):
            logits = self.model(
                input_ids=torch.tensor([ids]),
                position_ids=torch.tensor([positions]),
                seq_lengths=lengths,
                seq_masks=[None, *masks] if shared else masks,
                seq_shared=bool(shared),
                logits_to_keep=torch.tensor(keep),
                use_cache=False,
            ).logits[0]
        return tuple(logits.split([len(tree.places) for tree in trees]))

    def _padded(self, trees: Sequence[Tree]) -> Iterator[Tensor]:
        """On the right, where causal attention needs no mask."""
        rows = [torch.tensor(tree.ids()) for tree in trees]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.model.device)
        first = min(tree.places.start for tree in trees) if self.selects else 0
        only = {"logits_to_keep": ids.shape[1] - first} if self.selects else {}
        logits = self.model(input_ids=ids, use_cache=False, **only).logits
        for row, tree in zip(logits, trees, strict=True):
            yield row[tree.places.start - first : tree.places.stop - first]

    def _line_is_right(self, trees: Sequence[Tree]) -> bool:
        """Whether branches in the line have the logits that their sequences have alone, up to rounding."""
        in_line = attempted(lambda: self._line(trees))
        if in_line is None:
            return False
        for tree, rows in zip(trees, in_line, strict=True):
            different = {tuple(continuation[:-1]): continuation for _, continuation in tree.asked}
            for continuation in list(different.values())[-PROOF:]:
                ids = torch.tensor([[*tree.context, *continuation[:-1]]])
                alone = self.model(input_ids=ids, use_cache=False).logits[0, len(tree.context) - 1 :].float()
                if not same_logits(self.model, rows[tree.predicted_at(continuation)].float(), alone):
                    return False
        return True


def attempted(compute: Callable[[], T]) -> T | None:
    """None where the model doesn't take what it is given, or the memory is too small for it."""
    try:
        return compute()
    except (AttributeError, TypeError, ValueError, NotImplementedError):  # the last of build/attention.py
        return None
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return None


def takes_lines(model: Any) -> bool:
    """Whether rows in one line may go through the model, which then has to be proven; they pay on a CPU."""
    return (
        model.device.type == "cpu"
        and selects_logits(model)
        and "position_ids" in _arguments(model)
        and model.config.get_text_config()._attn_implementation == "sdpa"
    )


def selects_logits(model: Any) -> bool:
    """Whether the model computes its head for chosen tokens alone."""
    return "logits_to_keep" in _arguments(model)


def _arguments(model: Any) -> Any:
    return inspect.signature(getattr(model, "get_base_model", lambda: model)().forward).parameters


def same_logits(model: Any, one: Tensor, alone: Tensor) -> bool:
    """Whether two ways of computing logits differ by no more than the rounding of the model's type."""
    near = 1e-3 if model.dtype == torch.float32 else 0.05
    return bool((one - alone).norm() <= near * alone.norm())


def common(first: Sequence[int], last: Sequence[int], most: int) -> int:
    """How many tokens both begin with, at most `most`."""
    pairs = enumerate(zip(first[:most], last, strict=False))
    return next((number for number, (one, other) in pairs if one != other), most)


def _shared(trees: Sequence[Tree]) -> int:
    """How many tokens all contexts begin with, in an order in which the first and the last differ most; each keeps one."""
    most = min(len(tree.context) for tree in trees) - 1 if len(trees) > 1 else 0
    return common(trees[0].context, trees[-1].context, most)
