"""What `${...}` stands for: the environment, files, stored secrets; and that nothing of it shows."""

import os
from pathlib import Path

import pytest

from gateway.config.check import check_report
from gateway.config.compiler import compile_configuration
from gateway.config.model import Provider
from gateway.config.settings import environment_variables, load_settings
from gateway.config.variables import MAX_FILE, Variables, variables_in
from gateway.history import masked
from gateway.secrets import Cipher, ensure_keys, publish
from tests.config.documents import read

KEY = "sk-live-51c0ffee00112233"


def store(home: Path, **secrets: str) -> None:
    home.mkdir(exist_ok=True)
    cipher = Cipher(ensure_keys(home, None))
    publish(home, [cipher.seal(name, value) for name, value in secrets.items()])


def provider(written: str, variables: Variables | dict[str, str]) -> Provider:
    text = f"version: 1\nproviders: {{p: {{adapter: openai, api_key: '{written}'}}}}\n"
    return compile_configuration(read(text), variables).providers["p"]


def test_each_source(tmp_path: Path) -> None:
    (tmp_path / "openai").write_text(f"{KEY}-file\n")
    store(tmp_path / "home", openai=f"{KEY}-stored")
    variables = Variables({"KEY": f"{KEY}-env"}, tmp_path / "home")
    for written, end in (("${KEY}", "env"), (f"${{file:{tmp_path}/openai}}", "file"), ("${secret:openai}", "stored")):
        found = provider(written, variables)
        assert found.api_key is not None and found.api_key.reveal() == f"{KEY}-{end}"
        assert found.missing is None
    several = provider("Bearer ${secret:openai}/${KEY}${NONE:-x}", variables).api_key
    assert several is not None and several.reveal() == f"Bearer {KEY}-stored/{KEY}-envx"


