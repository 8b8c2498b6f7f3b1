"""One frozen `Config`: every limit with its unit and its reason, read and checked once.

The defaults stand here and nowhere else. This module must never read a file or the environment on import, and a
`Config` never changes: a reload makes a new one.
"""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Callable
from typing import Any, TypeAlias

import attrs

from . import memory
from .errors import ConfigError
from .figures import brief

KIB = 1024
MIB = 1024 * KIB
RUN_MEMORY = 150 * MIB
"""What one real CLI is reckoned to need, in bytes (measured: 100 to 130 MB private for a live session)."""
OPTIONS = (
    "model",
    "system_prompt",
    "append_system_prompt",
    "max_turns",
    "max_budget_usd",
    "effort",
    "partial",
    "resume",
    "temperature",
    "max_output_tokens",
    "json_schema",
    "timeout",
    "workspace",
)
"""What a client may ask for beside its prompt, unless `allow_options` says less."""
GRANTS = (
    "tools", "allowed_tools", "disallowed_tools", "permission_mode", "mcp_servers", "fallback_model",
    "max_thinking_tokens",
)  # fmt: skip
"""What clients may set only where the operator grants it by name: it can widen what the CLI may do, or cost."""
IDENTITY_LIMITS = (
    "connections_per_identity", "runs_per_identity", "waiting_per_identity",
    "prompts_per_minute", "tokens_per_day", "dollars_per_day",
)  # fmt: skip
"""The limits of one identity, of which a key may have its own."""
CONTROLS = (
    "initialize",
    "interrupt",
    "set_model",
    "set_permission_mode",
    "set_max_thinking_tokens",
    "get_context_usage",
    "mcp_status",
    "mcp_reconnect",
    "mcp_toggle",
    "rewind_files",
    "stop_task",
)
"""The control requests that `allow_control` may name. The first three widen no rights."""
REDIS_URL = re.compile(
    r"rediss?://([^\s@/:]*(:[^\s@/]*)?@)?([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?(/\d{0,9})?|unix:///[^\s?#]+"
)
"""What `redis` takes."""
LIMITS = {
    "limit_open_files": "RLIMIT_NOFILE", "limit_processes": "RLIMIT_NPROC",
    "limit_file_size": "RLIMIT_FSIZE", "limit_cpu": "RLIMIT_CPU",
}  # fmt: skip
"""The settings that are limits of a run's processes, with their names in `resource`."""
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("auto", "json", "console")
KINDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    tuple: "a tuple of strings",
}
"""What a field takes, by the kind of its default."""
Check: TypeAlias = "Callable[[object, attrs.Attribute[Any], Any], None]"


def _between(low: float, high: float, unit: str) -> Check:
    def check(_instance: object, field: attrs.Attribute[Any], value: float) -> None:
        if not low <= value <= high:
            bounds = f"{brief(low)} to {brief(high)} {unit}".rstrip()
            raise ConfigError(f"{field.name} must be from {bounds}, not {brief(value)}")

    return check


def _is_of(kind: type) -> Check:
    """Check that a value is of the kind of a field's default; an integer will do for a float."""
    takes = (int, float) if kind is float else kind

    def check(_instance: object, field: attrs.Attribute[Any], value: object) -> None:
        whole = isinstance(value, bool) == (kind is bool) and isinstance(value, takes)
        if not whole or (isinstance(value, tuple) and not all(isinstance(part, str) for part in value)):
            raise ConfigError(f"{field.name} takes {KINDS[kind]}, not {value!r}")
        if isinstance(value, tuple) and not all(part.strip() for part in value):
            raise ConfigError(f"{field.name} must not hold an empty string")

    return check


def _option(
    default: Any, text: str, *, low: float = 0, high: float = float("inf"), unit: str = "", check: Check | None = None
) -> Any:
    """Declare a field with its help text and what it takes: for numbers bounds and a unit, else what `check` says."""
    numeric = isinstance(default, int | float) and not isinstance(default, bool)
    bounds = check or (_between(low, high, unit) if numeric else None)
    return attrs.field(
        default=default,
        validator=[_is_of(type(default)), *([bounds] if bounds else [])],
        metadata={"help": text, "unit": unit, "check": check},
    )


def _one_of(choices: tuple[str, ...]) -> Check:
    def check(_instance: object, field: attrs.Attribute[Any], value: str) -> None:
        if value not in choices:
            raise ConfigError(f"{field.name} must be one of {', '.join(choices)}, not {value!r}")

    return check


