"""Each format that is read: what comes of it, and what is left out with which word."""

from __future__ import annotations

import gzip
import io
from datetime import date
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest

from gateway.accounting.reconciliation.clouds import meter_of, model_of, scale_of
from gateway.accounting.reconciliation.openai import meter_of as item_of
from gateway.accounting.reconciliation.reading import Export, read_exports
from gateway.accounting.reconciliation.records import ExportFile, UnreadableFile, in_memory
from tests.accounting.reconciliation import samples

UTC = ZoneInfo("UTC")
DAY = date(2026, 3, 1)


def read(*texts: str | bytes, **options: Any) -> Export:
    files = [
        in_memory(f"file{number}", text if isinstance(text, bytes) else text.encode())
        for number, text in enumerate(texts)
    ]
    return read_exports(files, **{"zone": UTC, **options})


def figures(export: Export) -> dict[tuple[str | None, str], tuple[str | None, str | None]]:
    """By model and meter, the quantity and the amount."""
    return {
        (key.model, key.meter): tuple(  # type: ignore[misc]  # two of them
            None if value is None else f"{value.normalize():f}" for value in (found.quantity, found.amount)
        )
        for key, found in export.sums.items()
    }


HAIKU, MINI = "claude-haiku-4-5-20251001", "gpt-4o-mini-2024-07-18"


@pytest.mark.parametrize(
    ("text", "source", "expected"),
    [
        (
            samples.OPENAI_USAGE_JSON,
            "openai-usage",
            {
                (MINI, "input"): ("200", None),
                (MINI, "cache_read"): ("800", None),
                (MINI, "output"): ("500", None),
                ("text-embedding-3-small", "input"): ("70", None),
                ("text-embedding-3-small", "cache_read"): ("0", None),
            },
        ),
        (
            samples.OPENAI_USAGE_CSV,
            "openai-usage",
            {
                ("gpt-4o-2024-08-06", "input"): ("53440", None),
                ("gpt-4o-2024-08-06", "cache_read"): ("5760", None),
                ("gpt-4o-2024-08-06", "output"): ("10646", None),
            },
        ),
        (
            samples.OPENAI_COSTS_JSON,
            "openai-costs",
            {
                (MINI, "cache_read"): ("0", "0"),
                (MINI, "input"): ("30", "0.0000045"),
                (None, "other"): (None, "0.02"),
                ("gpt-5.2", "output"): ("1000", "0.5"),
            },
        ),
        (samples.OPENAI_COSTS_CSV, "openai-costs", {(None, "total"): (None, "0.895874")}),
        (
            samples.ANTHROPIC_USAGE_JSON,
            "anthropic-usage",
            {
                (HAIKU, "input"): ("1500", None),
                (HAIKU, "cache_read"): ("200", None),
                (HAIKU, "output"): ("300", None),
                (HAIKU, "cache_write_5m"): ("500", None),
                (HAIKU, "cache_write_1h"): ("1000", None),
            },
        ),
        (
            samples.ANTHROPIC_USAGE_CSV,
            "anthropic-usage",
            {
                ("claude-sonnet-4-20250514", "input"): ("100000", None),
                ("claude-sonnet-4-20250514", "cache_read"): ("30", None),
                ("claude-sonnet-4-20250514", "cache_write_5m"): ("10", None),
                ("claude-sonnet-4-20250514", "cache_write_1h"): ("20", None),
                ("claude-sonnet-4-20250514", "output"): ("5000", None),
            },
        ),
        # Hundredths of a dollar in JSON, dollars in the console's CSV.
        (
            samples.ANTHROPIC_COST_JSON,
            "anthropic-cost",
            {(HAIKU, "input"): (None, "1.2378912"), (None, "other"): (None, "0.1")},
        ),
        (
            samples.ANTHROPIC_COST_CSV,
            "anthropic-cost",
            {("Claude Haiku 4.5", "input"): (None, "1.5"), ("Claude Haiku 4.5", "cache_write_1h"): (None, "0.25")},
        ),
        (
            samples.OPENROUTER_GENERATION,
            "openrouter",
            {
                ("meta-llama/llama-4-scout", "input"): ("50", None),
                ("meta-llama/llama-4-scout", "cache_read"): ("14", None),
                ("meta-llama/llama-4-scout", "output"): ("98", None),
                ("meta-llama/llama-4-scout", "total"): (None, "0.00015"),
            },
        ),
        (
            samples.OPENROUTER_ACTIVITY,
            "openrouter",
            {
                ("openai/gpt-4.1-2025-04-14", "prompt"): ("50", None),
                ("openai/gpt-4.1-2025-04-14", "output"): ("125", None),
                ("openai/gpt-4.1-2025-04-14", "total"): (None, "0.015"),
            },
        ),
        (
            samples.OPENROUTER_CSV,
            "openrouter",
            {
                ("openai/gpt-oss-120b", "input"): ("10000", None),
                ("openai/gpt-oss-120b", "cache_read"): ("389", None),
                ("openai/gpt-oss-120b", "output"): ("137", None),
                ("openai/gpt-oss-120b", "total"): (None, "0.0123"),
            },
        ),
        (
            samples.CUR_LEGACY,
            "cur",
            {
                ("Claude4.6Opus", "input"): ("12500", "0.0625"),
                ("Claude4.6Opus", "cache_read"): ("2000", "0.001"),
                (None, "other"): (None, "0.02"),
                ("Claude Opus 4.6", "output"): ("250000", "6.25"),
            },
        ),
        (samples.CUR_2, "cur", {("Nova2.0Lite", "output"): ("3000", "0.0075")}),
        (
            samples.FOCUS_CSV,
            "focus",
            {("claude-opus-4-6", "input"): ("500000", "1.25"), ("claude-opus-4-6", "cache_read"): ("20000", "0.1")},
        ),
    ],
)
def test_formats(text: str, source: str, expected: dict[Any, Any]) -> None:
    export = read(text)
    assert set(export.files.values()) == {source}
    assert figures(export) == expected
    assert {key.day for key in export.sums} == {DAY}
    assert export.first == DAY


