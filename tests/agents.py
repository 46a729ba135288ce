"""What coding agents send, recorded from Claude Code 2.1.197 and Codex CLI 0.169.0; texts and tools are shortened."""

from typing import Any


def _schema(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


CLAUDE_CODE_HEADERS = {
    "Accept": "application/json",
    "Authorization": "Bearer any",
    "User-Agent": "claude-cli/2.1.197 (external, sdk-cli)",
    "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14,context-management-2025-06-27,"
    "mid-conversation-system-2026-04-07,effort-2025-11-24",
    "anthropic-dangerous-direct-browser-access": "true",
    "anthropic-version": "2023-06-01",
    "x-app": "cli",
}
CLAUDE_CODE_PATH = "/v1/messages?beta=true"
CLAUDE_CODE: dict[str, Any] = {
    "model": "smollm2",
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "<system-reminder>\nToday is Sunday.\n</system-reminder>\n\n"},
                {"type": "text", "text": "Say hi", "cache_control": {"type": "ephemeral"}},
            ],
        },
        {"role": "system", "content": "Agents that can be asked: one."},
    ],
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.197.123;"},
        {"type": "text", "text": "You are an agent.", "cache_control": {"type": "ephemeral"}},
    ],
    "tools": [
        {
            "name": "Bash",
            "description": "Runs a command.",
            "input_schema": {
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                **_schema(command={"type": "string"}, description={"type": "string"}),
            },
        },
        {"name": f"mcp__{'a' * 40}__{'b' * 40}", "description": "Of a server.", "input_schema": _schema()},
    ],
    "metadata": {"user_id": '{"device_id":"d","account_uuid":"","session_id":"s"}'},
    "max_tokens": 32000,
    "thinking": {"type": "adaptive"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "high"},
    "stream": True,
}
CLAUDE_CODE_GOES_ON: list[dict[str, Any]] = [
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": ""},
            {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {"command": "echo hi", "description": "hi"}},
        ],
    },
    {
        "role": "user",
        "content": [
            {
                "tool_use_id": "toolu_1",
                "type": "tool_result",
                "content": "hi",
                "is_error": False,
                "cache_control": {"type": "ephemeral"},
            }
        ],
    },
]

CODEX_HEADERS = {
    "accept": "text/event-stream",
    "originator": "codex_exec",
    "session-id": "s",
    "thread-id": "s",
    "x-codex-turn-metadata": '{"turn_id":"t"}',
}
CODEX_PATH = "/v1/responses"
CODEX: dict[str, Any] = {
    "model": "smollm2",
    "stream": True,
    "input": [
        {
            "type": "message",
            "id": "msg_1",
            "role": "developer",
            "content": [{"type": "input_text", "text": "You are a coding agent."}],
        },
        {
            "type": "message",
            "id": "msg_2",
            "role": "developer",
            "content": [{"type": "input_text", "text": "There are no skills."}],
        },
        {
            "type": "message",
            "id": "msg_3",
            "role": "user",
            "content": [{"type": "input_text", "text": "<environment_context>/tmp</environment_context>"}],
        },
        {"type": "message", "id": "msg_4", "role": "user", "content": [{"type": "input_text", "text": "Say hi"}]},
    ],
    "tools": [
        {
            "type": "function",
            "name": "exec_command",
            "description": "Runs a command.",
            "strict": False,
            "parameters": _schema(cmd={"type": "string", "maxLength": 8}),
        },
        {
            "type": "namespace",
            "name": "multi_agent_v1",
            "description": "Tools for agents.",
            "tools": [
                {
                    "type": "function",
                    "name": "close_agent",
                    "description": "Closes one.",
                    "strict": False,
                    "parameters": _schema(target={"enum": ["a", "b"]}),
                }
            ],
        },
        {"type": "web_search", "external_web_access": True},
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"summary": "auto"},
    "store": False,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "s",
    "client_metadata": {"thread_id": "s", "x-codex-turn-metadata": "{}"},
}
CODEX_GOES_ON: list[dict[str, Any]] = [
    {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "hm"}],
        "encrypted_content": None,
    },
    {
        "type": "function_call",
        "status": "completed",
        "id": "fc_1",
        "name": "close_agent",
        "namespace": "multi_agent_v1",
        "arguments": '{"target": "a"}',
        "call_id": "call_1",
    },
    {"type": "function_call_output", "id": "fco_1", "call_id": "call_1", "output": "closed"},
]