def _some_of(names: tuple[str, ...]) -> Check:
    def check(_instance: object, field: attrs.Attribute[Any], value: tuple[str, ...]) -> None:
        if unknown := sorted(set(value) - set(names)):
            raise ConfigError(f"{field.name} names {unknown[0]!r}; it takes: {', '.join(names)}")

    return check


def _host(_instance: object, field: attrs.Attribute[Any], value: str) -> None:
    if not value:
        raise ConfigError(f"{field.name} is empty; 127.0.0.1 is this machine alone, 0.0.0.0 every address")


def _origins(_instance: object, field: attrs.Attribute[Any], value: tuple[str, ...]) -> None:
    for origin in value:
        if not re.fullmatch(r"https?://[^/\s]+", origin):
            raise ConfigError(f"{field.name} takes scheme://host[:port] without a path, not {origin!r}")


def _networks(_instance: object, field: attrs.Attribute[Any], value: tuple[str, ...]) -> None:
    for network in value:
        try:
            ipaddress.ip_network(network)
        except ValueError:
            raise ConfigError(f"{field.name} takes addresses and networks, not {network!r}") from None


def _issuers(_instance: object, field: attrs.Attribute[Any], value: tuple[str, ...]) -> None:
    for issuer in value:
        if not re.fullmatch(r"[!-~]{1,256}", issuer) or "#" in issuer:
            raise ConfigError(f"{field.name} takes printable ASCII without # and spaces, not {issuer!r}")


def _journal(_instance: object, field: attrs.Attribute[Any], value: str) -> None:
    if value not in ("auto", "none", "memory", "sqlite") and not re.fullmatch(r"sqlite:.+", value):
        raise ConfigError(f"{field.name} must be none, memory, auto, sqlite or sqlite:PATH, not {value!r}")


def _traces(_instance: object, field: attrs.Attribute[Any], value: str) -> None:
    if value not in ("", "otlp"):
        raise ConfigError(f"{field.name} must be otlp or empty, not {value!r}")


def _redis(_instance: object, field: attrs.Attribute[Any], value: str) -> None:
    if value and not REDIS_URL.fullmatch(value):  # it is not shown: it may hold a password
        raise ConfigError(f"{field.name} must be redis://host[:port][/db], rediss://… or unix:///path")
    if (port := re.search(r":(\d+)(/\d*)?$", value)) and int(port[1]) > 65535:
        raise ConfigError(f"{field.name}: no such port: {port[1]}")