def test_a_column_that_nobody_knows_is_named() -> None:
    assert read(samples.FOCUS_CSV).unknown_columns == {"file0": ["Colour"]}
    assert read(samples.OPENAI_USAGE_CSV).unknown_columns == {}
    assert read(samples.CUR_LEGACY).unknown_columns == {}
    assert read(samples.OPENROUTER_CSV).unknown_columns == {}
    assert read(samples.ANTHROPIC_COST_CSV).unknown_columns == {}


def test_what_is_not_compared_is_counted() -> None:
    assert dict(read(samples.CUR_LEGACY).left_out) == {"lines of other services": 1}
    assert dict(read(samples.OPENAI_USAGE_JSON).left_out) == {
        "usage that is not of tokens: organization.usage.images.result": 1
    }
    assert dict(read(samples.ANTHROPIC_USAGE_JSON).left_out) == {"counts of web searches": 1}
    assert dict(read(samples.OPENROUTER_ACTIVITY).left_out) == {"usage of keys of one's own, paid to their provider": 1}


def test_negative_amounts_are_set_aside_with_their_line() -> None:
    export = read(samples.CUR_LEGACY)
    assert [(aside.place, aside.reason) for aside in export.asides] == [
        (6, "`line_item_unblended_cost` is negative: `-0.50`")
    ]
    assert export.aside_count == 1


CSV_HEAD = "usage_date_utc,model_version,workspace,usage_input_tokens_no_cache,usage_output_tokens\n"
GOOD = "2026-03-01,claude-x,w,10,20\n"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("2026-03-01,claude-x,w,-10,20\n", "is negative"),
        ("2026-03-01,claude-x,w,ten,20\n", "is no number"),
        ("2026-03-01,claude-x,w,NaN,20\n", "is no number"),
        ("2026-03-01,claude-x,w,Infinity,20\n", "is no number"),
        ("2026-03-01,claude-x,w,10.5,20\n", "fraction of a token"),
        ("2026-03-01,claude-x,w,1e16,20\n", "absurd"),
        ("2026-03-01,claude-x,w,1e99999,20\n", "absurd"),
        ("yesterday,claude-x,w,10,20\n", "is no day"),
        ("1066-10-14,claude-x,w,10,20\n", "no day of this century"),
        (",claude-x,w,10,20\n", "there is no `starting_at`"),
        ("2026-03-01,claude-x,w,10\n", "4 fields instead of 5"),
        ("2026-03-01,claude-x,w,10,20,30\n", "6 fields instead of 5"),
        ("2026-03-01,cl\x07ude,w,10,20\n", "a name is no name"),
        ('2026-03-01,"claude"x,w,10,20\n', "expected after"),
    ],
)
def test_a_broken_line_is_reported_and_nothing_of_it_counts(line: str, reason: str) -> None:
    export = read(CSV_HEAD + GOOD + line + GOOD)
    assert export.aside_count == 1
    assert export.asides[0].place == 3
    assert reason in export.asides[0].reason
    assert figures(export) == {("claude-x", "input"): ("20", None), ("claude-x", "output"): ("40", None)}


