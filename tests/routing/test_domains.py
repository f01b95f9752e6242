"""The classifier of domains: keywords, examples, training, what a file of it may hold, and public intents."""

from __future__ import annotations

import hashlib
import json
import math
import random
import struct
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from gateway.config.document import read_document
from gateway.config.model import Domain
from gateway.config.settings import shipped
from gateway.routing.domain_features import MAX_WORDS, Vocabulary, split_words
from gateway.routing.domain_likeness import MAX_LIKENESS, MIN_LIKENESS, Likeness
from gateway.routing.domains import MAX_CHARACTERS, DomainClassifier, Judgement, Sample, build_classifier, train

DATA = Path(__file__).parents[3] / "shared" / "data" / "clinc150"

FINANCE = Domain(id="finance", keywords=("balance sheet", "EBITDA"), examples=("how do I book this invoice",))
LAW = Domain(id="law", keywords=("contract",), examples=("is this clause enforceable in court",))

PLACES = ("Lisbon", "Oslo", "Rome", "Paris", "Vienna", "Porto", "Berlin", "Madrid", "Prague", "Athens")
DAYS = ("on Monday", "on Friday", "tomorrow", "next week", "in May")
DISHES = ("soup", "risotto", "pancakes", "dumplings", "salad", "curry", "bread", "stew", "noodles", "pizza")


def samples(none: bool = True) -> list[Sample]:
    """Of three domains and, with `none`, of none of them."""
    made = []
    for number, (place, dish) in enumerate(zip(PLACES, DISHES, strict=True)):
        for day in DAYS:
            made += [
                Sample(f"book a flight to {place} {day}", "travel", "flight"),
                Sample(f"I need a hotel room in {place} {day}", "travel", "hotel"),
                Sample(f"how long do I cook {dish} for {number + 2} guests {day}", "kitchen"),
                Sample(f"transfer {number + 20} euros to my savings account {day}", "bank"),
            ]
            if none:
                made.append(Sample(f"who won the match against {place} {day}", "oos" if number % 2 else None))
    return made


# Numpy, and what imports it, is imported inside tests: the classifier asks it for one thread before it is loaded.


@cache
def trained(none: bool = True) -> DomainClassifier:
    return train(samples(none))


# Keywords and examples


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("read this balance sheet", "finance"),
        ("Read this BALANCE-SHEET!", "finance"),
        ("the balance of the sheet", None),
        ("contracts", None),
        ("a contract", "law"),
        ("ebitda of the contract's balance sheet", "finance"),  # two keywords against one
        ("contract ebitda", "finance"),  # a tie: the one defined first
        ("how do I book an invoice", "finance"),
        ("booking invoices", "finance"),
        ("is that clause enforceable", "law"),
        ("how do I do this", None),  # words that every question has
        ("is this it", None),
        ("what is the weather", None),
        ("", None),
        ("!?", None),
        ("x " * MAX_CHARACTERS + "contract", None),  # only the start is read
    ],
)
def test_few_examples(text: str, domain: str | None) -> None:
    assert build_classifier((FINANCE, LAW)).classify(text) == domain


def test_confidence_is_of_the_best_domain_also_when_it_is_not_enough() -> None:
    classifier = build_classifier((FINANCE, LAW))
    assert classifier.judge("a contract") == Judgement("law", 1.0)
    sure = classifier.judge("how do I book this invoice")
    assert sure.domain == "finance" and sure.confidence == pytest.approx(1.0)
    unsure = classifier.judge("an invoice for the weather of tomorrow and the day after")
    assert unsure.domain is None and 0.0 < unsure.confidence < MAX_LIKENESS
    assert classifier.judge("weather") == Judgement(None, 0.0)


def test_no_domains_is_no_domain() -> None:
    assert build_classifier(()).classify("contract") is None
    assert build_classifier((Domain(id="d", keywords=("", "!"), examples=("", "?")),)).classify("x !") is None


def test_examples_of_others_say_what_chance_is() -> None:
    """The same words in every domain: likeness to one of them means less."""
    apart = [("a", f"{one} {two}") for one in PLACES for two in ("river", "bridge")]
    apart += [("b", f"{one} {two}") for one in DISHES for two in ("recipe", "oven")]
    mixed = [("a" if number % 2 else "b", text) for number, (_, text) in enumerate(apart)]
    assert Likeness(apart).threshold == MIN_LIKENESS
    assert Likeness(mixed).threshold == MAX_LIKENESS
    assert Likeness(apart[:4]).threshold == MAX_LIKENESS  # too few to measure


