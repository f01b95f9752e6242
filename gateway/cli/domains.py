"""`hatchway domains train | test`: the classifier of what routes and reports know as `domain`."""

from __future__ import annotations

import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec
import typer
from rich.table import Table

from gateway.cli.console import ProgressBar, fail, show, stderr, stdout, warn
from gateway.config.document import Document, quoted, read_document
from gateway.config.model import Domain
from gateway.config.settings import load_settings
from gateway.errors import ConfigError
from gateway.routing.domains import MODEL_FILE, OUT_OF_SCOPE, DomainClassifier, Sample, build_classifier
from gateway.routing.domains import train as train_classifier

app = typer.Typer(help="Train and test the classifier of domains.", no_args_is_help=True)

MAX_LINE_BYTES = 1024 * 1024
MAX_FILE_BYTES = 1024 * 1024 * 1024
MAX_MODEL_BYTES = 64 * 1024 * 1024
MAX_NAME = 200  # characters of a domain or an intent
FEW = 5
WORST_PAIRS = 10
WARM_UP = 200
_SHOWN = 5  # names in a warning

_Files = Annotated[
    list[Path],
    typer.Argument(
        help="JSONL with `text`, `domain` and perhaps `intent` on each line, or YAML files and folders with `domains`."
    ),
]


class _Row(msgspec.Struct):
    """A line of JSONL; fields beside these are not read."""

    text: str
    domain: str | None
    intent: str | None = None


