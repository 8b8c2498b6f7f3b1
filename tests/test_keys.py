"""Rule: a key is shown once and kept as a hash; what is taken back is good no more, without a restart."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
from pathlib import Path

import pytest
import trio
from harness import Backend, until
from program import PROGRAM, environ, serving, trio_claude

from trio_claude.identity.keys import Key, digest, read_keys, write_keys


def known(fake: Backend, folder: Path) -> dict[str, str]:
    """Return an environment in which keys are wanted."""
    env = {**environ(fake), "TRIO_CLAUDE_KEYS": str(folder / "keys.json"), "TRIO_CLAUDE_STATE": str(folder / "state")}
    del env["TRIO_CLAUDE_CWD"]
    return env


async def made(env: dict[str, str], *words: str) -> str:
    told = await trio_claude("keys", *words, env=env)
    assert told.returncode == 0, told.stderr
    return told.stdout.decode().strip()


async def test_a_key_opens_a_server_until_it_is_taken_back(fake: Backend, tmp_path: Path) -> None:
    env = known(fake, tmp_path)
    alice, bob = await made(env, "add", "alice"), await made(env, "add", "bob", "--limit", "prompts_per_minute=1")
    async with serving("serve", "--port", "0", env=env) as (_, url):

        async def ask(key: str) -> int:
            return (await trio_claude("ask", "hello", "--url", url, env={**env, "TRIO_CLAUDE_KEY": key})).returncode

        nobody = await trio_claude("ask", "hello", "--url", url, env=env)
        assert nobody.returncode == 69
        assert b"HTTP 401: it wants a valid key or token" in nobody.stderr
        assert await ask(alice) == 0
        assert [await ask(bob), await ask(bob)] == [0, 75]
        file = tmp_path / "alice.key"
        file.write_text(alice + "\n")
        by_file = await trio_claude("ask", "hello", "--url", url, "--key-file", str(file), env=env)
        assert by_file.returncode == 0
        assert await made(env, "revoke", "alice") == ""
        await trio.sleep(1.1)
        assert await ask(alice) == 69
        new = await made(env, "rotate", "bob")
        await trio.sleep(1.1)
        assert await ask(bob) == 69
        assert await ask(new) == 75


async def test_a_file_that_is_gone_takes_no_key_away(fake: Backend, tmp_path: Path) -> None:
    env = known(fake, tmp_path)
    async with serving("serve", "--port", "0", env=env, stderr=subprocess.PIPE) as (process, url):
        env["TRIO_CLAUDE_KEY"] = await made(env, "add", "ci")
        with trio.fail_after(10):
            while (await trio_claude("ask", "hello", "--url", url, env=env)).returncode:
                pass
        (tmp_path / "keys.json").rename(tmp_path / "elsewhere")
        process.send_signal(signal.SIGHUP)
        await trio.sleep(0.3)
        assert (await trio_claude("ask", "hello", "--url", url, env=env)).returncode == 0
        log = (await process.stderr.receive_some()).decode()
    weak, *_ = (line for line in log.splitlines() if "is not there yet" in line)
    assert "Weak" in weak


async def test_a_key_is_kept_as_a_hash_and_listed_without_it(fake: Backend, tmp_path: Path) -> None:
    env = known(fake, tmp_path)
    own = {"dollars_per_day": 2.5, "tokens_per_day": 12345678.0}
    secret = await made(
        env, "add", "ci", "--role", "viewer", "--limit", "dollars_per_day=2.5", "--limit", "tokens_per_day=12345678"
    )
    path = tmp_path / "keys.json"
    assert secret not in path.read_text()
    assert read_keys(path)["ci"].hash == digest(secret)
    assert path.stat().st_mode & 0o777 == 0o600
    listed = await made(env, "list")
    assert listed.startswith("ci  viewer  20")
    assert listed.endswith("dollars_per_day=2.5 tokens_per_day=12345678")
    assert json.loads(await made(env, "list", "--json"))["ci"]["limits"] == own
    assert digest(secret) not in listed


async def test_a_link_to_the_file_stays_one(fake: Backend, tmp_path: Path) -> None:
    env = known(fake, tmp_path)
    await made(env, "add", "ci")
    link = tmp_path / "elsewhere" / "link.json"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "keys.json")
    await made(env, "add", "other", "--file", str(link))
    await made(env, "revoke", "ci", "--file", str(link))
    assert list(read_keys(tmp_path / "keys.json")) == ["other"]
    assert link.is_symlink()
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    told = await trio_claude("keys", "add", "other", "--file", str(tmp_path / "a"), env=env)
    assert (told.returncode, b"Traceback" in told.stderr) == (2, False)
    assert b"links" in told.stderr


def test_a_file_that_can_not_be_written_is_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    write_keys(path, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_keys(path, {"ci": Key("0" * 64)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_keys(path) == {}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("words", [["add", "new"], ["rotate", "ci"], ["rotate", "ci", "--json"]])
async def test_a_key_that_can_not_be_shown_is_not_made(fake: Backend, tmp_path: Path, words: list[str]) -> None:
    env, path = known(fake, tmp_path), tmp_path / "keys.json"
    await made(env, "add", "ci")
    before = path.read_bytes()
    with Path("/dev/full").open("wb") as full:  # noqa: ASYNC230 - a device
        told = await trio.run_process(
            [*PROGRAM, "keys", *words], env=env, stdout=full, capture_stderr=True, check=False
        )
    assert (told.returncode, b"--file" in told.stderr) == (1, False)
    assert b"No space left on device" in told.stderr
    assert path.read_bytes() == before


@pytest.mark.root
async def test_what_root_makes_is_the_folders_owners(fake: Backend, tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    await made(known(fake, tmp_path), "add", "ci")
    assert {path.name: path.stat().st_uid for path in tmp_path.glob("keys.json*")} == {
        "keys.json": 65534,
        "keys.json.lock": 65534,
    }


async def test_a_lock_that_can_not_be_had_is_named(fake: Backend, tmp_path: Path) -> None:
    (tmp_path / "keys.json.lock").mkdir()
    told = await trio_claude("keys", "add", "ci", env=known(fake, tmp_path))
    assert (told.returncode, b"keys.json.lock can't be written: Is a directory" in told.stderr) == (2, True)


async def test_keys_that_are_made_at_once_are_all_there(fake: Backend, tmp_path: Path) -> None:
    env = known(fake, tmp_path)
    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(made, env, "add", f"k{number}")
    assert len(read_keys(tmp_path / "keys.json")) == 6


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["add", "a b"], b"NAME: at most 64"),
        (["add", "../a"], b"NAME: at most 64"),
        (["add", "here"], b"here has a key already"),
        (["add", "x", "--limit", "much=1"], b"'much' is none"),
        (["add", "x", "--limit", "runs_per_identity=many"], b"takes a number"),
        (["add", "x", "--limit", "runs_per_identity=-1"], b"must be 0 or more"),
        (["add", "x", "--limit", "tokens_per_day=1.5"], b"tokens_per_day must be a whole number"),
        (["revoke", "nobody"], b"no key of the name nobody"),
        (["rotate", "here", "--overlap", "inf"], b"--overlap"),
        (["rotate", "here", "--overlap", "nan"], b"--overlap must be from 0 to 31622400 s, not nan"),
        (["rotate", "nobody"], b"no key of the name nobody"),
        (["list", "--file", "/proc/self/mem"], b"can't be read"),
    ],
)
async def test_what_is_wrong_is_named(fake: Backend, tmp_path: Path, words: list[str], told: bytes) -> None:
    env = known(fake, tmp_path)
    await made(env, "add", "here")
    answer = await trio_claude("keys", *words, env=env)
    assert answer.returncode == 2
    assert told in answer.stderr
    assert list(read_keys(tmp_path / "keys.json")) == ["here"]


async def test_a_signal_reads_the_settings_anew(fake: Backend, tmp_path: Path) -> None:
    env, config, log = known(fake, tmp_path), tmp_path / "own.toml", tmp_path / "log"
    key = await made(env, "add", "alice")
    config.write_text("prompts_per_minute = 1\n")
    with log.open("wb") as stderr:
        async with serving("serve", "--port", "0", "--config", str(config), env=env, stderr=stderr.fileno()) as served:
            process, url = served
            env["TRIO_CLAUDE_KEY"] = key

            async def ask() -> int:
                return (await trio_claude("ask", "hello", "--url", url, env=env)).returncode

            assert [await ask(), await ask()] == [0, 75]
            config.write_text("prompts_per_minute = 'many'\n")
            os.kill(process.pid, signal.SIGHUP)
            await until(lambda: log.read_text().count('"Reloaded"') == 1, 10)
            assert await ask() == 75
            config.write_text("prompts_per_minute = 0\n")
            os.kill(process.pid, signal.SIGHUP)
            await until(lambda: log.read_text().count('"Reloaded"') == 2, 10)
            assert await ask() == 0
    reloaded = [json.loads(line) for line in log.read_text().splitlines() if '"Reloaded"' in line]
    assert "prompts_per_minute" in reloaded[0]["error"]
    assert reloaded[1]["error"] == ""
