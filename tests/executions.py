"""How tests have tools executed by the real agent-gantry."""

from __future__ import annotations

from agent_gantry import ToolCall
from agent_gantry.core.security import SecurityPolicy
from agent_gantry.schema.config import AgentGantryConfig, ExecutionConfig, RateLimitConfig
from agent_gantry.schema.execution import ExecutionStatus


def unlimited():
    """Arguments that turn both of agent-gantry's limiters off."""
    return {
        "config": AgentGantryConfig(execution=ExecutionConfig(rate_limit=RateLimitConfig(enabled=False))),
        "security_policy": SecurityPolicy(max_requests_per_minute=0),
    }


def call(tool, /, timeout_ms=None, retry_count=None, **arguments):
    settings = {"timeout_ms": timeout_ms, "retry_count": retry_count}
    return ToolCall(
        tool_name=tool, arguments=arguments, **{key: value for key, value in settings.items() if value is not None}
    )


async def execute(gantry, tool, /, **arguments):
    return await gantry.execute(call(tool, **arguments))


async def run(gantry, tool, /, **arguments):
    """What a tool returns when it succeeds."""
    result = await execute(gantry, tool, **arguments)
    assert result.status is ExecutionStatus.SUCCESS, result.error
    return result.result


async def remembered(gantry, scope="session", **who):
    async with gantry.memory(scope, **who) as memory:
        return dict(memory)


def definition(gantry, name, namespace="default"):
    (tool,) = [tool for tool in gantry.list_tools_sync() if (tool.name, tool.namespace) == (name, namespace)]
    return tool