@app.command()
def train(
    files: _Files,
    out: Annotated[
        Path | None, typer.Option(help="Where the model goes; left out: where the gateway reads it.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="The configuration it is for: domains that it lacks are warned about.")
    ] = None,
) -> None:
    """Learn domains from labelled texts; a line of domain `oos` belongs to none of them."""
    settings = load_settings(config=config)
    samples = _read_all(files)
    _warn_about(samples)
    place = settings.home / MODEL_FILE if out is None else out
    _demand_writable(place)
    began = time.perf_counter()
    try:
        with ProgressBar() as progress:
            classifier = train_classifier(samples, progress=progress)
    except ValueError as error:
        fail(str(error), status=2)
    data = classifier.to_bytes()
    try:
        _write(place, data)
    except OSError as error:
        fail(f"`{place}` cannot be written: {error.strerror}\nhint: name another place with `--out`")
    _warn_about_configuration(classifier, settings.config_path, explicit=config is not None)
    _show_learned(classifier, len(data), time.perf_counter() - began)
    stderr.print(f"written: {place}", markup=False, highlight=False)


@app.command()
def test(
    files: _Files,
    model: Annotated[
        Path | None, typer.Option(help="A model file; left out: the gateway's, or else the configuration's examples.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object as the last line.")] = False,
) -> None:
    """Judge labelled texts: accuracy of each domain, what is taken for what, and the time it takes."""
    settings = load_settings()
    samples = _read_all(files)
    place = model or settings.home / MODEL_FILE
    if model is not None or place.exists():
        classifier, size = _load(place)
        what = str(place)
    else:
        classifier, size = _of_configuration(settings.config_path), 0
        what = f"the examples of {settings.config_path}"
    stderr.print(f"testing: {what}", markup=False, highlight=False)
    result = _measure(classifier, samples)
    _show_result(result)
    if as_json:
        show(json.dumps({**result, "model_bytes": size, "threshold": round(classifier.threshold, 4)}))


# Reading


def _read_all(files: Sequence[Path]) -> list[Sample]:
    samples = [sample for file in files for sample in _read(file)]
    if not samples:
        _refuse(f"`{files[0]}` holds no line with a text", "write one JSON object a line: text, domain")
    return samples


def _read(file: Path) -> Iterator[Sample]:
    if file.is_dir() or file.suffix in {".yaml", ".yml"}:
        try:
            document = read_document(file)
        except ConfigError as error:
            fail(str(error), status=2)
        return (Sample(text, domain.id) for domain in _domains(document) for text in domain.examples)
    return _read_lines(file)


def _read_lines(file: Path) -> Iterator[Sample]:
    decode = msgspec.json.Decoder(_Row).decode
    try:
        if file.is_file() and file.stat().st_size > MAX_FILE_BYTES:
            _refuse(f"`{file}` is over {MAX_FILE_BYTES >> 20} MiB", "train on a part of it")
        with file.open("rb") as lines:
            for number, line in enumerate(iter(lambda: lines.readline(MAX_LINE_BYTES + 1), b""), 1):
                where = f"{file}:{number}"
                if len(line) > MAX_LINE_BYTES:
                    _refuse(f"{where}: a line over {MAX_LINE_BYTES >> 10} KiB", "one JSON object a line; cut the text")
                if not line.strip():
                    continue
                try:
                    row = decode(line.removeprefix(b"\xef\xbb\xbf"))
                except UnicodeDecodeError:
                    _refuse(f"{where}: not UTF-8 text", "save the file as UTF-8")
                except msgspec.ValidationError as error:
                    _refuse(f"{where}: {str(error)[:1].lower()}{str(error)[1:]}", _LINE_HINT)
                except (msgspec.DecodeError, RecursionError) as error:
                    _refuse(f"{where}: not JSON: {error}", _LINE_HINT)
                _check_names(row, where)
                if row.text.strip():
                    yield Sample(row.text, row.domain, row.intent)
    except OSError as error:
        problem = (error.strerror or "it cannot be read").lower()
        _refuse(f"`{file}`: {problem}", "name JSONL files, or YAML files or folders of a configuration")


_LINE_HINT = 'write one object a line, as in `{"text": "where is my parcel", "domain": "logistics"}`'


def _check_names(row: _Row, where: str) -> None:
    for field, name in (("domain", row.domain), ("intent", row.intent)):
        if name is not None and (not name.strip() or len(name) > MAX_NAME or not name.isprintable()):
            hint = f"a name has up to {MAX_NAME} printable characters; `{OUT_OF_SCOPE}` stands for none of the domains"
            _refuse(f"{where}: `{field}` is no name", hint)


def _domains(document: Document) -> list[Domain]:
    """The `domains` of a configuration, of which nothing else has to be valid."""
    found = document.data.get("domains")
    if not isinstance(found, dict) or not found:
        _refuse(f"`{document.name}` has no `domains`", "write `domains: {logistics: {examples: [where is my parcel]}}`")
    domains = []
    for id, given in found.items():
        lists: dict[str, tuple[str, ...]] = {"examples": (), "keywords": ()}
        for name in lists:
            texts = given.get(name) or [] if isinstance(given, dict) else None
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                file, line = document.where(("domains", id, name))
                _refuse(f"{file}:{line}: `domains.{id}.{name}` must be a list of texts", "`hatchway check` says more")
            lists[name] = tuple(texts)
        domains.append(Domain(id=id, examples=lists["examples"], keywords=lists["keywords"]))
    return domains


def _refuse(problem: str, hint: str) -> NoReturn:
    fail(f"{problem}\nhint: {hint}", status=2)


# Training


def _warn_about(samples: Sequence[Sample]) -> None:
    counts = Counter(sample.domain or OUT_OF_SCOPE for sample in samples)
    few = [f"{quoted(domain)} ({count})" for domain, count in counts.items() if count < FEW]
    if few:
        _warn(f"fewer than {FEW} lines: {_some(few)}", "a domain is learned from a few dozen, better some hundred")
    if OUT_OF_SCOPE not in counts:
        hint = f'add lines like `{{"text": "tell me a joke", "domain": "{OUT_OF_SCOPE}"}}`, as your traffic has them'
        _warn(f"no line of domain `{OUT_OF_SCOPE}`: what belongs to no domain is guessed from the domains", hint)
    places: dict[str, set[str]] = defaultdict(set)
    for sample in samples:
        places[" ".join(sample.text.casefold().split())].add(sample.domain or OUT_OF_SCOPE)
    twice = [f"{quoted(text[:60])} ({', '.join(sorted(names))})" for text, names in places.items() if len(names) > 1]
    if twice:
        _warn(f"{len(twice)} texts are in two domains: {_some(twice)}", "keep each in one of them")


def _warn_about_configuration(classifier: DomainClassifier, path: Path, *, explicit: bool) -> None:
    """Trained domains that the configuration does not name; a configuration that nobody named may also be absent."""
    try:
        found = read_document(path).data.get("domains")
    except ConfigError as error:
        if explicit:
            warn(str(error))
        return
    configured = set(found) if isinstance(found, dict) else set()
    if unknown := [quoted(domain) for domain in classifier.domains if domain not in configured]:
        hint = "list them under `domains:`, if only as `NAME: {}`; until then a gateway takes them for none"
        _warn(f"{path} does not name {_some(unknown)}", hint)


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest


def _warn(problem: str, hint: str) -> None:
    warn(f"{problem}\nhint: {hint}")


def _demand_writable(place: Path) -> None:
    """Before minutes are spent."""
    folder = place.parent
    if place.is_dir():
        _refuse(f"`{place}` is a folder", "name a file with `--out`")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        _refuse(f"`{folder}`: {(error.strerror or 'it cannot be made').lower()}", "name another place with `--out`")


def _write(place: Path, data: bytes) -> None:
    new = place.with_name(f".{place.name}.{os.getpid()}.new")
    try:
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, place)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def _show_learned(classifier: DomainClassifier, size: int, seconds: float) -> None:
    learned = classifier.learned
    assert learned is not None, "what was trained has a model"
    table = Table("learned", "")
    table.add_row("domains", ", ".join(map(quoted, classifier.domains)))
    table.add_row("lines", str(learned.lines))
    table.add_row("classes", str(learned.classes))
    table.add_row("features", str(learned.features))
    table.add_row("threshold", f"{learned.threshold:.3f}")
    table.add_row("in-scope accuracy, cross-validated", _percent(learned.in_scope_accuracy))
    table.add_row("left to none, cross-validated", _percent(learned.none_recall))
    table.add_row("bytes", str(size))
    table.add_row("seconds", f"{seconds:.1f}")
    table.add_row("version", classifier.version)
    stdout.print(table, markup=False)