def test_of_a_line_whose_currency_nobody_knows_nothing_counts() -> None:
    text = samples.FOCUS_CSV.replace("1.25,acct,USD", "1.25,acct,EUR")
    export = read(text)
    assert ("claude-opus-4-6", "input") not in figures(export)
    assert any("no exchange rate for `EUR`" in aside.reason for aside in export.asides)
    known = read(text, to_usd=lambda currency, day: Decimal("1.1") if currency == "EUR" else Decimal(1))
    assert figures(known)["claude-opus-4-6", "input"] == ("500000", "1.375")


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (["hello\n"], "no export"),
        (["a,b\n1,2\n"], "none of the exports that are known"),
        ([""], "no export"),
        (["{"], "is no JSON"),
        (['{"data": [{"starting_at": NaN, "results": []}]}'], "is no JSON"),
        (["[" * 100_000], "is no JSON"),
        ([b"PAR1 but no more"], "no sound Parquet"),
        ([gzip.compress(samples.FOCUS_CSV.encode())[:-20]], "compressed, and broken"),
        ([samples.FOCUS_CSV, samples.FOCUS_CSV], "`file1` is `file0`"),
        ([CSV_HEAD + "yesterday,claude-x,w,10,20\n"], "no line that can be read"),
        (["a" * 2_000_000], "a line of over"),
    ],
)
def test_files_of_which_nothing_can_be_made(contents: list[str | bytes], message: str) -> None:
    with pytest.raises(UnreadableFile, match=message):
        read(*contents)


def test_the_source_can_be_told() -> None:
    assert read(samples.CUR_2, source="cur").files == {"file0": "cur"}
    with pytest.raises(UnreadableFile, match="no line that can be read as `focus`"):
        read(samples.CUR_2, source="focus")
    with pytest.raises(UnreadableFile, match="no kind of export"):
        read(samples.CUR_2, source="invoice")


def test_too_many_lines_are_refused() -> None:
    with pytest.raises(UnreadableFile, match="more than 2 lines"):
        read(CSV_HEAD + GOOD * 3, max_lines=2)


@pytest.mark.parametrize("packed", [False, True])
def test_csv_json_and_parquet_say_the_same(packed: bool) -> None:
    wrap = gzip.compress if packed else bytes
    plain = read(samples.FOCUS_CSV)
    table = pyarrow.csv.read_csv(io.BytesIO(samples.FOCUS_CSV.encode()))
    parquet = io.BytesIO()
    pyarrow.parquet.write_table(table, parquet)
    assert figures(read(wrap(samples.FOCUS_CSV.encode()))) == figures(plain)
    assert figures(read(parquet.getvalue())) == figures(plain)
    assert figures(read(samples.FOCUS_CSV.replace("\n", "\r\n").encode("utf-8-sig"))) == figures(plain)


def test_lines_of_json_are_read_one_by_one() -> None:
    lines = [samples.OPENROUTER_GENERATION, '{"data": {"id"', samples.OPENROUTER_GENERATION.replace("gen-1", "gen-2")]
    export = read("\n".join(lines))
    assert figures(export)["meta-llama/llama-4-scout", "output"] == ("196", None)
    assert [aside.place for aside in export.asides] == [2]


def test_a_record_that_stands_in_two_files_counts_once() -> None:
    one = samples.OPENROUTER_GENERATION
    export = read(f"[{one}]", f"[{one}, {one.replace('gen-1', 'gen-2')}]")
    assert figures(export)["meta-llama/llama-4-scout", "output"] == ("196", None)
    assert dict(export.left_out) == {"records that stand in two files, counted once": 1}


def test_equal_lines_of_one_file_are_two_lines() -> None:
    assert figures(read(CSV_HEAD + GOOD + GOOD))["claude-x", "input"] == ("20", None)


def test_the_last_page_is_missed() -> None:
    more = samples.OPENAI_USAGE_JSON.replace('"has_more": false', '"has_more": true')
    assert read(more).is_incomplete
    assert not read(more, samples.OPENAI_USAGE_JSON).is_incomplete
    assert not read(samples.OPENAI_USAGE_CSV).is_incomplete


def test_a_page_on_which_nothing_is_left() -> None:
    assert figures(read(samples.OPENAI_USAGE_JSON, '{"data": [], "has_more": false}')) == figures(
        read(samples.OPENAI_USAGE_JSON)
    )


