"""An agent of the OpenAI Agents SDK with tools that remember. The model is scripted, so that it needs no key.

Run it: python examples/frameworks/openai_agents_agent.py
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from agents import Agent, Runner, function_tool, set_tracing_disabled
from agents.items import ModelResponse
from agents.models.interface import Model
from agents.usage import Usage
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText

from agent_gantry_state import Gantry
from agent_gantry_state.integrations.openai_agents import with_identity

gantry = Gantry()


@function_tool
@gantry.with_memory(scope="user", into="taste")
@gantry.with_memory
def put_in_basket(item: str, memory: dict, taste: dict) -> str:
    """Put an item into the basket."""
    memory.setdefault("basket", []).append(item)
    taste[item] = taste.get(item, 0) + 1
    return f"in the basket: {', '.join(memory['basket'])}; you had {item} {taste[item]} times"


class Scripted(Model):
    """Puts what the user names into the basket, and says what the tool said."""

    async def get_response(self, system_instructions: Any, input: Any, *rest: Any, **options: Any) -> ModelResponse:
        if isinstance(input, str) or input[-1].get("role") == "user":
            asked = input if isinstance(input, str) else input[-1]["content"]
            arguments = json.dumps({"item": asked})
            output: Any = ResponseFunctionToolCall(
                type="function_call", call_id="1", name="put_in_basket", arguments=arguments
            )
        else:
            text = ResponseOutputText(type="output_text", text=input[-1]["output"], annotations=[])
            output = ResponseOutputMessage(id="1", type="message", role="assistant", status="completed", content=[text])
        return ModelResponse(output=[output], usage=Usage(), response_id=None)

    def stream_response(self, *rest: Any, **options: Any) -> Any:
        raise NotImplementedError


@dataclass
class Caller:
    session_id: str
    user_id: str


set_tracing_disabled(True)
agent = Agent[Caller](name="shop", model=Scripted(), tools=with_identity(gantry, [put_in_basket]))


async def say(text: str, session: str, user: str) -> None:
    answer = await Runner.run(agent, text, context=Caller(session, user))
    print(f"{user} in {session}: {answer.final_output}")


async def main() -> None:
    await say("tea", "s1", "ada")
    await say("milk", "s1", "ada")
    await say("tea", "s2", "ada")
    await say("tea", "s3", "bob")


asyncio.run(main())
