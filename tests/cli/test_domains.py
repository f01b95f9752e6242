"""`hatchway domains train` and `test`: what they print, what they write, and what they refuse."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from gateway.cli.domains import app
from gateway.routing.domains import MODEL_FILE, DomainClassifier

PLACES = ("Lisbon", "Oslo", "Rome", "Paris", "Vienna", "Porto", "Berlin", "Madrid")
DAYS = ("Monday", "Friday", "tomorrow", "in May")

ROWS: list[dict[str, Any]] = [
    row
    for place in PLACES
    for day in DAYS
    for row in (
        {"text": f"book a flight to {place} {day}", "domain": "travel", "intent": "flight"},
        {"text": f"a hotel room in {place} {day}, please", "domain": "travel", "intent": "hotel"},
        {"text": f"who approves my overtime {day}", "domain": "hr", "more": [1]},
        {"text": f"what is the weather in {place} {day}", "domain": "oos"},
    )
]

CONFIGURATION = """\
version: 1
providers: {no provider of that name is needed here}
domains:
  travel:
    examples: [book a flight to Lisbon, is breakfast included in the hotel]
    keywords: [boarding pass]
  hr:
    examples: [who approves my overtime, how many days of holiday do I have]
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the state folder and a configuration in it."""
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "a.yaml").write_text(CONFIGURATION)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HATCHWAY_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def flat(text: str) -> str:
    return " ".join(text.split())


def test_training_writes_a_private_model_and_says_what_it_learned(home: Path, tmp_path: Path) -> None:
    done = run("train", lines(tmp_path / "a.jsonl", ROWS))
    assert done.exit_code == 0, done.output
    model = home / MODEL_FILE
    assert stat.S_IMODE(model.stat().st_mode) == 0o600
    assert [path.name for path in home.iterdir()] == [MODEL_FILE]
    classifier = DomainClassifier.from_bytes(model.read_bytes())
    assert classifier.classify("a hotel in Prague, please") == "travel"
    printed = flat(done.stdout)
    for row in (
        "domains │ `hr`, `travel`",
        "lines │ 128",
        "classes │ 4",
        "threshold │ 0.",
        f"bytes │ {model.stat().st_size}",
        f"version │ {classifier.version}",
    ):
        assert row in printed
    assert "in-scope accuracy, cross-validated │ 100.00 %" in printed
    assert "warning" not in done.stderr
    assert f"written: {model}" in done.stderr


def test_files_of_both_kinds_are_one_training_set(home: Path, tmp_path: Path) -> None:
    half = len(ROWS) // 2
    one, two = lines(tmp_path / "1.jsonl", ROWS[:half]), lines(tmp_path / "2.jsonl", ROWS[half:])
    out = tmp_path / "deep" / "m"
    done = run("train", one, two, tmp_path / "policies", tmp_path / "policies" / "a.yaml", "--out", out)
    assert done.exit_code == 0, done.output
    assert f"lines │ {len(ROWS) + 8}" in flat(done.stdout)
    assert out.is_file() and not home.exists()


def test_warnings(home: Path, tmp_path: Path) -> None:
    rows = [row for row in ROWS if row["domain"] != "oos"]
    rows += [{"text": "Book a flight  to OSLO Friday", "domain": "rare"}, {"text": "zebras", "domain": "rare"}]
    done = run("train", lines(tmp_path / "a.jsonl", rows))
    assert done.exit_code == 0, done.output
    said = flat(done.stderr)
    assert "warning: fewer than 5 lines: `rare` (2) hint: " in said
    assert "warning: no line of domain `oos`" in said
    assert "warning: 1 texts are in two domains: `book a flight to oslo friday` (rare, travel)" in said
    assert "policies does not name `rare` hint: " in said


def test_a_configuration_that_is_named_must_be_there(home: Path, tmp_path: Path) -> None:
    done = run("train", lines(tmp_path / "a.jsonl", ROWS), "--config", tmp_path / "absent")
    assert "no such file or folder" in done.stderr
    (tmp_path / "policies" / "a.yaml").unlink()
    assert "warning" not in run("train", tmp_path / "a.jsonl").stderr


def test_a_test_ends_in_one_json_object(home: Path, tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", ROWS)
    assert run("train", file).exit_code == 0
    wrong = [
        {"text": "book a flight to Rome", "domain": "hr"},
        {"text": "what is the weather in Tallinn tomorrow", "domain": None},
    ]
    done = run("test", lines(tmp_path / "b.jsonl", ROWS + wrong), "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["in_scope"] == 97 and result["oos"] == 33
    assert result["in_scope_accuracy"] == pytest.approx(96 / 97)
    assert result["oos_recall"] == 1.0
    assert result["by_domain"]["hr"] == {"lines": 33, "accuracy": pytest.approx(32 / 33)}
    assert result["worst_pairs"] == [{"domain": "hr", "judged": "travel", "lines": 1}]
    assert result["model_bytes"] == (home / MODEL_FILE).stat().st_size
    assert 0.0 < result["threshold"] < 1.0
    assert 0.0 < result["p50_us"] <= result["p99_us"]
    assert "`hr` │ 33 │ 96.97 %" in flat(done.stdout)
    assert "`hr` │ `travel` │ 1" in flat(done.stdout)


def test_without_lines_of_none_their_recall_is_null(home: Path, tmp_path: Path) -> None:
    done = run("test", lines(tmp_path / "a.jsonl", [row for row in ROWS if row["domain"] == "hr"]), "--json")
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["oos_recall"], result["oos"], result["in_scope"]) == (None, 0, 32)


def test_without_a_model_the_examples_are_tested(home: Path, tmp_path: Path) -> None:
    rows = [{"text": "where is my boarding pass", "domain": "travel"}, {"text": "zebras", "domain": "oos"}]
    done = run("test", lines(tmp_path / "a.jsonl", rows), "--json")
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["in_scope_accuracy"], result["oos_recall"], result["model_bytes"]) == (1.0, 1.0, 0)
    assert "testing: the examples of" in done.stderr


def test_names_are_not_markup(home: Path, tmp_path: Path) -> None:
    rows = [{"text": "zebras", "domain": "[bold]x[/bold]"}]
    assert "`[bold]x[/bold]`" in run("test", lines(tmp_path / "a.jsonl", rows)).stdout


GOOD = b'{"text": "a", "domain": "b"}\n'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "a.jsonl` holds no line with a text"),
        (b"\n \n", "a.jsonl` holds no line with a text"),
        (GOOD + b"{'text'}\n", "a.jsonl:2: not JSON: "),
        (GOOD + b"\n" + GOOD[:-3], "a.jsonl:3: not JSON: "),
        (GOOD + b'{"text": "a"}\n', "a.jsonl:2: object missing required field `domain`"),
        (b'{"domain": "a"}\n', "a.jsonl:1: object missing required field `text`"),
        (b'{"text": 1, "domain": "a"}\n', "a.jsonl:1: expected `str`, got `int`"),
        (b'["text"]\n', "a.jsonl:1: expected `object`, got `array`"),
        (b'{"text": "a", "domain": ""}\n', "a.jsonl:1: `domain` is no name"),
        (b'{"text": "a", "domain": "a", "intent": "\\n"}\n', "a.jsonl:1: `intent` is no name"),
        (b'{"text": "a", "domain": "%s"}\n' % (b"d" * 300), "a.jsonl:1: `domain` is no name"),
        (GOOD + b'{"text": "\xff", "domain": "a"}\n', "a.jsonl:2: not UTF-8 text"),
        (b"[" * 100_000, "a.jsonl:1: "),
        (GOOD + b'{"text": "' + b"x" * 50_000_000 + b'", "domain": "a"}\n', "a.jsonl:2: a line over 1024 KiB"),
        (GOOD * 50, "at least two domains, and there are 1"),
    ],
    ids=[
        *("empty", "blank", "quotes", "cut", "no domain", "no text", "number", "array", "empty name", "control"),
        *("long name", "bytes", "deep", "50 MB", "one domain"),
    ],
)
def test_bad_lines_are_refused_and_nothing_is_overwritten(
    home: Path, tmp_path: Path, content: bytes, said: str
) -> None:
    home.mkdir()
    (home / MODEL_FILE).write_bytes(b"as it was")
    (tmp_path / "a.jsonl").write_bytes(content)
    done = run("train", tmp_path / "a.jsonl")
    assert done.exit_code == 2
    assert said in flat(done.stderr)
    assert "\nhint: " in done.stderr
    assert len(done.stderr) < 2_000
    assert (home / MODEL_FILE).read_bytes() == b"as it was"
    assert [path.name for path in home.iterdir()] == [MODEL_FILE]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "absent.jsonl"], "`absent.jsonl`: no such file"),
        (["test", "absent.jsonl"], "`absent.jsonl`: no such file"),
        (["train", "absent.yaml"], "no such file or folder"),
        (["train", "empty"], "the folder holds no `*.yaml` file"),
        (["train", "without.yaml"], "`without.yaml` has no `domains`"),
        (["train", "texts.yaml"], "texts.yaml:2: `domains.d.examples` must be a list of texts"),
        (["train", "good.jsonl", "--out", "empty"], "`empty` is a folder"),
        (["train", "good.jsonl", "--out", "good.jsonl/m"], "`good.jsonl`: file exists"),
        (["test", "good.jsonl", "--model", "absent"], "`absent`: no such file"),
        (["test", "good.jsonl", "--model", "good.jsonl"], "`good.jsonl`: not a domain model"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_arguments_are_refused(home: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "without.yaml").write_text("version: 1\n")
    (tmp_path / "texts.yaml").write_text("domains:\n  d: {examples: [1, 2]}\n")
    lines(tmp_path / "good.jsonl", ROWS)
    done = run(*arguments)
    assert done.exit_code == 2, done.output
    assert said in flat(done.stderr)
    assert "\nhint: " in done.stderr
