"""Hold the fields of the lines whose values mean little, but whose keys and types are those of the real CLI.

Rule: nothing here is sent, and nothing changes: each function returns a new value.
"""

from __future__ import annotations

import os
import re

from ..model import Json
from .flags import MODELS
from .shell import temporary_folder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .flags import Options
    from .session import Session

VERSION = "2.1.330"
TOOLS = """Bash CronCreate CronDelete CronList Edit EnterWorktree ExitWorktree ListAgents Monitor NotebookEdit Read
ReportFindings ScheduleWakeup SendMessage Skill TaskStop ToolSearch WebFetch WebSearch Workflow Write""".split()
ASKING_TOOLS = ["AskUserQuestion", "EnterPlanMode", "ExitPlanMode"]
DOLLARS_PER_MTOK = (4.0, 20.0)
NO_USAGE: Json = {
    "input_tokens": 0, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 0,
}  # fmt: skip
CUT_USAGE: Json = {
    "output_tokens_details": {"thinking_tokens": 0},
    "server_tool_use": {"web_search_requests": 0, "web_fetch_requests": 0},
    "iterations": [],
    "fallback_credit": None,
}
WHOLE_USAGE: Json = {
    **CUT_USAGE, "service_tier": "standard", "inference_geo": "", "speed": "standard",
    "cache_creation": {"ephemeral_1h_input_tokens": 0, "ephemeral_5m_input_tokens": 0},
}  # fmt: skip
SUBAGENT_STATS: Json = {
    "spawned": 0, "started_in_background": 0, "max_depth": 0, "spawned_by_subagents": 0, "completed": 0, "failed": 0,
    "requested": {"background": 0, "foreground": 0, "unset": 0}, "killed": {"parent": 0, "user": 0, "system": 0},
    "refused": {"depth_limit": 0, "concurrency_limit": 0, "budget": 0}, "by_type": {},
}  # fmt: skip
FAST_MODE: Json = {"fast_mode_state": "off", "fast_mode_disabled_reason": "sdk_opt_in_required"}


def _config_folder() -> str:
    """Return where the real CLI would keep its files; it is only named, never written to."""
    return os.environ.get("CLAUDE_CONFIG_DIR") or os.environ.get("HOME", "/") + "/.claude"


def tools_of(options: Options) -> list[str]:
    """Return the names of the tools there are."""
    if options.tools is not None and "default" not in options.tools:
        return options.tools
    extra = (ASKING_TOOLS if options.asks else []) + (["StructuredOutput"] if options.structured else [])
    return ["Task", *sorted(TOOLS + extra)]


def init_fields(session: Session) -> Json:
    """Return what a turn's first line says of this process."""
    cwd = os.getcwd()
    memory = f"{_config_folder()}/projects/{re.sub('[^0-9A-Za-z]', '-', cwd)}/memory/"
    return {
        "cwd": cwd, "original_cwd": cwd, "additional_directories": [], "tools": tools_of(session.options),
        "model": session.model, "permissionMode": session.mode, "mcp_servers": [], "output_style": "default",
        "slash_commands": ["compact", "context"], "terminal_slash_commands": ["color"], "view_mode": "default",
        "agents": ["general-purpose"], "skills": ["verify"], "capabilities": ["interrupt_receipt_v1"],
        "plugins": [{"name": "fake", "path": "builtin", "source": "fake@builtin"}], "claude_code_version": VERSION,
        "apiKeySource": "ANTHROPIC_API_KEY", "analytics_disabled": True, "product_feedback_disabled": True,
        "served_by_anthropic": False, "memory_paths": {"auto": memory}, **FAST_MODE,
        "messaging_socket_path": f"{temporary_folder()}/cc-socks/{os.getpid()}.sock",
        "per_turn_effort_active": True, "ultrathink_available": False, "ultrathink_typed_raises": False,
    }  # fmt: skip


def initialize_fields(session: Session) -> Json:
    """Return the answer to `initialize`; the real one has longer lists."""
    return {
        "commands": [{"name": "compact", "description": "", "argumentHint": "", "builtin": True}],
        "agents": [{"name": "general-purpose", "description": ""}],
        "models": [{"value": name, "resolvedModel": model, "displayName": name} for name, model in MODELS.items()],
        "account": {"tokenSource": "none", "apiKeySource": "ANTHROPIC_API_KEY", "apiProvider": "firstParty"},
        "output_style": "default", "available_output_styles": ["default"], "feedback_mode": {"kind": "disabled"},
        "user_output_styles_dir": f"{_config_folder()}/output-styles", "capabilities": ["ui_surface_v1"],
        "pid": os.getpid(), "claude_code_version": VERSION, "current_permission_mode": session.mode, **FAST_MODE,
        "session_state": session.state, "analytics_disabled": True,
        "hook_on_failure_supported": True, "hooks_when_unanswered_kept": 0, "other_hook_ask_outranks_host": True,
        "remote_control_auto_enable": False, "remote_control_auto_connect_default": False,
        "remote_control_available": False, "remote_control_auto_on_by_default": False,
        "ide_rc_auto_enable_gate": False,
    }  # fmt: skip


def model_usage(model: str, tokens: tuple[int, int]) -> Json:
    """Return what a result says of one model: tokens in and out."""
    return {
        "inputTokens": tokens[0], "outputTokens": tokens[1], "cacheReadInputTokens": 0, "cacheCreationInputTokens": 0,
        "webSearchRequests": 0, "thinkingTokens": 0, "cacheCreationEphemeral5mInputTokens": 0,
        "cacheCreationEphemeral1hInputTokens": 0, "costUSD": cost_of(tokens), "contextWindow": 1_000_000,
        "maxOutputTokens": 128_000, "canonicalModel": model, "provider": "firstParty",
        "costBasis": "list",
    }  # fmt: skip


def cost_of(tokens: tuple[int, int]) -> float:
    """Return the list price in dollars; every model costs the same here."""
    return (tokens[0] * DOLLARS_PER_MTOK[0] + tokens[1] * DOLLARS_PER_MTOK[1]) / 1e6


def synthetic_message(text: str) -> Json:
    """Return the message that the CLI makes up itself when the API has failed."""
    unknown = dict.fromkeys(("output_tokens_details", "service_tier", "inference_geo", "iterations", "speed"))
    return {
        "id": "synthetic", "type": "message", "role": "assistant", "model": "<synthetic>", "container": None,
        "content": [{"type": "text", "text": text}], "stop_details": None, "stop_reason": "stop_sequence",
        "stop_sequence": "", "diagnostics": None, "usage": {**NO_USAGE, **WHOLE_USAGE, **unknown},
    }  # fmt: skip


def permission_question(use: Json) -> Json:
    """Return what a permission request says; the real suggestions depend on the command, these suit one that writes."""
    command = str(use["input"].get("command", ""))
    rules = [{"toolName": "Bash", "ruleContent": command}]
    return {
        "subtype": "can_use_tool", "tool_name": use["name"], "display_name": use["name"], "input": use["input"],
        "description": use["input"].get("description", ""), "tool_use_id": use["id"],
        "permission_suggestions": [
            {"type": "addRules", "rules": rules, "behavior": "allow", "destination": "localSettings"},
            {"type": "addDirectories", "directories": [os.getcwd()], "destination": "session"},
            {"type": "setMode", "mode": "acceptEdits", "destination": "session"},
        ],
        "blocked_path": f"{os.getcwd()}/{command.rpartition(' ')[2]}",
    }  # fmt: skip