def test_a_file_is_read_again_with_each_compilation(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("one")
    written = f"${{file:{path}}}"
    first = provider(written, Variables({}, tmp_path)).api_key
    path.write_text("two")
    second = provider(written, Variables({}, tmp_path)).api_key
    assert first is not None and second is not None
    assert (first.reveal(), second.reveal()) == ("one", "two")


def bad_files(folder: Path) -> dict[str, str]:
    (folder / "empty").write_text(" \n")
    (folder / "long").write_bytes(b"k" * (MAX_FILE + 1))
    (folder / "binary").write_bytes(b"\xff\xfe")
    (folder / "lines").write_text("one\ntwo")
    os.mkfifo(folder / "pipe")
    return {
        "none": "cannot be read: no such file or directory",
        "empty": "is empty",
        "long": "cannot be read: larger than 64 KiB",
        "binary": "cannot be read: not UTF-8 text",
        "lines": "cannot be sent in a header",
        "pipe": "cannot be read: not a file",
        "": "cannot be read: not a file",  # the folder
    }


def test_a_file_that_cannot_be_used_leaves_the_provider_out(tmp_path: Path) -> None:
    for name, reason in bad_files(tmp_path).items():
        found = provider(f"${{file:{tmp_path}/{name}}}", Variables({}, tmp_path))
        assert found.api_key is None
        assert found.missing == f"`file:{tmp_path}/{name}` {reason}"
    longest = tmp_path / "longest"
    longest.write_bytes(b"k" * MAX_FILE)
    assert provider(f"${{file:{longest}}}", Variables({}, tmp_path)).missing is None


def test_a_secret_that_cannot_be_used_leaves_the_provider_out(tmp_path: Path) -> None:
    assert provider("${secret:openai}", Variables({}, tmp_path)).missing == "`secret:openai` is not set"
    store(tmp_path, openai=KEY)
    (tmp_path / "secret.key").unlink()
    missing = provider("${secret:openai}", Variables({}, tmp_path)).missing
    assert missing is not None and missing.startswith("`secret:openai` cannot be read: there is no key for secrets")
    ensure_keys(tmp_path, None)
    missing = provider("${secret:openai}", Variables({}, tmp_path)).missing
    assert missing is not None and "cannot be read: it is encrypted with the key" in missing
    (tmp_path / "published" / "secrets.json").write_text("{")
    missing = provider("${secret:openai}", Variables({}, tmp_path)).missing
    assert missing == "`secret:openai` cannot be read: the published secrets cannot be read"


def test_all_reasons_stand_in_one_line(tmp_path: Path) -> None:
    found = provider("${A}${file:/none}${B}${secret:c}", Variables({}, tmp_path))
    assert found.missing == ("`A`, `B`, `secret:c` are not set; `file:/none` cannot be read: no such file or directory")


@pytest.mark.parametrize(
    "written", ["${file:}", "${secret:}", "${secret:a b}", "${secret:../x}", "${vault:x}", "${file:a"]
)
def test_what_is_no_variable(written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = f"version: 1\nproviders:\n  p: {{adapter: openai, api_key: '{written}'}}\n"
    Path("c.yaml").write_text(text)
    status, lines = check_report(Path("c.yaml"), Variables({}, tmp_path))
    assert status == 2
    assert lines[0] == "c.yaml:3: `providers.p.api_key` holds a `${` that is no variable"


def test_the_check_says_how_to_set_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, remedy in (
        ("KEY", "set it in the environment"),
        ("file:/none", "mend the file"),
        ("secret:none", "store it with `hatchway secrets set NAME`"),
    ):
        Path("c.yaml").write_text(f"version: 1\nproviders:\n  p: {{adapter: openai, api_key: '${{{name}}}'}}\n")
        status, lines = check_report(Path("c.yaml"), Variables({}, tmp_path))
        assert status == 0 and f"hint: {remedy}, or remove the provider and its endpoints" in lines


def test_the_names_of_variables() -> None:
    assert variables_in("${A}${file:/run/a:b}${secret:c.d-e}${F:-g}") == ["A", "file:/run/a:b", "secret:c.d-e", "F"]
    assert variables_in("${file:/a:-${B}}") == ["B"]


def test_the_gateway_s_own_secrets_are_for_no_provider(tmp_path: Path) -> None:
    own = {"HATCHWAY_ADMIN_KEY": "a", "HATCHWAY_SECRET_KEY": "b", "HATCHWAY_DATABASE_URL": "c"}
    variables = Variables({**own, "OTHER": "d"}, tmp_path)
    for name in own:
        assert provider(f"${{{name}}}", variables).missing == f"`{name}` is not set"
    assert provider("${OTHER}", variables).missing is None


def test_the_process_s_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(tmp_path, openai=KEY)
    monkeypatch.setenv("HATCHWAY_HOME", str(tmp_path))
    monkeypatch.setenv("PLAIN", "text")
    variables = environment_variables()
    assert variables["secret:openai"] == KEY and variables["PLAIN"] == "text"
    assert "secret:other" not in variables and variables.get("file:/none") is None
    monkeypatch.setenv("HATCHWAY_SECRET_KEY", "not base64!")
    settings = load_settings()
    assert settings.secret_key is not None and settings.secret_key.reveal() == "not base64!"
    assert "not base64" not in repr(settings)
    assert provider("${secret:openai}", environment_variables()).missing is not None


def test_nothing_shows_a_value(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    store(tmp_path, openai=KEY)
    variables = Variables({"KEY": KEY}, tmp_path)
    text = "version: 1\nproviders:\n"
    for index, name in enumerate(("KEY", f"file:{tmp_path}/key", "secret:openai")):
        text += f"  p{index}: {{adapter: openai, api_key: '${{{name}}}'}}\n"
    document = read(text)
    configuration = compile_configuration(document, variables)
    assert [provider.missing for provider in configuration.providers.values()] == [None] * 3
    content, is_complete = masked(document)
    assert is_complete  # a name of a file or a secret is not itself one, so a rollback needs no more
    for shown in (repr(variables), str(variables), repr(configuration), content.decode(), repr(variables._vault)):
        assert KEY not in shown
    published = (tmp_path / "published" / "secrets.json").read_text()
    assert "openai" in published and KEY not in published


def test_a_default_of_a_variable_is_a_secret_written_in_the_yaml() -> None:
    document = read(f"version: 1\nproviders: {{p: {{adapter: openai, api_key: '${{secret:a:-{KEY}}}'}}}}\n")
    content, is_complete = masked(document)
    assert not is_complete and KEY not in content.decode()


@pytest.mark.parametrize(("section", "field"), [("alerts", "secret"), ("oidc", "client_secret")])
def test_other_secrets_of_the_yaml_are_masked(section: str, field: str) -> None:
    content, is_complete = masked(read(f"version: 1\n{section}: {{other: x, {field}: {KEY}}}\n"))
    assert not is_complete and KEY not in content.decode() and b'"other":"x"' in content
    assert masked(read(f"version: 1\n{section}: {{{field}: '${{secret:name}}'}}\n"))[1]