def test_shipped_domains() -> None:
    found = read_document(shipped("policies") / "domains.yaml").data["domains"]
    domains = [Domain(id=id, examples=tuple(d["examples"]), keywords=tuple(d["keywords"])) for id, d in found.items()]
    assert [domain.id for domain in domains] == ["ecommerce", "logistics", "customer_service", "finance", "code"]
    assert all(40 <= len(domain.examples) <= 80 for domain in domains)
    texts = Counter(example.casefold() for domain in domains for example in domain.examples)
    assert [text for text, count in texts.items() if count > 1] == []
    classifier = build_classifier(domains)
    for text, domain in [
        ("I need to cancel my order", "ecommerce"),
        ("my parcel is stuck in transit", "logistics"),
        ("let me speak to a real person", "customer_service"),
        ("transfer 50 euros to my savings account", "finance"),
        ("please fix the bug in my Python script", "code"),
        ("what is the capital of France", None),
        ("tell me a joke", None),
        ("write a poem about autumn leaves", None),
        ("good morning, how are you", None),
    ]:
        assert classifier.classify(text) == domain, text


# Training


def test_training_learns_domains_and_none() -> None:
    classifier = trained()
    assert classifier.domains == ("bank", "kitchen", "travel")
    assert classifier.classify("a flight to Tallinn, please") == "travel"
    assert classifier.classify("transfer 9000000 euros to my account") == "bank"
    assert classifier.classify("how long do I cook the goulash") == "kitchen"
    assert classifier.classify("who won the match") is None
    assert classifier.classify("quantum chromodynamics") is None
    learned = classifier.learned
    assert learned is not None
    assert (learned.lines, learned.classes) == (250, 5)  # travel has two intents, and none is a class
    assert learned.in_scope_accuracy is not None and learned.in_scope_accuracy > 0.9
    assert learned.none_recall is not None and learned.none_recall > 0.9
    assert classifier.threshold == learned.threshold


def test_without_lines_of_none_left_out_domains_stand_in() -> None:
    classifier = trained(none=False)
    assert classifier.learned is not None and classifier.learned.classes == 4
    assert classifier.learned.none_recall is not None
    assert classifier.classify("book a flight to Rome tomorrow") == "travel"
    assert classifier.classify("quantum chromodynamics") is None


def test_two_domains_without_none_have_nothing_to_measure_it_with() -> None:
    classifier = train([sample for sample in samples(none=False) if sample.domain != "kitchen"])
    assert classifier.learned is not None and classifier.learned.none_recall is None
    assert classifier.classify("book a flight to Rome tomorrow") == "travel"


def test_the_same_samples_and_seed_give_the_same_bytes() -> None:
    assert train(samples()).to_bytes() == trained().to_bytes()
    assert train(samples(), seed=1).version != trained().version


def test_progress_goes_to_its_end() -> None:
    told: list[tuple[str, int, int]] = []
    train(samples(), progress=lambda *given: told.append(given))
    done = [number for _, number, _ in told]
    assert done == list(range(1, told[-1][2] + 1))
    assert [what for what, _, _ in told][:: len(told) - 1] == ["cross-validation", "training"]


@pytest.mark.parametrize(
    "given",
    [
        [],
        [Sample("a text", "one"), Sample("another", "one")],
        [Sample("a text", "one"), Sample("another", "oos"), Sample("third", None)],
        [Sample("a text", "one"), Sample(" \n", "two")],
    ],
)
def test_one_domain_is_not_enough(given: list[Sample]) -> None:
    with pytest.raises(ValueError, match="at least two domains, and there are [01]\nhint: "):
        train(given)


@pytest.mark.parametrize("count", [1, 2])
def test_a_line_or_two_of_each_domain_are_learned_somehow(count: int) -> None:
    classifier = train([Sample(f"{domain} number {n}", domain) for domain in ("apples", "pears") for n in range(count)])
    assert classifier.classify("quantum chromodynamics") is None


# What is configured beside a model


def test_keywords_come_before_the_model_and_examples_behind_it() -> None:
    domains = (
        Domain(id="travel", keywords=("savings",)),
        Domain(id="bank"),
        Domain(id="garden", examples=("prune the roses in spring",)),
    )
    classifier = build_classifier(domains, trained())
    assert classifier.domains == ("travel", "bank", "garden")
    assert classifier.classify("transfer 20 euros to my savings account") == "travel"
    assert classifier.classify("transfer 20 euros to my account") == "bank"
    assert classifier.classify("prune the roses in spring") == "garden"
    assert classifier.classify("who won the match") is None


def test_what_is_not_configured_is_none() -> None:
    text = "how long do I cook soup for 2 guests tomorrow"
    sure = trained().judge(text)
    assert sure.domain == "kitchen"
    assert build_classifier((Domain(id="travel"),), trained()).judge(text) == Judgement(None, sure.confidence)


