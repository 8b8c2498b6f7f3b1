"""`trio-claude batch`."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import attrs
import click
import trio

from ..batch.files import read_tasks
from ..batch.manifest import sha256
from ..batch.runner import Settings
from ..batch.tasks import Rules, make_plan
from ..config import GRANTS, OPTIONS, Config
from ..errors import ConfigError
from .batching import Batch, run_batch
from .completing import files
from .credentials import find_key, key_option
from .examples import examples
from .options import options_for, read_config

LONGEST = 86400.0
"""Seconds that a server may let a run last."""
_FOLDER = click.Path(file_okay=False, path_type=Path)
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(
    "batch",
    epilog=examples(
        "trio-claude batch tasks.jsonl --concurrency 8",
        "trio-claude batch tasks.jsonl --model haiku --model sonnet --repeat 3 --max-usd 5",
        "generate | trio-claude batch - --out today.jsonl --url http://127.0.0.1:3000",
    ),
)
@click.argument("tasks", shell_complete=files)
@click.option(
    "--concurrency", type=click.IntRange(1, 1000), default=4, show_default=True, help="Runs at once, at most."
)
@click.option("--out", type=_FILE, default="results.jsonl", show_default=True, help="Where the results go.")
@click.option("--manifest", type=_FILE, help="Where the manifest goes. [default: beside the results]")
@click.option("--lines", type=_FOLDER, help="A folder that takes each run's lines, as the CLI said them.")
@click.option("--artifacts", type=_FOLDER, help="A folder that takes what each run leaves in its workspace.")
@click.option("--force", is_flag=True, help="Write over files that exist.")
@click.option("--resume", is_flag=True, help="Go on with a batch that was broken off: what is done stays.")
@click.option("--as-completed", is_flag=True, help="Write results as they come, not in the order of the tasks.")
@click.option("--repeat", type=click.IntRange(1), default=1, show_default=True, help="Runs of each task and model.")
@click.option(
    "--model", "models", multiple=True, help="A model for all tasks; may be repeated: each task runs with each."
)
@click.option(
    "--max-usd",
    type=float,
    help="US dollars; once the runs have cost as much, none is started.",
)
@click.option("--retries", type=click.IntRange(0, 100), default=2, show_default=True, help="Further attempts.")
@click.option("--url", help="A server that is to run the prompts, instead of this process.")
@key_option
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@options_for("timeout", "profile", "allow_unattended", "cli", "cli_args", "cwd", "workspaces", "containment", "journal")
def command(tasks: str, url: str | None, key_file: Path | None, config_file: Path | None, **options: Any) -> None:
    """Run the prompts in TASKS and write one result each; `-` is standard input.

    A task is a JSON object on a line of its own: `prompt`, and, if you like, `id`, `meta`, `model`, `timeout`,
    `max_turns`, `workspace` and the other options of /ws/claude. All are checked before one is run.

    Exit status: 0 where all are ok, 1 where some are not, 2 for bad input, 130 or 143 after SIGINT or SIGTERM.
    """
    values = {name: options.pop(name) for name in attrs.fields_dict(Config) if name in options}
    if not all(path.name for path in (options["out"], options["manifest"]) if path):
        raise ConfigError("--out and --manifest take the name of a file")
    if url == "":
        raise ConfigError("--url must name a server")
    if options["force"] and options["resume"]:
        raise ConfigError("--resume keeps what is done, --force writes over it: say one of them")
    if options["artifacts"] and url:
        raise ConfigError("--artifacts has no meaning with --url: the workspaces are the server's")
    config = None if url else read_config(values, config_file)
    if options["artifacts"] and config and not config.workspaces:
        raise ConfigError("--artifacts takes --workspaces: the folder whose sub-folders the tasks name")
    if options["artifacts"] and config and config.isolated != "off":
        raise ConfigError(
            f"--artifacts can't be had with isolation {config.isolated}: no workspace is then where it looks"
        )
    rules = _rules(config, values, config_file, options["models"], options["repeat"])
    data = read_tasks(tasks)
    batch = Batch(
        plan=make_plan(data, rules), source=tasks, sha256=sha256(data), url=url, key=find_key(key_file),
        config=config, rules=rules,
        settings=_settings(options), out=options["out"], manifest=options["manifest"], lines=options["lines"],
        artifacts=options["artifacts"],
        force=options["force"], resume=options["resume"], as_json=options["as_json"],
    )  # fmt: skip
    del data  # it may be large
    sys.exit(trio.run(run_batch, batch))


def _rules(
    config: Config | None, values: dict[str, Any], file: Path | None, models: tuple[str, ...], repeat: int
) -> Rules:
    """Return what tasks are held to. Raises `ConfigError` where settings are given that only a server has."""
    if config:
        return Rules(config.offered, config.timeout, models, repeat, workspaces=bool(config.workspaces))
    timeout = values.pop("timeout")
    for name, value in {**values, "config": file}.items():
        if value is not None:
            raise ConfigError(f"--{name.replace('_', '-')} has no meaning with --url: the server decides it")
    return Rules((*OPTIONS, *GRANTS), LONGEST, models, repeat, timeout=timeout)


def _settings(options: dict[str, Any]) -> Settings:
    """Return how the batch is run. Raises `ConfigError`."""
    if options["max_usd"] is not None and not 0 < options["max_usd"] < math.inf:  # nor is NaN
        raise ConfigError(f"--max-usd must be a number over 0 US dollars, not {options['max_usd']:g}")
    return Settings(
        concurrency=options["concurrency"],
        retries=options["retries"],
        max_usd=options["max_usd"],
        as_completed=options["as_completed"],
    )
