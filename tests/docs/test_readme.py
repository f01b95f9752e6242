"""The README and the guides, executed: their commands and programs run, and print what the documents say."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest

from gateway.config.check import check_report
from tests.docs.blocks import OUTPUT, PYTHON, ROOT, SHELL, Block, missing, read_blocks
from tests.docs.conftest import Reader

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]
OTHERS = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs" / "reference").glob("*.md"))]
OF_OTHERS = {"admin.md"}
"""Guides whose examples are tested elsewhere."""

ALL = [block for path in [*DOCUMENTS, *OTHERS] if path.name not in OF_OTHERS for block in read_blocks(path)]
WRITTEN = [path for path in DOCUMENTS if any(block.kind == "test" for block in read_blocks(path))]


@pytest.mark.parametrize("document", WRITTEN, ids=lambda path: path.name)
def test_document_does_what_it_says(reader: Reader, document: Path) -> None:
    printed = ""
    try:
        for block in read_blocks(document):
            if block.kind == "test":
                printed = reader.execute(block)
            elif block.kind == "file":
                reader.save(block)
            elif block.kind == OUTPUT:
                lacking = missing(block.text, printed)
                assert lacking is None, f"{block}: nothing like `{lacking}` in\n{printed}"
    finally:
        reader.clean_up()


def test_documents_that_must_run_do() -> None:
    assert {"README.md", "getting-started.md", "providers.md", "reports.md", "operations.md"} <= {
        path.name for path in WRITTEN
    }
    languages = {block.language for block in read_blocks(ROOT / "README.md") if block.kind == "test"}
    assert languages == {SHELL, PYTHON}


def test_first_question_is_answered_and_priced(reader: Reader) -> None:
    """The two promises of the first screen, looked at more closely than a sample can."""
    question, *_ = [block for block in read_blocks(ROOT / "README.md") if '"smollm2-135m-instruct"' in block.text]
    assert '"content":"The capital of France is Paris."' in reader.execute(question)
    lines = json.loads(reader.gateway.run("report", "--by", "endpoint", "--format", "json").stdout)["rows"]
    (line,) = [line for line in lines if line["endpoint"] == "local"]
    assert line["input_tokens"] + line["cache_read_tokens"] >= 37
    assert line["output_tokens"] >= 8
    # 0.05 USD an hour over 150 tokens read, or 15 written, in each of its 3,600 seconds; by the million.
    read = line["input_tokens"] + line["cache_read_tokens"]
    rates = Decimal("0.092592592593") * read + Decimal("0.925925925926") * line["output_tokens"]
    assert Decimal(line["cost_usd"]) == rates / 10**6


@pytest.mark.parametrize("block", [b for b in ALL if b.language in (SHELL, PYTHON)], ids=str)
def test_every_command_is_tested_or_says_why_not(block: Block) -> None:
    assert block.kind == "test" or (block.kind == "not tested" and len(block.value) > 10)


@pytest.mark.parametrize("block", [b for b in ALL if b.language == "yaml"], ids=str)
def test_every_configuration_is_valid(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone, or beside the shipped one when the document says that it belongs there."""
    policies = tmp_path / "policies"
    policies.mkdir()
    if block.kind == "file":
        (policies / "default.yaml").write_text((ROOT / "policies" / "default.yaml").read_text())
    (policies / "written.yaml").write_text(block.text)
    (tmp_path / "certs").mkdir()
    (tmp_path / "certs" / "company-ca.pem").write_text("")
    monkeypatch.chdir(tmp_path)
    status, lines = check_report(policies, {"OPENAI_API_KEY": "x", "DEEPSEEK_API_KEY": "x", "GROQ_API_KEY": "x"})
    assert status == 0, "\n".join(lines)
    expected = ("is not set", "is enforced within seconds")
    about_it = [line for line in lines[1:] if "written.yaml" in line and not any(text in line for text in expected)]
    assert about_it == []


@pytest.mark.parametrize(
    ("sample", "real", "lacking"),
    [
        ("a\nb", "a\nx\nb", None),
        ("b\na", "a\nb", "a"),
        ("cost 0.12", "cost   7", None),
        ("cost 0.12", "cost unknown", "cost 0"),
        ("│ 1 │ local │\n└───┘", "┏━━━━┓\n┃ 23 ┃ local   ┃", None),
        ("say ... end", "say anything, end", None),
        ("say ... end", "say anything", "say ... end"),
        ('{"n":33,...}', '{"n":7,"m":8}', None),
    ],
)
def test_samples_are_compared_in_their_shape(sample: str, real: str, lacking: str | None) -> None:
    assert missing(sample, real) == lacking
