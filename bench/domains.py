"""The domain classifier on public intents: accuracy, what is left to none, microseconds, bytes.

    python -m bench.domains [--data ../shared/data]

Trains on CLINC150's train lines alone and judges its val lines; trains on four fifths of banking77 and of Bitext's
support requests (by a hash of the text) and judges the rest, each alone and all three sets in one model. In the one
model the banking of banking77 is CLINC150's. Bitext is made from templates: its figures flatter. Last, the shipped
examples without any training, on the same texts. Shares are of lines; a line of a domain that is left to none is wrong.
Prints a table, and one JSON object as the last line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gateway.config.document import read_document
from gateway.config.model import Domain
from gateway.routing.domains import DomainClassifier, Sample, build_classifier, train

ROOT = Path(__file__).resolve().parent.parent
HELD_OUT = 5  # one line in so many
WARM_UP = 200
SHIPPED_AS = {"bitext_support": {"ecommerce", "customer_service"}, "banking77": {"finance"}}
SMALL_TALK = {"small_talk", "meta", "kitchen_and_dining", "home", "oos"}


def read_lines(path: Path) -> list[Sample]:
    with path.open(encoding="utf-8") as lines:
        read = [json.loads(line) for line in lines]
    return [Sample(line["text"], line["domain"], line["intent"]) for line in read]


def split(samples: Iterable[Sample]) -> tuple[list[Sample], list[Sample]]:
    kept: list[Sample] = []
    held_out: list[Sample] = []
    for sample in samples:
        digest = hashlib.sha256(sample.text.encode()).digest()
        (held_out if digest[0] % HELD_OUT == 0 else kept).append(sample)
    return kept, held_out


def by_intent(samples: Iterable[Sample]) -> list[Sample]:
    """A set of one domain has only intents to tell apart: each is taken for a domain."""
    return [Sample(sample.text, sample.intent) for sample in samples]


def judge(classifier: DomainClassifier, samples: Sequence[Sample]) -> dict[str, Any]:
    for sample in samples[:WARM_UP]:
        classifier.judge(sample.text)
    nanoseconds, right, rejected, inside = [], 0, 0, 0
    for sample in samples:
        began = time.perf_counter_ns()
        judged = classifier.judge(sample.text).domain
        nanoseconds.append(time.perf_counter_ns() - began)
        if sample.is_out_of_scope:
            rejected += judged is None
        else:
            inside += 1
            right += judged == sample.domain
    nanoseconds.sort()
    outside = len(samples) - inside
    return {
        "lines": len(samples),
        "in_scope_accuracy": round(right / inside, 4) if inside else None,
        "oos_recall": round(rejected / outside, 4) if outside else None,
        "p50_us": round(nanoseconds[len(nanoseconds) // 2] / 1000, 1),
        "p99_us": round(nanoseconds[int(len(nanoseconds) * 0.99)] / 1000, 1),
    }


def train_and_report(name: str, samples: Sequence[Sample]) -> tuple[DomainClassifier, dict[str, Any]]:
    began = time.process_time()
    classifier = train(samples)
    learned = classifier.learned
    assert learned is not None
    found = {
        "cpu_s": round(time.process_time() - began, 1),
        "bytes": len(classifier.to_bytes()),
        "lines": learned.lines,
        "threshold": round(learned.threshold, 4),
        "cross_validated": [learned.in_scope_accuracy, learned.none_recall],
    }
    print(f"{name}: trained in {found['cpu_s']} s of CPU", file=sys.stderr, flush=True)
    return classifier, found


def shipped_classifier() -> DomainClassifier:
    domains = read_document(ROOT / "policies" / "domains.yaml").data["domains"]
    return build_classifier(
        [
            Domain(id=id, examples=tuple(given["examples"]), keywords=tuple(given["keywords"]))
            for id, given in domains.items()
        ]
    )


def judge_shipped(sets: Mapping[str, Sequence[Sample]], val: Sequence[Sample]) -> dict[str, Any]:
    """Shares that the shipped examples take for what they should, and leave to none."""
    classifier = shipped_classifier()
    found = {}
    for name, samples in sets.items():
        judged = [classifier.classify(sample.text) for sample in samples]
        right = sum(domain in SHIPPED_AS[name] for domain in judged)
        found[name] = {"right": round(right / len(judged), 4), "none": round(judged.count(None) / len(judged), 4)}
    foreign = [classifier.classify(sample.text) for sample in val if sample.domain in SMALL_TALK]
    found["clinc150 small talk, home, oos"] = {"none": round(foreign.count(None) / len(foreign), 4)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--quick", action="store_true", help="CLINC150 alone")
    given = parser.parse_args()
    if not (given.data / "clinc150" / "train.jsonl").is_file():
        parser.error(f"`{given.data}` holds no `clinc150/train.jsonl`")
    load_average = os.getloadavg()[0]
    clinc, val = (read_lines(given.data / "clinc150" / f"{name}.jsonl") for name in ("train", "val"))
    models, judged = {}, {}
    classifier, models["clinc150"] = train_and_report("clinc150", clinc)
    judged["clinc150 val"] = judge(classifier, val)
    shipped: dict[str, Any] = {}
    if not given.quick:
        sets = {name: read_lines(given.data / name / "train.jsonl") for name in ("banking77", "bitext_support")}
        parts = {name: split(samples) for name, samples in sets.items()}
        for name, (kept, held_out) in parts.items():
            classifier, models[name] = train_and_report(name, by_intent(kept))
            judged[f"{name}, intents"] = judge(classifier, by_intent(held_out))
        every = [*clinc, *(sample for kept, _ in parts.values() for sample in kept)]
        classifier, models["all three"] = train_and_report("all three", every)
        for name, (_, held_out) in parts.items():
            judged[f"all three: {name}"] = judge(classifier, held_out)
        judged["all three: clinc150 val"] = judge(classifier, val)
        shipped = judge_shipped(sets, val)
    print(f"{'':28}{'lines':>7}{'in scope':>10}{'none':>8}{'p50 us':>9}{'p99 us':>9}")
    for name, row in judged.items():
        shares = (
            f"{share:.4f}" if share is not None else "-" for share in (row["in_scope_accuracy"], row["oos_recall"])
        )
        print(f"{name:28}{row['lines']:>7}{next(shares):>10}{next(shares):>8}{row['p50_us']:>9}{row['p99_us']:>9}")
    print(f"\n{'model':28}{'lines':>7}{'cpu s':>10}{'bytes':>10}")
    for name, row in models.items():
        print(f"{name:28}{row['lines']:>7}{row['cpu_s']:>10}{row['bytes']:>10}")
    for name, row in shipped.items():
        print(f"shipped examples on {name}: {row}")
    result = {
        "benchmark": "domains",
        "judged": judged,
        "models": models,
        "shipped_examples": shipped,
        "cpus": os.cpu_count(),
        "load_average_before": round(load_average, 2),
        "python": sys.version.split()[0],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
