"""Rule: the password is what its file holds now, which nobody reads who need not; it is never shown."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from trio_claude.errors import ConfigError
from trio_claude.nodes.password import Password


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_it_is_read_anew_and_kept_while_its_file_will_not_do(tmp_path: Path) -> None:
    file = write(tmp_path / "password", "first\n")
    password = Password("of the settings", file)
    assert password.now() == "first"
    write(file, "second\n")
    assert password.now() == "second"
    write(file, "third", 0o644)
    assert password.now() == "second"
    file.unlink()
    assert password.now() == "second"
    file.symlink_to("x" * 300)  # a name that no file can have: what is asked of it fails
    assert password.now() == "second"
    assert "second" not in repr(password)


def test_what_a_pipe_gives_once_is_kept() -> None:
    """A shell hands over `<(pass show redis)` so."""
    reader, writer = os.pipe()
    os.write(writer, b"s3cret\n")
    os.close(writer)
    try:
        assert Password(None, Path(f"/dev/fd/{reader}")).now() == "s3cret"
    finally:
        os.close(reader)


def test_without_a_file_it_is_that_of_the_settings(tmp_path: Path) -> None:
    assert Password("s3cret").now() == "s3cret"
    assert Password(None).now() is None
    with pytest.raises(ConfigError, match="password can't be read: No such file"):
        Password("s3cret", tmp_path / "password")


@pytest.mark.parametrize(
    ("mode", "own", "others", "mounted"),
    [
        (0o400, True, True, True),
        (0o440, False, True, True),  # of Kubernetes with fsGroup, or root's own for the server's group
        (0o640, False, True, True),
        (0o444, False, False, True),  # of Docker and Kubernetes, unless they are told another
        (0o777, False, False, False),
        (0o460, False, False, False),
        (0o620, False, False, False),
        (0o442, False, False, False),
    ],
)
def test_who_may_use_its_file_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, own: bool, others: bool, mounted: bool
) -> None:
    """It may be the server's own file, that of another, or one on a mount where nothing is written."""
    file = write(tmp_path / "password", "s3cret", mode)
    assert will_do(file) == own
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert will_do(file) == others
    monkeypatch.setattr(os, "fstatvfs", lambda _file: SimpleNamespace(f_flag=os.ST_RDONLY))
    assert will_do(file) == mounted


def will_do(path: Path) -> bool:
    try:
        return Password(None, path).now() == "s3cret"
    except ConfigError as error:
        assert str(error) == f"redis_password_file: others may use {path}; chmod 600 it, or 640 if it is not ours"
        return False
