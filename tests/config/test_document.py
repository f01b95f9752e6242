import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest

from gateway.config.document import MAX_FILE_BYTES, Document, quoted, read_document
from gateway.errors import ConfigError

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write files by name into an empty working directory's `conf`, and return it."""
    monkeypatch.chdir(tmp_path)

    def write(**files: str) -> Path:
        folder = Path("conf")
        folder.mkdir(exist_ok=True)
        for name, text in files.items():
            (folder / f"{name}.yaml").write_text(text)
        return folder

    return write


def mistakes(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_document(path)
    assert all(mistake.hint for mistake in caught.value.mistakes)
    return [f"{mistake.file}:{mistake.line}: {mistake.message}" for mistake in caught.value.mistakes]


def test_scalars_follow_yaml_1_2(write: Write) -> None:
    text = """
    texts: [no, on, Yes, 2024-01-01, 1:30, 1_000, "7", .inf, =]
    numbers: [010, -3, 0.150, 1e3, .5]
    others: [true, FALSE, null, ~, ]
    1: key
    true: key
    """
    data = read_document(write(a=text)).data
    assert data["texts"] == ["no", "on", "Yes", "2024-01-01", "1:30", "1_000", "7", ".inf", "="]
    assert data["numbers"] == [10, -3, Decimal("0.150"), Decimal(1000), Decimal("0.5")]
    assert str(data["numbers"][2]) == "0.150"
    assert data["others"] == [True, False, None, None]
    assert data["1"] == data["true"] == "key"


def test_every_key_and_item_has_its_place(write: Write) -> None:
    folder = write(
        a="version: 1\nendpoints:\n  one:\n    provider: p\nroutes:\n  - policy: x\n  - policy:\n      y\n",
        b="# second file\nendpoints:\n  two: {provider: p,\n    region: eu}\nroutes: [{policy: z}]\nteams: {t: {}}\n",
    )
    document = read_document(folder)
    assert document.data == {
        "version": 1,
        "endpoints": {"one": {"provider": "p"}, "two": {"provider": "p", "region": "eu"}},
        "routes": [{"policy": "x"}, {"policy": "y"}, {"policy": "z"}],
        "teams": {"t": {}},
    }
    places = {
        ("version",): ("conf/a.yaml", 1),
        ("endpoints",): ("conf/a.yaml", 2),
        ("endpoints", "one", "provider"): ("conf/a.yaml", 4),
        ("endpoints", "two"): ("conf/b.yaml", 3),
        ("endpoints", "two", "region"): ("conf/b.yaml", 4),
        ("routes", 0): ("conf/a.yaml", 6),
        ("routes", 1, "policy"): ("conf/a.yaml", 7),
        ("routes", 2): ("conf/b.yaml", 5),
        ("routes", 2, "policy"): ("conf/b.yaml", 5),
        ("teams", "t"): ("conf/b.yaml", 6),
        ("endpoints", "two", "nowhere", 3): ("conf/b.yaml", 3),  # the nearest one around it
        ("nowhere",): ("conf/a.yaml", 1),
    }
    assert {path: document.where(path) for path in places} == places


def test_a_folder_is_read_in_order_and_not_recursively(write: Write) -> None:
    folder = write(b="routes: [{name: second}]", a="version: 1\nroutes: [{name: first}]")
    (folder / "c.yml").write_text("version: 1\nroutes: [{name: third}]")
    (folder / ".hidden.yaml").write_text("version: 2")
    (folder / "notes.txt").write_text("version: 3")
    (folder / "more.yaml").mkdir()
    (folder / "deeper").mkdir()
    (folder / "deeper" / "d.yaml").write_text("version: 4")
    document = read_document(folder)
    assert document.data == {"version": 1, "routes": [{"name": "first"}, {"name": "second"}, {"name": "third"}]}
    assert read_document(folder / "c.yml").data["routes"] == [{"name": "third"}]


def test_one_id_in_two_files_is_a_mistake_at_both_places(write: Write) -> None:
    folder = write(
        a="version: 1\npolicies:\n  cheap: {endpoints: [a]}\nserver: {max_body_bytes: 5000}\n",
        b="version: 2\npolicies:\n  other: {}\n  cheap: {endpoints: [a]}\nserver: {max_body_bytes: 5000}\n",
        c="policies: [a]\n",
    )
    found = [f"{mistake.file}:{mistake.line}: {mistake.message}" for mistake in read_document(folder).mistakes]
    assert found == [
        "conf/b.yaml:1: `version` is already defined at conf/a.yaml:1",
        "conf/b.yaml:4: `policies.cheap` is already defined at conf/a.yaml:3",
        "conf/c.yaml:1: `policies` is already defined at conf/a.yaml:2",
    ]


def test_a_key_written_twice_is_a_mistake(write: Write) -> None:
    document = read_document(write(a="providers:\n  x: {adapter: a}\n  y: {}\n  x: {adapter: b}\n"))
    (mistake,) = document.mistakes
    assert (mistake.file, mistake.line) == ("conf/a.yaml", 4)
    assert mistake.message == "`x` is written twice: here and at conf/a.yaml:2"
    assert document.data["providers"]["x"] == {"adapter": "a"}


def test_aliases_and_merges(write: Write) -> None:
    text = """\
one: &one {a: 1, b: 2}
two: &two {<<: *one, b: 3}
three: {<<: [*two, {c: 9}], d: 4}
list: [*one, *one]
"""
    document = read_document(write(a=text))
    assert document.data["two"] == {"b": 3, "a": 1}
    assert document.data["three"] == {"d": 4, "b": 3, "a": 1, "c": 9}
    assert document.data["list"] == [{"a": 1, "b": 2}] * 2
    assert document.where(("three", "a")) == ("conf/a.yaml", 1)
    assert document.mistakes == ()


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGED_LAUGHS = "a: &a {x: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 9)}]}}\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\n\tb: 2\n", "2: not valid YAML: found character '\\t' that cannot start any token"),
        ("a: 1\nb: [1, 2\n", "3: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("a: b: c\n", "1: not valid YAML: mapping values are not allowed here"),
        ("a: {k: ${X}}\n", "1: not valid YAML: expected ',' or '}', but got '{'"),
        (
            "a: 1\n---\nb: 2\n",
            "2: not valid YAML: expected a single document in the stream, but found another document",
        ),
        ("a: 1\n---\n", "2: not valid YAML: expected a single document in the stream, but found another document"),
        ("a: *sk-secret\n", "1: not valid YAML: found undefined alias"),
        ("a: 1\nb: !!python/object/apply:os.system [id]\n", "2: tags are not supported"),
        ("a: !sk-secret x\n", "1: tags are not supported"),
        ("a: !!binary aGVsbG8=\n", "1: tags are not supported"),
        ("a: !!set {x}\n", "1: tags are not supported"),
        ("a: !!int seven\n", "1: not a number"),
        ("a: !!float .nan\n", "1: not a number"),
        ("a: 1\nb: " + "9" * 5000, "2: number out of range"),
        ("a: 1e400\n", "1: number out of range"),
        ("a: 1e99999999999999999999\n", "1: not a number"),
        ("[a, b]\n", "1: the document must be a mapping"),
        ("just text\n", "1: the document must be a mapping"),
        ("? [a, b]\n: c\n", "1: a key must be text"),
        ("a: 1\nb: 'x\0y'\n", "2: a control character, or no character at all"),
        ('a: 1\nb: "x\\0y"\n', "2: a control character, or no character at all"),
        ('a: "\\ud800"\n', "1: a control character, or no character at all"),
        ('a: 1\nb: "\\UFFFFFFFF"\n', "2: a control character, or no character at all"),
        (LAUGHS, "1: more than 50000 values"),
        (MERGED_LAUGHS, "1: more than 50000 values"),
        ("a: &a " + "x" * 1000 + "\nb: [" + "*a, " * 5000 + "]\n", "1: more than 4096 KiB of text"),
        ("a: &a [*a]\n", "1: nested too deeply"),
        ("a: &a {<<: *a}\n", "1: nested too deeply"),
        ("a: {<<: [1]}\n", "1: `<<` takes a mapping"),
        ("a: " + "[" * 100_000, "1: not valid YAML: nested too deeply"),
        ("a:\n" + "".join(" " * depth + "a:\n" for depth in range(1, 60)), "32: not valid YAML: nested too deeply"),
        ("a: " + "x" * MAX_FILE_BYTES, "1: larger than 1024 KiB"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else None,
)
def test_hostile_and_broken_files(write: Write, text: str, message: str) -> None:
    assert mistakes(write(a=text)) == [f"conf/a.yaml:{message}"]


def test_values_are_bounded_over_all_files(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.config.document.MAX_VALUES", 1000)
    numbers = "1, " * 600
    assert len(read_document(write(a=f"a: [{numbers}]")).data["a"]) == 600
    assert mistakes(write(a=f"a: [{numbers}]", b=f"b: [{numbers}]")) == [
        "conf/b.yaml:1: not valid YAML: too many values"
    ]


def test_a_file_that_is_not_utf8(write: Write) -> None:
    folder = write()
    (folder / "a.yaml").write_bytes(b"a: 1\nb: \xff\n")
    assert mistakes(folder) == ["conf/a.yaml:2: not UTF-8 text"]


def test_a_byte_order_mark_is_skipped(write: Write) -> None:
    folder = write()
    (folder / "a.yaml").write_bytes(b"\xef\xbb\xbfversion: 1\n")
    assert read_document(folder).data == {"version": 1}


def test_every_unreadable_file_is_listed(write: Write) -> None:
    assert mistakes(write(a="a: [", b="version: 1", c="c: ]")) == [
        "conf/a.yaml:1: not valid YAML: expected the node content, but found '<stream end>'",
        "conf/c.yaml:1: not valid YAML: expected the node content, but found ']'",
    ]


def test_paths_that_hold_nothing(write: Write) -> None:
    folder = write()
    assert mistakes(folder) == ["conf:1: the folder holds no `*.yaml` file"]
    assert mistakes(folder / "missing.yaml") == ["conf/missing.yaml:1: no such file or folder"]
    assert mistakes(Path("/dev/null")) == ["/dev/null:1: neither a file nor a folder"]


def test_too_many_files(write: Write) -> None:
    assert mistakes(write(**{f"f{number}": "" for number in range(101)})) == ["conf:1: more than 100 files"]


def test_a_file_of_comments_is_empty(write: Write) -> None:
    assert read_document(write(a="# nothing yet\n")).data == {}


def test_json_keeps_data_and_version(write: Write) -> None:
    document = read_document(write(a="version: 1\nprice: {input: 0.15, tiny: 0.000000000001, whole: 2.0}\ntext: ü\n"))
    copy = Document.from_json(document.to_json(), "stored")
    assert copy.data == document.data
    assert isinstance(copy.data["price"]["input"], Decimal) and str(copy.data["price"]["input"]) == "0.15"
    assert copy.version == document.version and len(copy.version) == 12
    assert json.loads(document.to_json())["price"]["input"] == 0.15
    assert copy.where(("price", "input")) == ("stored", 1)
    with pytest.raises(ConfigError):
        Document.from_json(b"[1]")


def test_the_version_depends_on_content_alone(write: Write) -> None:
    version = read_document(write(a="version: 1\nteams: {a: {}, b: {}}\n")).version
    assert read_document(write(a="# moved\nteams: {b: {}, a: {}}\n\nversion: 1\n")).version == version
    assert read_document(write(a="version: 1\nteams: {a: {}, c: {}}\n")).version != version


def test_repr_does_not_show_the_data() -> None:
    assert "sk-secret" not in repr(Document(data={"providers": {"x": {"api_key": "sk-secret"}}}))


def test_quoted_text_stays_on_one_line() -> None:
    assert quoted("a\nb`c\x1b[31m") == "`a?b?c?[31m`"
    assert len(quoted("x" * 1000)) < 130