# Testing


def _load(place: Path) -> tuple[DomainClassifier, int]:
    try:
        with place.open("rb") as file:
            data = file.read(MAX_MODEL_BYTES)
        return DomainClassifier.from_bytes(data), len(data)
    except OSError as error:
        _refuse(f"`{place}`: {(error.strerror or 'it cannot be read').lower()}", "`hatchway domains train` makes one")
    except ValueError as error:
        fail(f"`{place}`: {error}", status=2)


def _of_configuration(path: Path) -> DomainClassifier:
    return build_classifier(_domains(read_document(path)))


def _measure(classifier: DomainClassifier, samples: Sequence[Sample]) -> dict[str, Any]:
    """What `test --json` prints, shares from 0 to 1; None where no line could tell."""
    for sample in samples[:WARM_UP]:
        classifier.judge(sample.text)
    nanoseconds, pairs = [], Counter[tuple[str, str]]()
    for sample in samples:
        began = time.perf_counter_ns()
        judgement = classifier.judge(sample.text)
        nanoseconds.append(time.perf_counter_ns() - began)
        expected = OUT_OF_SCOPE if sample.domain is None else sample.domain
        pairs[expected, judgement.domain or OUT_OF_SCOPE] += 1
    totals, right = Counter[str](), Counter[str]()
    for (expected, judged), count in pairs.items():
        totals[expected] += count
        right[expected] += count * (expected == judged)
    out_of_scope = totals.pop(OUT_OF_SCOPE, 0)
    in_scope = totals.total()
    nanoseconds.sort()
    wrong = [(*pair, count) for pair, count in pairs.most_common() if pair[0] != pair[1]]
    return {
        "in_scope_accuracy": _share(right.total() - right[OUT_OF_SCOPE], in_scope),
        "oos_recall": _share(right[OUT_OF_SCOPE], out_of_scope),
        "p50_us": round(nanoseconds[len(nanoseconds) // 2] / 1000, 1),
        "p99_us": round(nanoseconds[int(len(nanoseconds) * 0.99)] / 1000, 1),
        "in_scope": in_scope,
        "oos": out_of_scope,
        "by_domain": {name: {"lines": totals[name], "accuracy": right[name] / totals[name]} for name in sorted(totals)},
        "worst_pairs": [{"domain": one, "judged": other, "lines": n} for one, other, n in wrong[:WORST_PAIRS]],
        "version": classifier.version,
    }


def _show_result(result: dict[str, Any]) -> None:
    table = Table("domain", "lines", "right")
    for name, found in result["by_domain"].items():
        table.add_row(quoted(name), str(found["lines"]), _percent(found["accuracy"]))
    table.add_row("all of these", str(result["in_scope"]), _percent(result["in_scope_accuracy"]), style="bold")
    table.add_row("none (left to none)", str(result["oos"]), _percent(result["oos_recall"]), style="bold")
    stdout.print(table, markup=False)
    if result["worst_pairs"]:
        pairs = Table("domain", "taken for", "lines")
        for pair in result["worst_pairs"]:
            pairs.add_row(quoted(pair["domain"]), quoted(pair["judged"]), str(pair["lines"]))
        stdout.print(pairs, markup=False)
    stdout.print(f"a text takes {result['p50_us']} us (p50), {result['p99_us']} us (p99)", highlight=False)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.2f} %"