def test_an_empty_day_is_covered() -> None:
    assert read(samples.OPENAI_USAGE_JSON).last == date(2026, 3, 2)
    assert read(samples.OPENAI_COSTS_CSV).last == date(2026, 3, 2)


def test_a_line_of_a_month_is_of_many_days() -> None:
    text = samples.FOCUS_CSV.replace("2026-03-02T00:00:00Z,2026-03-01", "2026-04-01T00:00:00Z,2026-03-01")
    assert read(text).days_a_line == 31
    assert read(samples.FOCUS_CSV).days_a_line == 1


def test_lines_of_other_accounts_are_left_out() -> None:
    text = CSV_HEAD + GOOD + "2026-03-01,claude-x,elsewhere,10,20\n"
    export = read(text, account="w*")
    assert figures(export)["claude-x", "input"] == ("10", None)
    assert export.left_out["lines of other accounts"] == 2


def test_days_are_those_of_the_zone() -> None:
    hourly = samples.CUR_2
    assert next(iter(read(hourly, zone=ZoneInfo("America/Los_Angeles")).sums)).day == date(2026, 2, 28)
    assert next(iter(read(hourly).sums)).day == DAY


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ("gpt-4o, input", ("gpt-4o", "input")),
        ("gpt-4o, cached input", ("gpt-4o", "cache_read")),
        ("gpt-5.6, cache writes", ("gpt-5.6", "cache_write")),
        ("gpt-realtime, audio output", ("gpt-realtime", "output")),
        ("ft:gpt-4o-mini-2024-07-18:org::a1, input", ("ft:gpt-4o-mini-2024-07-18:org::a1", "input")),
        ("priority | gpt-5.2, output, long context", ("gpt-5.2", "output")),
        ("code interpreter sessions", (None, "other")),
        (None, (None, "total")),
    ],
)
def test_line_items(item: str | None, expected: tuple[str | None, str]) -> None:
    assert item_of(item) == expected


@pytest.mark.parametrize(
    ("usage_type", "product", "model", "meter"),
    [
        ("USE1-Claude4.6Opus-input-tokens", None, "Claude4.6Opus", "input"),
        ("USE1-Claude4.6Opus-cache-write-input-token-count", None, "Claude4.6Opus", "cache_write"),
        ("USE1-Nova2.0Pro-text-input-tokens-priority-cross-region-global", None, "Nova2.0Pro", "input"),
        ("EU-Qwen3-VL-235B-A22B-output-tokens", None, "Qwen3-VL-235B-A22B", "output"),
        ("USW2-openai.gpt-oss-120b-mantle-input-tokens-standard", None, "openai.gpt-oss-120b", "input"),
        ("USW2-MP:USW2_CacheReadInputTokenCount-Units", "Claude X (Amazon Bedrock Edition)", "Claude X", "cache_read"),
        ("USW2-MP:USW2_input_tokens_long_ctx-Units", "Claude X (Amazon Bedrock Edition)", "Claude X", "input"),
        ("USE1-Llama-ProvisionedThroughput-ModelUnits", None, None, "other"),
    ],
)
def test_usage_types(usage_type: str, product: str | None, model: str | None, meter: str) -> None:
    assert (model_of(usage_type, product), meter_of(usage_type)) == (model, meter)


@pytest.mark.parametrize(
    ("unit", "scale"),
    [("1K tokens", 3), ("1M tokens", 6), ("Tokens", 0), ("1000 Tokens", 3), ("1,000,000 Tokens", 6), ("Hrs", None)]
    + [("Units", None), ("250 Tokens", None), (None, None)],
)
def test_units(unit: str | None, scale: int | None) -> None:
    assert scale_of(unit) == scale


def test_a_stream_is_read_without_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """CSV is read as it comes: a million lines need no more memory than one."""
    line = GOOD.encode()

    class Endless(io.RawIOBase):
        def __init__(self) -> None:
            self._left = [CSV_HEAD.encode(), *[line] * 3]
            self.read_lines = 0

        def readline(self, size: int = -1, /) -> bytes:  # type: ignore[override]  # None of RawIOBase is for sockets
            self.read_lines += 1
            return self._left.pop(0) if self._left else b""

        def read(self, size: int = -1, /) -> bytes:
            return b""

        def seek(self, offset: int, whence: int = 0, /) -> int:
            return 0

    content = Endless()
    export = read_exports([ExportFile("stream", content)], zone=UTC)  # type: ignore[arg-type]  # as far as it is used
    assert content.read_lines == 5
    assert figures(export)["claude-x", "input"] == ("30", None)