def test_version_is_of_what_it_was_made_from() -> None:
    made = [
        build_classifier(()),
        build_classifier((FINANCE,)),
        build_classifier((FINANCE, LAW)),
        build_classifier((LAW, FINANCE)),
        build_classifier((FINANCE,), trained()),
        trained(),
    ]
    assert len({classifier.version for classifier in made}) == len(made)
    assert all(len(classifier.version) == 12 and int(classifier.version, 16) >= 0 for classifier in made)
    assert build_classifier((FINANCE, LAW)).version == made[2].version


# Any text


@pytest.mark.parametrize(
    "text",
    [
        "\ud800",
        "\x00\x01",
        "é" * 100_000,
        "😀" * 5_000,
        "a" * 1_000_000,
        "1" * 10_000,
        "ﷺ" * 4_000,
        "<s> </s> <?>",
        "  ",
    ],
    ids=lambda text: repr(text[:4]),
)
def test_any_text_has_a_judgement(text: str) -> None:
    for classifier in (trained(), trained(none=False), build_classifier((FINANCE, LAW), trained())):
        judgement = classifier.judge(text)
        assert judgement.domain is None
        assert 0.0 <= judgement.confidence <= 1.0


def test_only_the_start_of_a_text_is_read() -> None:
    start = "book a flight to Rome tomorrow "
    classifier = trained()
    assert classifier.judge(start + "word " * MAX_WORDS) == classifier.judge(start + "word " * 10 * MAX_WORDS)
    assert len(split_words("word " * 10 * MAX_WORDS)) == MAX_WORDS


def test_words() -> None:
    assert split_words("What's “up”, Doc?") == ["what's", "“", "up", "”", ",", "doc", "?"]
    assert split_words("order 732201349959 of 2024") == ["order", "00000", "of", "2024"]
    assert split_words("x" * 100) == ["x" * 24]


def test_unknown_words_make_a_text_less_known() -> None:
    vocabulary = Vocabulary.of([split_words(text) for text in ("red apples", "red apples", "green pears")], 1000)
    assert {" red", " apples", "red apples", " <?>", "<ap"} - set(vocabulary.names) == {" <?>"}
    known, half, unknown = (vocabulary.encode(split_words(text)) for text in ("red apples", "red zzz", "zzz"))
    assert known.unknown == 0.0 and known.ids
    assert 0.0 < half.unknown < unknown.unknown * len(half.ids)
    assert unknown.ids == []
    # " zzz", three pairs with the edges, " <?>", two pairs of it with the edges; nine pieces of "<zzz>".
    assert unknown.unknown == pytest.approx(16 * vocabulary.unknown_weight**2)


def test_words_of_one_line_stand_for_unknown_ones() -> None:
    texts = ("red apples", "red apples", "red pears", "red plums")
    vocabulary = Vocabulary.of([split_words(text) for text in texts], 1000)
    assert {" <?>", "red <?>", "<?> </s>"} <= set(vocabulary.names)
    ids = vocabulary.encode(split_words("red zzz")).ids
    assert {" red", "red <?>", " <?>"} <= {vocabulary.names[id] for id in ids}


# The file


def test_a_file_gives_the_same_judgements() -> None:
    data = trained().to_bytes()
    again = DomainClassifier.from_bytes(data)
    assert (again.version, again.domains, again.learned) == (trained().version, trained().domains, trained().learned)
    assert again.to_bytes() == data
    for sample in samples():
        assert again.judge(sample.text) == trained().judge(sample.text)


def test_a_classifier_of_examples_has_no_file() -> None:
    with pytest.raises(ValueError, match="no trained model"):
        build_classifier((FINANCE, LAW)).to_bytes()


