"""Settings from the environment, over a mounted file, over defaults; what is wrong is named."""

from pathlib import Path

import pytest
from trainyard_operator.__main__ import main
from trainyard_operator.settings import SETTINGS_FILE, SettingsError, load_settings


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "settings.yaml"
    monkeypatch.setenv(SETTINGS_FILE, str(path))
    return path


def test_the_environment_wins_over_the_file_and_the_file_over_the_default(file: Path, monkeypatch: pytest.MonkeyPatch):
    file.write_text("workers: 3\nlease_seconds: 7\nwatch_namespaces: [a, b]\ntrainer_env: {HTTPS_PROXY: http://p}\n")
    monkeypatch.setenv("TRAINYARD_WORKERS", "5")
    settings = load_settings()
    assert (settings.workers, settings.lease_seconds, settings.resync_seconds) == (5, 7.0, 600.0)
    assert settings.watch_namespaces == ("a", "b")
    assert settings.trainer_env == {"HTTPS_PROXY": "http://p"}
    assert load_settings(workers=9).workers == 9


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("worker: 3", "worker; did you mean workers?"),
        ("- workers", "a mapping of settings"),
        ("workers: [", "cannot be read"),
        ("workers: 0", "workers: Input should be greater than or equal to 1"),
        ("log_level: LOUD", "log_level"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(file: Path, content: str, said: str):
    file.write_text(content)
    with pytest.raises(SettingsError) as error:
        load_settings()
    assert said in str(error.value)


def test_a_file_that_is_not_there_and_a_list_that_is_no_json_end_with_a_sentence(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert str(file) in capsys.readouterr().err
    file.write_text("")
    monkeypatch.setenv("TRAINYARD_MACHINE_TYPES", "a100")
    with pytest.raises(SystemExit):
        main([])
    assert "machine_types" in capsys.readouterr().err
