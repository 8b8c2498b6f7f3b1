"""Rule: the password is what its file holds now, which nobody reads who need not; it is never shown."""

from __future__ import annotations

from pathlib import Path

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
    assert "second" not in repr(password)


def test_without_a_file_it_is_that_of_the_settings(tmp_path: Path) -> None:
    assert Password("s3cret").now() == "s3cret"
    assert Password(None).now() is None
    with pytest.raises(ConfigError, match="password can't be read: No such file"):
        Password("s3cret", tmp_path / "password")