def test_damaged_files_are_refused() -> None:
    data = trained().to_bytes()
    rng = random.Random(0)
    broken = [b"", b"\x80\x04.", magic(), data[:-1], data + b"\0", data[1:], data[: len(data) // 2]]
    for _ in range(50):
        at = rng.randrange(len(data))
        broken.append(data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :])
    for one in broken:
        with pytest.raises(ValueError, match=r"^(not a domain model|the domain model is damaged: .+)\nhint: "):
            DomainClassifier.from_bytes(one)


def magic() -> bytes:
    from gateway.routing.domain_model import MAGIC

    return MAGIC


def resealed(rest: bytes) -> bytes:
    """A file whose checksum fits: made on purpose, not damaged on the way."""
    return magic() + hashlib.sha256(rest).digest() + rest


def with_header(**changes: object) -> bytes:
    rest = trained().to_bytes()[len(magic()) + 32 :]
    size = int.from_bytes(rest[:4], "little")
    header = json.dumps({**json.loads(rest[4 : 4 + size]), **changes}).encode()
    return resealed(len(header).to_bytes(4, "little") + header + rest[4 + size :])


@pytest.mark.parametrize(
    "changes",
    [
        {"domains": []},
        {"domains": ["a", "a", "b"]},
        {"groups": [3, 2, 1, 0, 0]},
        {"groups": [1, 0, 2, 2, 3]},
        {"groups": [0, 1, 2, 2, 9]},
        {"groups": [-1, 1, 2, 2, 3]},
        {"groups": []},
        {"groups": [3, 3, 3, 3, 3]},
        {"groups": [0, 1, 2, 2, 3, 3]},
        {"features": 10**9},
        {"features": -1},
        {"features": 1},
        {"units": 0},
        {"units": 65},
        {"units": 1024},
        {"names_bytes": -5},
        {"names_bytes": 10**12},
        {"names_bytes": 0},
        {"slope": 1e300},
        {"unknown_weight": 0},
        {"unknown_weight": None},
        {"more": 1},
    ],
    ids=str,
)
def test_headers_made_on_purpose_are_refused(changes: dict[str, object]) -> None:
    DomainClassifier.from_bytes(with_header())  # as it was, it is read
    with pytest.raises(ValueError, match="the domain model is damaged"):
        DomainClassifier.from_bytes(with_header(**changes))


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 1e30])
def test_numbers_out_of_range_are_refused(number: float) -> None:
    rest = trained().to_bytes()[len(magic()) + 32 :]
    with pytest.raises(ValueError, match="out of range"):
        DomainClassifier.from_bytes(resealed(rest[:-4] + struct.pack("<f", number)))


def test_arrays_end_where_the_header_says() -> None:
    rest = trained().to_bytes()[len(magic()) + 32 :]
    for one in (rest + b"\0", rest[:-4]):
        with pytest.raises(ValueError, match="it (ends early|goes on after its end)"):
            DomainClassifier.from_bytes(resealed(one))


# The threshold


def test_threshold_balances_both_margins() -> None:
    import numpy as np

    from gateway.routing.domain_training import AIM_IN_SCOPE, AIM_NONE, choose_threshold

    rng = np.random.default_rng(0)
    none = np.arange(2000) < 400
    scores = np.where(none, rng.normal(0, 1, 2000), rng.normal(5, 1, 2000))
    right = ~none & (rng.random(2000) < 0.99)
    threshold = choose_threshold(scores, right, none)
    accuracy, recall = (right & (scores > threshold))[~none].mean(), (scores <= threshold)[none].mean()
    assert accuracy > AIM_IN_SCOPE and recall > AIM_NONE
    shifted = choose_threshold(scores + 7, right, none)
    assert shifted == pytest.approx(threshold + 7)


def test_threshold_without_none_keeps_most_right_ones() -> None:
    import numpy as np

    from gateway.routing.domain_training import choose_threshold

    scores = np.arange(100.0)
    right = np.ones(100, bool)
    threshold = choose_threshold(scores, right, np.zeros(100, bool))
    assert (scores > threshold).sum() == 95


def test_threshold_lets_accuracy_go_where_the_aim_is_out_of_reach() -> None:
    import numpy as np

    from gateway.routing.domain_training import AIM_NONE, choose_threshold

    rng = np.random.default_rng(0)
    none = np.arange(2000) < 400
    scores = np.where(none, rng.normal(0, 1, 2000), rng.normal(3, 1, 2000))
    threshold = choose_threshold(scores, ~none & (rng.random(2000) < 0.8), none)
    assert (scores <= threshold)[none].mean() > AIM_NONE


# Numpy and public data


def test_numpy_is_loaded_only_with_a_model() -> None:
    program = (
        "import sys; from gateway.config.model import Domain; from gateway.routing.domains import *;"
        "build_classifier((Domain(id='d', examples=('a text',)),)).classify('a text');"
        "print('numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"


@pytest.mark.skipif(not DATA.is_dir(), reason="no public intents: shared/data is not beside the project")
def test_public_intents_from_a_tenth_of_their_lines() -> None:
    """With all lines and the larger network: 96 % and 85 % (`bench/domains.py`)."""

    def read(name: str) -> list[Sample]:
        lines = [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        return [Sample(line["text"], line["domain"], line["intent"]) for line in lines]

    seen: Counter[str | None] = Counter()
    few = []
    for sample in read("train"):
        seen[sample.intent] += 1
        if seen[sample.intent] <= 10 or sample.is_out_of_scope:
            few.append(sample)
    classifier = train(few)
    judged = [(sample, classifier.classify(sample.text)) for sample in read("val")[::3] + read("val")[-100:]]
    inside = [domain == sample.domain for sample, domain in judged if not sample.is_out_of_scope]
    outside = [domain is None for sample, domain in judged if sample.is_out_of_scope]
    assert len(inside) > 900 and len(outside) > 90
    assert sum(inside) / len(inside) > 0.75
    assert sum(outside) / len(outside) > 0.7
