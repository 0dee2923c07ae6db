"""A pydantic-ai agent with tools that remember. The model is scripted, so that it needs no key.

Run it: python examples/frameworks/pydantic_ai_agent.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic_ai import Agent
from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart, UserPromptPart
from pydantic_ai.models.function import FunctionModel

from agent_gantry_state import Gantry
from agent_gantry_state.integrations.pydantic_ai import IdentityCapability

gantry = Gantry()


@gantry.with_memory(scope="user", into="taste")
@gantry.with_memory
def put_in_basket(item: str, memory: dict, taste: dict) -> str:
    """Put an item into the basket."""
    memory.setdefault("basket", []).append(item)
    taste[item] = taste.get(item, 0) + 1
    return f"in the basket: {', '.join(memory['basket'])}; you had {item} {taste[item]} times"


def script(messages: Any, info: Any) -> ModelResponse:
    """Puts what the user names into the basket, and says what the tool said."""
    last = messages[-1].parts[-1]
    if isinstance(last, UserPromptPart):
        return ModelResponse(parts=[ToolCallPart("put_in_basket", {"item": last.content})])
    return ModelResponse(parts=[TextPart(str(last.content))])


@dataclass
class Caller:
    session_id: str
    user_id: str


agent = Agent(FunctionModel(script), deps_type=Caller, tools=[put_in_basket], capabilities=[IdentityCapability(gantry)])


def say(text: str, session: str, user: str) -> None:
    answer = agent.run_sync(text, deps=Caller(session, user))
    print(f"{user} in {session}: {answer.output}")


say("tea", "s1", "ada")
say("milk", "s1", "ada")
say("tea", "s2", "ada")
say("tea", "s3", "bob")
