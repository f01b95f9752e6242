import os
import socket
import stat
from pathlib import Path

import pytest

from gateway.config.model import Secret
from gateway.config.settings import Settings, environment_variables, load_settings, shipped


def test_every_variable_is_read(tmp_path: Path) -> None:
    settings = load_settings(
        {
            "HATCHWAY_CONFIG": str(tmp_path / "own.yaml"),
            "HATCHWAY_DATABASE_URL": "postgresql://user:hunter2@host/db",
            "HATCHWAY_HOME": str(tmp_path / "home"),
            "HATCHWAY_ADMIN_KEY": "admin-secret",
        }
    )
    assert settings == Settings(
        config_path=tmp_path / "own.yaml",
        home=tmp_path / "home",
        database_url=Secret("postgresql://user:hunter2@host/db"),
        admin_key=Secret("admin-secret"),
    )
    assert "hunter2" not in repr(settings) and "admin-secret" not in repr(settings)


def test_empty_variables_count_as_unset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("HATCHWAY_CONFIG", "HATCHWAY_DATABASE_URL", "HATCHWAY_HOME", "HATCHWAY_ADMIN_KEY")
    assert load_settings(dict.fromkeys(names, "")) == load_settings({})
    settings = load_settings({})
    assert (settings.database_url, settings.admin_key) == (None, None)
    assert settings.home == Path.home() / ".hatchway"


def test_the_argument_wins_over_the_variable(tmp_path: Path) -> None:
    settings = load_settings({"HATCHWAY_CONFIG": "/elsewhere"}, config=tmp_path)
    assert settings.config_path == tmp_path


def test_the_working_directory_is_asked_before_the_shipped_policies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_settings({}).config_path == shipped("policies")
    (tmp_path / "policies").mkdir()
    assert load_settings({}).config_path == tmp_path / "policies"


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HATCHWAY_HOME", "/srv/hatchway")
    assert load_settings().home == Path("/srv/hatchway")
    assert environment_variables()["HATCHWAY_HOME"] == "/srv/hatchway"


def test_shipped_folders() -> None:
    assert (shipped("policies") / "default.yaml").is_file()
    assert shipped("migrations").name == "migrations"


def test_shipped_lies_inside_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "gateway" / "config" / "settings.py"
    (tmp_path / "gateway" / "policies").mkdir(parents=True)
    monkeypatch.setattr("gateway.config.settings.__file__", str(module))
    assert shipped("policies") == tmp_path.resolve() / "gateway" / "policies"
    with pytest.raises(FileNotFoundError, match="hint: install the distribution again"):
        shipped("migrations")


def test_prepare_makes_private_folders(tmp_path: Path) -> None:
    settings = Settings(config_path=tmp_path, home=tmp_path / "deep" / "home")
    old = os.umask(0)
    try:
        settings.prepare()
        settings.prepare()  # again: nothing to do
    finally:
        os.umask(old)
    home_mode = 0o711 if os.geteuid() == 0 else 0o700  # embedded PostgreSQL of root must pass through
    assert stat.S_IMODE(settings.home.stat().st_mode) == home_mode
    for folder in (settings.spool_dir, settings.models_dir, settings.run_dir):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert settings.models_dir == settings.home / "models"
    assert not settings.database_dir.exists()


def test_prepare_keeps_the_mode_of_a_home_that_exists(tmp_path: Path) -> None:
    home = tmp_path / "shared"
    home.mkdir()
    home.chmod(0o755)
    Settings(config_path=tmp_path, home=home).prepare()
    assert stat.S_IMODE(home.stat().st_mode) == 0o755


def test_sockets_fit_under_a_short_home(monkeypatch: pytest.MonkeyPatch) -> None:
    fits = Path("/" + "h" * (107 - 40 - 1 - len("/run") - 1))
    assert Settings(config_path=fits, home=fits).run_dir == fits / "run"
    too_long = Path(str(fits) + "h")
    assert Settings(config_path=fits, home=too_long).run_dir.parent != too_long


def test_sockets_move_to_the_temp_directory_under_a_long_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / ("long" * 30)
    settings = Settings(config_path=tmp_path, home=home)
    settings.prepare()
    try:
        assert len(os.fsencode(settings.run_dir)) + 1 + 40 <= 107
        assert stat.S_IMODE(settings.run_dir.stat().st_mode) == 0o700
        assert settings.run_dir != Settings(config_path=tmp_path, home=home.parent / ("other" * 30)).run_dir
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(settings.run_dir / ("s" * 40)))
        (settings.run_dir / ("s" * 40)).unlink()
        settings.run_dir.chmod(0o755)
        with pytest.raises(PermissionError, match="not a private folder.*\nhint: "):
            settings.prepare()
        settings.run_dir.rmdir()
        settings.run_dir.symlink_to(tmp_path)
        with pytest.raises(PermissionError, match="not a private folder"):
            settings.prepare()
        settings.run_dir.unlink()
        settings.prepare()
    finally:
        settings.run_dir.rmdir()
