"""Rule: every setting is declared once, checked once, and wrong ones are named with what they take."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest

from trio_claude.commands.settings import load, strange_variables
from trio_claude.config import Config
from trio_claude.engine import open_engine
from trio_claude.errors import ConfigError
from trio_claude.server import open_server
from trio_claude.workplace import inherited


def toml(folder: Path, text: str) -> Path:
    file = folder / "server.toml"
    file.write_text(text)
    return file


def test_the_defaults_are_those_of_the_contract() -> None:
    config = Config()
    assert (config.host, config.port, config.timeout, config.profile) == ("127.0.0.1", 3000, 300, "approve")
    assert (config.head_limit, config.head_timeout, config.first_message_timeout) == (16384, 5, 120)
    assert (config.max_message, config.max_line, config.close_timeout) == (65536, 16 * 1024 * 1024, 2)
    assert (config.ping_interval, config.ping_timeout, config.send_timeout) == (10, 10, 120)
    assert (config.result_grace, config.drain_timeout, config.queue_timeout) == (5, 30, 30)
    assert config.run_slots >= 1


def test_flags_beat_the_environment_and_that_beats_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIO_CLAUDE_PORT", "2")
    monkeypatch.setenv("TRIO_CLAUDE_TIMEOUT", "20")
    monkeypatch.setenv("TRIO_CLAUDE_ALLOW_HOST", "a.example,b.example")
    config = load({"port": 1}, toml(folder, "port = 3\ntimeout = 30\nmax_runs = 40\n"))
    assert (config.port, config.timeout, config.max_runs) == (1, 20, 40)
    assert config.allow_host == ("a.example", "b.example")


@pytest.mark.parametrize(("said", "words"), [("", ()), (",", ()), ("A, B ,,C", ("A", "B", "C"))])
def test_a_list_in_a_variable_holds_no_spaces_and_nothing_empty(
    monkeypatch: pytest.MonkeyPatch, said: str, words: tuple[str, ...]
) -> None:
    for name in ("allow_host", "sandbox_read", "env"):
        monkeypatch.setenv(f"TRIO_CLAUDE_{name.upper()}", said)
        assert getattr(load({}), name) == words


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("prot = 1", "prot"),
        ("port = 99999", "port must be from 0 to 65535"),
        ("port = 'x'", r"port takes a whole number, not 'x' \(.*server.toml\)"),
        ("port = 1.5", "port takes a whole number, not 1.5"),
        ("port = true", "port takes a whole number, not True"),
        ("keys = false", r"keys takes a string, not False \(.*server.toml\)"),
        ("state = ['here']", r"state takes a string, not \['here'\]"),
        ("allow_host = [false]", "allow_host takes a list of strings"),
        ("timeout = true", "timeout takes a number, not True"),
        ("metrics = 'perhaps'", "metrics takes true or false, not 'perhaps'"),
        ("allow_host = ['']", "allow_host must not hold an empty string"),
        ("host = ''", "host is empty; 127.0.0.1 is this machine alone"),
        ("allow_host = 3", "allow_host takes a list of strings, not 3"),
        (f"port = '{'x' * 100}'", "port takes a whole number, not 'x{63}… "),
        ("timeout = 0", "timeout must be from 0.01 to 86400 s"),
        ("profile = 'root'", "profile must be one of lean, chat, approve, edit, unattended"),
        ("allow_options = ['sudo']", "allow_options names 'sudo'"),
        ("allow_origin = ['example.com']", "allow_origin takes scheme://host"),
        ('cli_args = "\'"', "cli_args can't be split"),
        ("containment = 'none'", "containment must be one of"),
        ("port = ", "server.toml"),
        (f"max_runs = {'9' * 400}", "max_runs must be from 0 to 100000 runs, not a number of 400 digits"),
        *((f'{name} = "a\\u0000b"', f"{name} must not hold a NUL") for name in ("user", "state", "keys", "cgroup")),
        ('journal = "sqlite:a\\u0000b"', "journal must not hold a NUL"),
        ('env = ["A", "B\\u0000"]', "env must not hold a NUL"),
    ],
)
def test_a_wrong_setting_is_named(folder: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load({}, toml(folder, text))


def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIO_CLAUDE_PORT", "tcp://10.0.0.1:3000")
    with pytest.raises(ConfigError, match=r"port takes a whole number, not 'tcp://10.0.0.1:3000' \(TRIO_CLAUDE_PORT\)"):
        load({})


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"port": "3000"}, "port takes a whole number, not '3000'"),
        ({"port": True}, "port takes a whole number, not True"),
        ({"timeout": "5"}, "timeout takes a number, not '5'"),
        ({"metrics": 1}, "metrics takes true or false, not 1"),
        ({"cwd": Path("/")}, r"cwd takes a string, not PosixPath\('/'\)"),
        ({"profile": None}, "profile takes a string, not None"),
        ({"allow_host": "a.example"}, "allow_host takes a tuple of strings, not 'a.example'"),
        ({"sandbox_read": ("/usr", " ")}, "sandbox_read must not hold an empty string"),
        ({"allow_host": (1,)}, r"allow_host takes a tuple of strings, not \(1,\)"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_in_python_too(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Config(**settings)
    assert Config(timeout=5).timeout == 5


def test_a_variable_that_is_no_setting_is_found() -> None:
    environ = dict.fromkeys(
        ("TRIO_CLAUDE_PORT", "TRIO_CLAUDE_MAX_RUNZ", "TRIO_CLAUDE_KEY", "TRIO_CLAUDE_RUN", "PORT", "TRIO_CLAUDE_keys"),
        "x",
    )
    assert strange_variables(environ) == ["TRIO_CLAUDE_MAX_RUNZ", "TRIO_CLAUDE_keys"]


def test_a_folder_that_is_gone_is_named(folder: Path) -> None:
    """Whoever imports the library there has an error that names nothing."""
    (folder / "gone").mkdir()
    words = [sys.executable, "-m", "trio_claude", "serve", "--port", "0", "--cli", "/bin/true"]
    gone = f"cd {folder}/gone && rmdir {folder}/gone && exec {shlex.join(words)}"
    told = subprocess.run(["/bin/sh", "-c", gone], capture_output=True, text=True, check=False, timeout=30)
    assert (told.returncode, told.stderr) == (
        2,
        "trio-claude: --cwd: the folder that this was started in is gone; start it in another\n",
    )


@pytest.mark.parametrize(("name", "value"), [("cwd", "/\ud800"), ("sandbox_read", ("/usr", "/\ud800"))])
def test_a_path_that_the_locale_can_not_say_is_named(name: str, value: str | tuple[str, ...]) -> None:
    """A file of settings is UTF-8, and names what an older locale has no bytes for."""
    with pytest.raises(
        ConfigError, match=rf"^{name}: '/\\ud800' is no name in utf-8; --config takes it with LC_ALL=C.UTF-8$"
    ):
        load({name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("state", "~/st"), ("keys", "~alice/keys.json"), ("journal", "sqlite:~/j.db"), ("sandbox_read", ("/a", "~"))],
)
def test_a_path_that_only_a_shell_knows_is_named(name: str, value: str | tuple[str, ...]) -> None:
    """No shell reads a file of settings, nor what stands behind `--keys=` or `sqlite:`."""
    with pytest.raises(ConfigError, match=f"^{name}: .*~.* begins with ~"):
        load({name: value})


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^--config /x+: File name too long; name another$"):
        load({}, Path(f"/{'x' * 300}"))
    with pytest.raises(ConfigError, match="no such config file: /nope"):
        load({}, Path("/nope"))


def test_every_setting_says_what_it_is() -> None:
    assert all(field.metadata["help"] for field in attrs.fields(Config))


async def test_what_would_be_unsafe_is_refused() -> None:
    with pytest.raises(ConfigError, match="make keys"):
        async with open_server(Config(host="0.0.0.0")):
            pytest.fail("opened")
    with pytest.raises(ConfigError, match="--allow-unattended"):
        async with open_engine(Config(profile="unattended")):
            pytest.fail("opened")


@pytest.mark.parametrize("settings", [{"profile": "lean"}, {"isolation": "run"}])
def test_where_no_session_is_kept_none_can_be_resumed(settings: dict[str, Any]) -> None:
    offered = Config(**settings).session_offered
    assert not {"resume", "fork"} & set(offered)
    assert "model" in offered
    assert {"resume", "fork"} <= set(Config(isolation="identity").session_offered)


def test_limits_are_named_as_the_system_names_them() -> None:
    assert Config().limits == {"RLIMIT_CORE": 0}
    assert Config(limit_open_files=64, limit_cpu=9).limits == {"RLIMIT_CORE": 0, "RLIMIT_NOFILE": 64, "RLIMIT_CPU": 9}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"redis": "http://localhost"}, "redis must be redis://host"),
        ({"redis": "redis://user:s3cret@"}, "redis must be redis://host"),
        ({"redis": "redis://localhost:99999"}, "redis: no such port"),
        ({"redis": "unix://relative"}, "redis must be redis://host"),
        ({"redis": "redis://localhost", "journal": "memory"}, "journal: with redis it is kept there"),
        ({"redis": "redis://localhost", "journal": "sqlite:runs.db"}, "journal: with redis it is kept there"),
        ({"redis_prefix": "a:b"}, "redis_prefix takes 1 to 64 letters"),
        ({"redis_password_file": "password"}, "redis_password_file needs redis"),
        ({"node_lease": 1.0}, "node_lease must be from 2 to 60 s"),
    ],
)
def test_a_wrong_setting_of_redis_is_named_and_no_password_is_told(settings: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as refused:
        Config(**settings)
    assert "s3cret" not in str(refused.value)


def test_a_number_will_do_for_a_string_and_a_list_of_passwords_is_not_told(folder: Path) -> None:
    assert load({}, toml(folder, "user = 1000")).user == "1000"
    with pytest.raises(ConfigError, match="redis takes a string") as refused:
        load({}, toml(folder, "redis = ['redis://:s3cret@h']"))
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["redis://h", "redis://h:1/2", "redis://:p@h", "rediss://u:p%40@[::1]:9/0", "unix:///run/redis.sock", ""]
)
def test_what_redis_takes(url: str) -> None:
    config = Config(redis=url, journal="auto")
    assert config.redis == url
    assert "p%40" not in repr(config)


def test_no_run_inherits_where_redis_is() -> None:
    environ = {"TRIO_CLAUDE_REDIS": "redis://:s3cret@h", "TRIO_CLAUDE_REDIS_PASSWORD_FILE": "/secret", "PATH": "/bin"}
    assert inherited(environ, ()) == {"PATH": "/bin"}
