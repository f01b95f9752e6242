"""Speculative verification's kernels against their twin, the twin against the distribution that it promises."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from kernels import reference
from kernels.gpu import sampling
from kernels.gpu import verification as module
from tests.kernels.gpu.defects import Defect, assert_caught
from tests.kernels.gpu.device import DEVICE, Guarded
from tests.kernels.gpu.frequencies import g_test
from tests.kernels.gpu.test_gpu_sampling import HIGH, SMALL, Row, make_logits, parameters, places, tables
from tests.kernels.gpu.test_gpu_sampling import V as VOCABULARY

K = 2


class Case:
    """Sequences of K guesses: logits that leave a chance to guesses and to what comes instead of them."""

    def __init__(self, sequences: int, rows: list[Row], with_probabilities: bool, chunk: int = 128) -> None:
        self.tables = tables(chunk, 64)
        count = sequences * (K + 1)
        self.logits = make_logits(count + 2)
        self.logits.tensor[:, 7::9] = 4 + torch.randn(count + 2, len(range(7, self.logits.tensor.shape[1], 9)))
        self.logits.tensor[:, VOCABULARY:] = HIGH
        self.first_rows = 2 + torch.arange(sequences, dtype=torch.int32, device=DEVICE) * (K + 1)
        spread = [rows[s % len(rows)] for s in range(sequences) for _ in range(K + 1)]
        self.known = parameters([rows[0], rows[0], *spread]) | places(count + 2)
        own = self.logits.tensor[2:, :VOCABULARY].view(sequences, K + 1, VOCABULARY)[:, :K]
        shares = (own + 0.6 * torch.randn(sequences, K, VOCABULARY, device=DEVICE)).softmax(-1)
        drawn = torch.multinomial(shares.flatten(0, 1).cpu(), 1).view(sequences, K).int()
        self.drafts = Guarded(drawn, [K + 3, 1])
        wide = torch.full((sequences, K, VOCABULARY + 4), float("nan"))
        wide[..., :VOCABULARY] = shares
        self.guesses = Guarded(wide, [K * 120, 120, 1]).tensor if with_probabilities else None

    def check(self, module: ModuleType) -> Tensor:
        """The tokens, as the twin has them."""
        sequences = len(self.first_rows)
        tokens = Guarded.empty(sequences, K + 1, dtype=torch.int32, strides=[K + 2, 1])
        counts = Guarded.empty(sequences, dtype=torch.int32)
        module.verify(
            self.logits.tensor, self.first_rows, self.drafts.tensor, self.guesses, **self.known,
            vocab_size=VOCABULARY, out=(tokens.tensor, counts.tensor), tables=self.tables,
        )  # fmt: skip
        expected = reference.verify(
            self.logits.tensor[:, :VOCABULARY], self.first_rows, self.drafts.tensor,
            None if self.guesses is None else self.guesses[..., :VOCABULARY], **self.known,
        )  # fmt: skip
        assert tokens.tensor.tolist() == expected[0].tolist()
        assert counts.tensor.tolist() == expected[1].tolist()
        tokens.assert_intact()
        counts.assert_intact()
        return expected[0]


def check_drawn_guesses(module: ModuleType) -> None:
    """One, two and three tokens; and sequences without guesses, which are sampled."""
    case = Case(11, [(1.0, 0, 1.0, 0.0)], True)
    rows = case.logits.tensor[case.first_rows[:3].long(), :VOCABULARY]
    unlikely = case.guesses[:3, 0, :VOCABULARY].log() - rows.log_softmax(-1)
    case.drafts.tensor[:3, 0] = unlikely.argmax(-1)  # most will be rejected
    case.drafts.tensor[8:] = -1
    tokens = case.check(module)
    assert {int(count) for count in (tokens[:8] >= 0).sum(-1)} == {1, 2, 3}


def check_filtered(module: ModuleType) -> None:
    """What min-p leaves is what guesses are accepted from, and drawn from after a rejection."""
    case = Case(6, [(2.0, 0, 1.0, 0.3)], True)
    case.drafts.tensor[0, 0] = 3  # of no weight at all
    case.check(module)


def check_certain_guesses(module: ModuleType) -> None:
    """The likeliest by far, as copied from the text. Where u is large it is rejected, and not drawn again."""
    case = Case(6, [(1.0, 0, 1.0, 0.0)], False)
    for sequence, row in enumerate(case.first_rows.tolist()):
        logits, guess = case.logits.tensor[row, :VOCABULARY], 11 + 13 * sequence
        case.drafts.tensor[sequence, 0] = guess
        logits[guess] = -HIGH
        logits[guess] = logits.logsumexp(0) + 1  # p is 0.73
        keys, nothing = torch.arange(100, device=DEVICE), torch.tensor(-1, device=DEVICE)
        u = reference.noise_bits(keys ^ reference.SPECULATION, case.known["positions"][row], nothing) * 2.0**-52
        case.known["keys"][row] = int(keys[u > (0.8 if sequence < 4 else 0.0)][0])
    tokens = case.check(module)
    assert not bool((tokens[:4, 0] == case.drafts.tensor[:4, 0]).any())


def check_mixture(module: ModuleType) -> None:
    """Greedy sequences beside drawn ones, fewer guesses, ids of no token, rows that are not finite or not there."""
    case = Case(8, [(0.0, 0, 1.0, 0.0), (1.0, 0, 1.0, 0.0)], True, 64)
    rows = case.first_rows.long()
    best = case.logits.tensor[:, :VOCABULARY].argmax(-1).int()
    case.drafts.tensor[0] = best[rows[0] : rows[0] + K]  # greedy, all right
    case.drafts.tensor[2, 0], case.drafts.tensor[2, 1] = best[rows[2]], best[rows[2] + 1] ^ 1
    case.drafts.tensor[3] = -1
    case.drafts.tensor[1, 1] = -1
    case.drafts.tensor[4, 0], case.drafts.tensor[4, 1] = best[rows[4]], -1
    case.drafts.tensor[6, 0] = best[rows[6]]
    case.logits.tensor[rows[6] + 1, 5] = float("nan")
    case.logits.tensor[rows[7], 99] = float("inf")
    tokens = case.check(module)
    assert tokens[0].tolist() == best[rows[0] : rows[0] + K + 1].tolist()
    assert tokens[2].tolist() == [*best[rows[2] : rows[2] + 2].tolist(), -1]
    assert tokens[6].tolist() == [int(best[rows[6]]), -1, -1] and tokens[7].tolist() == [-1, -1, -1]


CHECKS = [check_drawn_guesses, check_certain_guesses, check_mixture, check_filtered]
DRAWN_DEFECTS = [
    Defect("all guesses taken", "takes = u * q < p", "takes = u * q < p + 1.0"),
    Defect("likeliest guesses only", "takes = u * q < p", "takes = q < p"),
    Defect("q left out", "takes = u * q < p", "takes = u < p"),
    Defect(
        "p not normalised", "temperature) / tl.load(totals + row)\n                p", "temperature)\n                p"
    ),
    Defect("the q of another guess", "count.to(tl.int64) * guesses_row + draft", "draft"),
    Defect("the q of another sequence", "place = guesses + sequence * guesses_stride", "place = guesses"),
    Defect("the rows of the first sequence", "first = tl.load(first_rows + sequence)", "first = tl.load(first_rows)"),
    Defect(
        "drafts without their stride", "sequence * drafts_stride + count)\n        goes_on", "count)\n        goes_on"
    ),
    Defect("the ordinary noise decides", "tl.load(keys + row + first) ^ salt", "tl.load(keys + row + first)"),
    Defect("one u for all positions", "tl.load(positions + row + first).to(tl.int64)", "first.to(tl.int64)"),
    Defect("token 0's noise as u", "tl.zeros([1], tl.int32) - 1", "tl.zeros([1], tl.int32)"),
    Defect("on after a rejection", "goes_on = takes.to(tl.int32)\n", "count += 1 - takes.to(tl.int32)\n"),
    Defect("drawn from p after a rejection", "tl.load(totals + row) - q", "tl.load(totals + row)"),
    Defect("drawn from a p not normalised", "temperature) / tl.load(totals + row) - q", "temperature) - q"),
    Defect("drawn from q - p too", "kept = kept & (left > 0)", "left = tl.abs(left)"),
    Defect("the residual of the first guess", "count.to(tl.int64) * guesses_row + place", "place"),
    Defect("bonus by the other noise", "_start(keys, positions, row, 0)", "_start(keys, positions, row, SPECULATION)"),
    Defect(
        "redrawn by the ordinary noise",
        "start = _start(keys, positions, row, SPECULATION)",
        "start = _start(keys, positions, row, 0)",
    ),
    Defect("drawn from the first row", "+ count).to(tl.int64)\n    is_row", ").to(tl.int64)\n    is_row"),
    Defect("guesses kept that do not count", "mask=column < count, other=-1", "mask=column < most, other=-1"),
    Defect("the token in the next place", "tl.where(column == count, token", "tl.where(column == count + 1, token"),
]
CERTAIN_DEFECTS = [
    Defect("the rejected one again", "kept = kept & (place != ", "kept = kept & (place >= 0 * "),
    Defect(
        "the first guess not again", "tl.load(drafts + sequence * drafts_stride + count))", "tl.load(drafts + count))"
    ),
]
MIXTURE_DEFECTS = [
    Defect("winners within the chunk", "winner = tl.program_id(0) % chunks * CHUNK + index", "winner = index"),
    Defect("rows that are not finite counted", "count + (token >= 0).to(tl.int32)", "count + 1"),
    Defect("greedy rows take any guess", "takes = draft == best", "takes = draft >= 0"),
    Defect("guesses where there are none", "((draft >= 0) & (row >= 0)", "((draft >= -1) & (row >= 0)"),
]
FILTERED_DEFECTS = [
    Defect("a guess that may not be drawn", "tl.load(lasts + row)), p, 0.0)", "tl.load(lasts + row)), p, p)"),
    Defect(
        "what is not kept drawn",
        "kept = is_kept(x, place, tl.load(bars + row), tl.load(lasts + row))",
        "kept = place < columns",
    ),
]
BY_CHECK = zip(CHECKS, [DRAWN_DEFECTS, CERTAIN_DEFECTS, MIXTURE_DEFECTS, FILTERED_DEFECTS], strict=True)
DEFECTS = [pytest.param(defect, [check], id=str(defect)) for check, defects in BY_CHECK for defect in defects]


@pytest.mark.parametrize("check", CHECKS)
def test_verification(check) -> None:
    check(module)


@pytest.mark.parametrize(("defect", "checks"), DEFECTS)
def test_defects_are_caught(defect: Defect, checks: list, tmp_path: Path) -> None:
    assert_caught(defect, module, checks, tmp_path)


def test_without_guesses_it_is_sampling() -> None:
    logits, known = make_logits(4).tensor, parameters([(1.0, 0, 1.0, 0.0), (0.0, 0, 1.0, 0.0)] * 2) | places(4)
    first_rows = torch.tensor([3, 0, 1], dtype=torch.int32, device=DEVICE)
    none = torch.full((3, 2), -1, dtype=torch.int32, device=DEVICE)
    expected = sampling.sample(logits, **known, vocab_size=VOCABULARY, tables=SMALL)[first_rows.long()]
    for drafts in (none, none[:, :0]):
        tokens, counts = module.verify(logits, first_rows, drafts, None, **known, vocab_size=VOCABULARY, tables=SMALL)
        assert torch.equal(tokens[:, 0], expected) and bool((tokens[:, 1:] == -1).all())
        assert counts.tolist() == [1, 1, 1]


def test_a_sequence_does_not_depend_on_the_others() -> None:
    case = Case(4, [(1.0, 0, 1.0, 0.0), (1.3, 0, 1.0, 0.1)], True)

    def run(first: int, last: int) -> Tensor:
        parts = case.first_rows[first:last], case.drafts.tensor[first:last], case.guesses[first:last]
        return module.verify(case.logits.tensor, *parts, **case.known, vocab_size=VOCABULARY, tables=case.tables)[0]

    together = run(0, 4)
    assert torch.equal(run(1, 2)[0], together[1]) and torch.equal(run(2, 4), together[2:])


def test_rows_that_are_not_there_end_a_sequence() -> None:
    """What a padded step may hold."""
    logits, known = make_logits(2).tensor, parameters([(1.0, 0, 1.0, 0.0)] * 2) | places(2)
    first_rows = torch.tensor([1, 2, -1], dtype=torch.int32, device=DEVICE)
    logits[1, :VOCABULARY] = -30.0
    logits[1, 4] = 30.0  # the guess, for certain
    drafts = torch.tensor([[4, 4]] * 3, dtype=torch.int32, device=DEVICE)
    tokens, counts = module.verify(logits, first_rows, drafts, None, **known, vocab_size=VOCABULARY, tables=SMALL)
    assert tokens.tolist() == [[4, -1, -1], [-1, -1, -1], [-1, -1, -1]]
    assert counts.tolist() == [1, 0, 0]


def pairs(row: Row, guesser: str, draft_row: Row | None = None) -> tuple[Tensor, Tensor]:
    """How often each pair of tokens was the first two of an answer, and with what probability it should be.

    The second token depends on the first. Guesses come from another such model, by the ordinary noise of the same keys.
    """
    sequences, tokens = 20_000, 6
    first, second = 1.5 * torch.randn(tokens), 1.5 * torch.randn(tokens, tokens)
    draft_first, draft_second = torch.randn(tokens), torch.randn(tokens, tokens)
    if guesser == "good":
        draft_first, draft_second = first + 0.5 * draft_first, second + 0.5 * draft_second
    keys, positions = torch.arange(sequences), torch.zeros(sequences, dtype=torch.int32)
    known = parameters([row])
    own = {name: of.cpu().expand(sequences) for name, of in known.items()}
    draft = {name: of.cpu().expand(sequences) for name, of in parameters([draft_row or (1.0, 0, 1.0, 0.0)]).items()}
    x1 = reference.sample(draft_first.expand(sequences, tokens), **draft, keys=keys, positions=positions)
    if guesser == "certain":
        x1 = torch.full_like(x1, 1)
    x2 = reference.sample(draft_second[x1.long()], **draft, keys=keys, positions=positions + 1)
    q = torch.stack((draft_first.expand(sequences, tokens), draft_second[x1.long()]), 1)  # [S, 2, V]
    q = reference.probabilities(q.flatten(0, 1), **{n: of.repeat_interleave(2) for n, of in draft.items()}).view_as(q)
    logits = torch.stack((first.expand(sequences, tokens), second[x1.long()], torch.zeros(sequences, tokens)), 1)
    answer, counts = reference.verify(
        logits.flatten(0, 1), torch.arange(sequences) * 3, torch.stack((x1, x2 if guesser != "certain" else x1), 1),
        None if guesser == "certain" else q, **{name: of.repeat_interleave(3) for name, of in own.items()},
        keys=keys.repeat_interleave(3), positions=torch.arange(3).repeat(sequences),
    )  # fmt: skip
    start = answer[:, 0].long()
    later = reference.sample(second[start], **own, keys=keys, positions=positions + 1)
    end = torch.where(counts > 1, answer[:, 1], later).long()  # where a step ends, the next one goes on
    p1 = reference.probabilities(first[None], **{name: of[:1] for name, of in own.items()})[0]
    p2 = reference.probabilities(second, **{name: of[:tokens] for name, of in own.items()})
    return torch.bincount(start * tokens + end, minlength=tokens * tokens), (p1[:, None] * p2).flatten()


TARGETS: list[Row] = [(1.0, 0, 1.0, 0.0), (0.7, 3, 1.0, 0.0), (1.3, 0, 0.8, 0.0)]


@pytest.mark.parametrize("guesser", ["good", "bad", "certain"])
@pytest.mark.parametrize("row", TARGETS)
def test_answers_are_distributed_as_the_model_says(row: Row, guesser: str) -> None:
    counts, shares = pairs(row, guesser)
    assert g_test(counts, shares) > 1e-4


def test_wrong_rules_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The power of the test above: probabilities that guesses were not drawn from, noise that they were drawn by."""
    genuine = reference.verify
    with monkeypatch.context() as patch:
        patch.setattr(
            reference, "verify", lambda a, b, c, q, **known: genuine(a, b, c, torch.full_like(q, 1 / 6), **known)
        )
        assert g_test(*pairs(TARGETS[0], "bad")) < 1e-4
    with monkeypatch.context() as patch:
        patch.setattr(reference, "SPECULATION", 0)
        assert g_test(*pairs(TARGETS[0], "bad")) < 1e-4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first_rows": torch.zeros(2)}, "`first_rows`: the type must be int32, not float32"),
        ({"drafts": torch.zeros(3, 2).int()}, "`drafts`: the shape must be [2, any], not [3, 2]"),
        ({"drafts": torch.zeros(2, 129).int()}, "`drafts`: at most 128 guesses, not 129"),
        ({"draft_probabilities": torch.ones(2, 1, 8)}, "`draft_probabilities`: the shape must be [2, 2, any]"),
        (
            {"draft_probabilities": torch.ones(2, 2, 7)},
            "`draft_probabilities`: it must have a column for each of 8 tokens, not 7",
        ),
        ({"min_p": torch.ones(5)}, "`min_p`: the shape must be [6], not [5]"),
        ({"out": (torch.zeros(2, 2).int(), torch.zeros(2).int())}, "`out[0]`: the shape must be [2, 3], not [2, 2]"),
        ({"out": (torch.zeros(2, 3).int(), torch.zeros(2).long())}, "`out[1]`: the type must be int32, not int64"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    arguments = {
        "logits": torch.ones(6, 8),
        "first_rows": torch.tensor([0, 3]).int(),
        "drafts": torch.zeros(2, 2).int(),
        "draft_probabilities": None,
        **parameters([(1.0, 0, 1.0, 0.0)] * 6),
        **places(6),
    } | changes
    moved = {
        name: tuple(part.to(DEVICE) for part in of)
        if isinstance(of, tuple)
        else of.to(DEVICE)
        if isinstance(of, Tensor)
        else of
        for name, of in arguments.items()
    }
    with pytest.raises(ValueError) as caught:
        module.verify(**moved)
    assert str(caught.value).startswith(message)