def _prefix(_instance: object, field: attrs.Attribute[Any], value: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", value):
        raise ConfigError(f"{field.name} takes 1 to 64 letters, digits and _ . -, not {value!r}")


def _arguments(_instance: object, field: attrs.Attribute[Any], value: str) -> None:
    try:
        shlex.split(value)
    except ValueError as error:
        raise ConfigError(f"{field.name} can't be split into arguments: {error}") from None


@attrs.frozen(kw_only=True)
class Config:
    """Every setting of a server. Sizes are bytes and times seconds, unless the help says otherwise."""

    host: str = _option("127.0.0.1", "address to listen on", check=_host)
    port: int = _option(3000, "port to listen on; 0 takes any free one", high=65535)
    cli: str = _option("", "path of the Claude command line; empty: the [claude] extra's, else `claude` on PATH")
    cli_args: str = _option("", "further arguments for the CLI, as in a shell", check=_arguments)
    profile: str = _option(
        "approve",
        "what the CLI may do: lean, chat, approve, edit or unattended",
        check=_one_of(("lean", "chat", "approve", "edit", "unattended")),
    )
    allow_unattended: bool = _option(default=False, text="let profile unattended run without a sandbox")
    cli_settings: bool = _option(
        default=False, text="let the CLI read settings files, of its folder too, and run their hooks and MCP servers"
    )
    cwd: str = _option(
        "", "folder in which the CLI works; {meta} stands for a run's; empty: where the server was started"
    )
    workspaces: str = _option("", "folder whose sub-folders clients may name as `workspace`; empty: none")
    env: tuple[str, ...] = _option((), "further names or patterns of variables that the CLI inherits")
    allow_options: tuple[str, ...] = _option(OPTIONS, "what clients may set", check=_some_of(OPTIONS))
    grants: tuple[str, ...] = _option(
        (), "what clients may set beyond that, though it widens the CLI's rights", check=_some_of(GRANTS)
    )
    allow_control: tuple[str, ...] = _option(
        CONTROLS[:3], "control requests that clients of a session may make", check=_some_of(CONTROLS)
    )
    allow_origin: tuple[str, ...] = _option((), "browser origins that may come in, scheme://host", check=_origins)
    allow_host: tuple[str, ...] = _option((), "further Host names under which this server is reached")
    trusted_proxies: tuple[str, ...] = _option(
        (), "addresses or networks of proxies whose X-Forwarded-For is believed", check=_networks
    )
    keys: str = _option("", "file of API keys (`trio-claude keys`); empty: none")
    jwt_keys: str = _option("", "JWK set whose keys sign tokens; empty: none")
    jwt_issuer: tuple[str, ...] = _option((), "`iss` of tokens that are believed", check=_issuers)
    jwt_audience: str = _option("", "`aud` that tokens must have")
    jwt_leeway: float = _option(30.0, "clocks may be apart when tokens are looked at", high=60, unit="s")
    isolation: str = _option(
        "auto",
        "who shares home, settings, transcripts and folder: auto, off, identity or run",
        check=_one_of(("auto", "off", "identity", "run")),
    )
    journal: str = _option(
        "none",
        "where runs are kept: none, memory (while the server lives), sqlite (in the state folder), "
        "sqlite:PATH, or auto: sqlite if it can be had, else none; `redis` has its own",
        check=_journal,
    )
    journal_content: bool = _option(default=True, text="keep prompts, options and lines; without: receipts and usage")
    journal_days: float = _option(30.0, "runs are kept; 0: for ever", high=36500, unit="days")
    journal_runs: int = _option(100_000, "runs are kept; 0: any number", high=10**9, unit="runs")
    journal_bytes: int = _option(
        1024 * MIB, "of lines, prompts and options are kept, of all runs; 0: any number", high=10**15, unit="bytes"
    )
    journal_run_bytes: int = _option(
        64 * MIB, "of lines are kept of one run", low=KIB, high=1024 * 1024 * MIB, unit="bytes"
    )
    transcript_days: float = _option(
        30.0, "the CLI's own transcripts are kept, where identities have homes; 0: for ever", high=36500, unit="days"
    )
    transcript_bytes: int = _option(
        1024 * MIB, "of the CLI's own transcripts are kept, of all identities; 0: any number", high=10**15, unit="bytes"
    )
    traces: str = _option(
        "",
        "where the traces of runs go: otlp, to the collector that the OTEL_EXPORTER_OTLP_… variables name; "
        "empty: nowhere",
        check=_traces,
    )
    state: str = _option(
        "", "folder in which the server keeps things; empty: trio-claude in XDG_STATE_HOME, or in ~/.local/state"
    )
    metrics: bool = _option(default=False, text="count for Prometheus, at /metrics; `serve` does unless told not to")
    own_loop: bool = _option(default=False, text="lines pass while the loop waits, which is no guest; on in `serve`")
    redis: str = attrs.field(
        default="",
        repr=False,
        validator=_redis,
        metadata={
            "help": "Redis that several servers share: redis://host[:port][/db], rediss://… (TLS) or unix:///path; "
            "empty: none",
            "unit": "",
        },
    )
    redis_password_file: str = _option("", "file with the password for Redis; others may not use it")
    redis_prefix: str = _option("trio-claude", "what the names of all keys in Redis begin with", check=_prefix)
    node_lease: float = _option(
        5.0, "without a sign of life, and the others take a server for lost", low=2, high=60, unit="s"
    )
    containment: str = _option(
        "auto",
        "how a run is held together: auto, sandbox, namespace, supervisor or group",
        check=_one_of(("auto", "sandbox", "namespace", "supervisor", "group")),
    )

    sandbox_read: tuple[str, ...] = _option((), "further paths that a run in a sandbox may read")
    sandbox_network: bool = _option(default=True, text="a run in a sandbox has the network")
    cgroup: str = _option("", "delegated cgroup v2 folder for runs; auto: the server's own group; empty: none")
    memory_max: int = _option(0, "memory of a run, in its cgroup; 0: no limit", unit="bytes")
    pids_max: int = _option(0, "processes of a run, in its cgroup; 0: no limit", unit="processes")
    user: str = _option("", "user whom the CLI becomes; only root can say so")
    nice: int = _option(5, "by how much runs yield the processors to the server, as in nice(1)", high=19)
    limit_open_files: int = _option(0, "a process of a run may open; 0: as the server", unit="files")
    limit_processes: int = _option(0, "the run's user may have; 0: as the server", unit="processes")
    limit_file_size: int = _option(0, "a file that a run writes; 0: as the server", unit="bytes")
    limit_cpu: int = _option(0, "CPU that a process of a run may use; 0: as the server", unit="s")

    log_level: str = _option(
        "info", "what the log of `serve` leaves out: what is less than this", check=_one_of(LOG_LEVELS)
    )
    log_format: str = _option(
        "auto", "lines of JSON, or for a person; auto: console on a terminal, else json", check=_one_of(LOG_FORMATS)
    )
    access_log: bool = _option(default=False, text="log each HTTP request that is answered too")

    timeout: float = _option(300.0, "a run may last, from the CLI's start", low=0.01, high=86400, unit="s")
    result_grace: float = _option(5.0, "a CLI may live on after its result", high=3600, unit="s")
    queue_timeout: float = _option(30.0, "a run waits for a free slot", high=3600, unit="s")
    max_runs: int = _option(
        0, "runs at once; 0: what there is memory for, here or in the runs' cgroup", high=100000, unit="runs"
    )
    run_memory: int = _option(
        RUN_MEMORY, "memory that a run is reckoned to need", low=MIB, high=1024 * 1024 * MIB, unit="bytes"
    )
    max_waiting: int = _option(1000, "runs that wait for a slot", high=100000, unit="runs")
    drain_timeout: float = _option(30.0, "runs may go on after SIGTERM", high=86400, unit="s")

    session_idle_timeout: float = _option(1800.0, "a session may idle", low=0.05, high=604800, unit="s")
    session_timeout: float = _option(86400.0, "a session may last, but for approvals", low=0.05, high=604800, unit="s")
    approval_timeout: float = _option(
        600.0, "an approval may stay open; then it is denied", low=0.05, high=86400, unit="s"
    )
    grace_max: float = _option(
        300.0, "a run of a session may go on without its client, where that asks for it; 0: never", high=86400, unit="s"
    )
    replay_bytes: int = _option(
        MIB, "of lines are kept for a client that is away; then the CLI waits", low=KIB, high=1024 * MIB, unit="bytes"
    )
    interrupt_grace: float = _option(5.0, "a turn may go on after an interrupt", low=0.05, high=600, unit="s")
    stall_notice: float = _option(
        30.0, "a CLI is silent in a turn before the client is told", low=0.05, high=86400, unit="s"
    )
    stall_timeout: float = _option(
        0.0, "a CLI may be silent in a turn; 0: as long as the turn may last", high=86400, unit="s"
    )

    pool_size: int = _option(0, "CLIs kept ready ahead of need", high=1000, unit="CLIs")
    pool_age: float = _option(600.0, "such a CLI may wait", low=1, high=86400, unit="s")
    pool_partial: bool = _option(default=False, text="such CLIs speak token by token: for runs that ask for `partial`")

    head_limit: int = _option(16 * KIB, "an HTTP head", low=256, high=MIB, unit="bytes")
    head_timeout: float = _option(5.0, "an HTTP head may take", low=0.05, high=600, unit="s")
    first_message_timeout: float = _option(120.0, "the first message may take", low=0.05, high=3600, unit="s")
    max_message: int = _option(64 * KIB, "a client's message on /ws/claude", low=KIB, high=64 * MIB, unit="bytes")
    max_session_message: int = _option(
        32 * MIB, "a client's message on /ws/session, and what waits for the CLI", low=KIB, high=256 * MIB, unit="bytes"
    )
    max_frames: int = _option(1024, "frames that one message may be split into", low=1, high=MIB, unit="frames")
    max_line: int = _option(16 * MIB, "a line of the CLI", low=KIB, high=1024 * MIB, unit="bytes")
    ping_interval: float = _option(10.0, "between pings", low=0.05, high=3600, unit="s")
    ping_timeout: float = _option(10.0, "a ping may stay unanswered", low=0.05, high=3600, unit="s")
    send_timeout: float = _option(120.0, "a write to a client may stand still", low=0.05, high=3600, unit="s")
    close_timeout: float = _option(2.0, "a close handshake may take, then RST", low=0.05, high=60, unit="s")
    max_connections: int = _option(4096, "connections at once", low=1, high=MIB, unit="connections")
    max_handshakes: int = _option(1024, "connections without a request yet", low=1, high=MIB, unit="connections")
    max_handshakes_per_address: int = _option(512, "of them from one address", low=1, high=MIB, unit="connections")
    connections_per_address: int = _option(
        0, "connections from one address, WebSockets or not; 0: any number", high=MIB, unit="connections"
    )

    connections_per_identity: int = _option(
        0, "WebSockets of one identity; 0: any number", high=MIB, unit="connections"
    )
    runs_per_identity: int = _option(0, "runs at once of one identity; 0: any number", high=100000, unit="runs")
    waiting_per_identity: int = _option(
        0, "runs of one identity that wait for a slot; 0: any number", high=100000, unit="runs"
    )
    prompts_per_minute: float = _option(
        0.0, "prompts and turns of one identity; 0: any number", high=1e6, unit="prompts a minute"
    )
    tokens_per_day: int = _option(0, "tokens of one identity, by UTC; 0: any number", high=10**15, unit="tokens a day")
    dollars_per_day: float = _option(
        0.0, "dollars of one identity, by UTC; 0: any number", high=1e9, unit="dollars a day"
    )
    total_prompts_per_minute: float = _option(
        0.0, "prompts and turns of all together; 0: any number", high=1e6, unit="prompts a minute"
    )
    total_tokens_per_day: int = _option(
        0, "tokens of all together, by UTC; 0: any number", high=10**15, unit="tokens a day"
    )
    total_dollars_per_day: float = _option(
        0.0, "dollars of all together, by UTC; 0: any number", high=1e9, unit="dollars a day"
    )

    def __attrs_post_init__(self) -> None:
        """Check what depends on two fields, and what holds for all. Raises `ConfigError`."""
        for name in attrs.fields_dict(Config):
            if isinstance(value := getattr(self, name), str | tuple) and "\0" in "".join(value):
                raise ConfigError(f"{name} must not hold a NUL character")
        if self.jwt_keys and not (self.jwt_issuer and self.jwt_audience):
            raise ConfigError("jwt_keys needs jwt_issuer and jwt_audience")
        if self.redis and self.journal not in ("auto", "none"):
            raise ConfigError(f"journal: with redis it is kept there: auto or none, not {self.journal!r}")
        if self.redis_password_file and not self.redis:
            raise ConfigError("redis_password_file needs redis")

    @property
    def asks_identity(self) -> bool:
        """Whether clients must say who they are."""
        return bool(self.keys or self.jwt_keys)

    @property
    def isolated(self) -> str:
        """Return who has a home, settings and a folder of its own: nobody (off), each identity, or each run."""
        if self.isolation != "auto":
            return self.isolation
        return "identity" if self.asks_identity else "off"

    @property
    def cli_arguments(self) -> list[str]:
        """Return `cli_args` split as a shell would."""
        return shlex.split(self.cli_args)

    @property
    def offered(self) -> tuple[str, ...]:
        """Return what a client may set: what the operator allows, but for what this server or its profile lacks."""
        absent = {"resume": self.profile == "lean" or self.isolated == "run", "workspace": not self.workspaces}
        return tuple(name for name in (*self.allow_options, *self.grants) if not absent.get(name))

    @property
    def controls(self) -> tuple[str, ...]:
        """Return the control requests that a client may make; without `model` among its options not `set_model`."""
        return tuple(name for name in self.allow_control if name != "set_model" or "model" in self.allow_options)

    @property
    def session_offered(self) -> tuple[str, ...]:
        """Return what a client may set for a session of many turns."""
        return (*self.offered, "fork") if "resume" in self.offered else self.offered

    @property
    def limits(self) -> dict[str, int]:
        """Return the resource limits of a run's processes, by their names in `resource`; never a core dump."""
        named = {name: getattr(self, field) for field, name in LIMITS.items()}
        return {"RLIMIT_CORE": 0, **{name: value for name, value in named.items() if value}}

    @property
    def run_slots(self) -> int:
        """Return how many runs go at once, reckoned from what memory there is and a run's where `max_runs` is 0."""
        return self.max_runs or max(1, memory.available(self.cgroup) // max(self.run_memory, self.memory_max))


def kind(name: str) -> str:
    """Return in words what the field `name` takes."""
    return KINDS[type(attrs.fields_dict(Config)[name].default)]
