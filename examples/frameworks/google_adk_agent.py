"""An agent of Google's Agent Development Kit whose tool remembers, per session of the kit.

The model is scripted, so that it runs without a key: pip install 'agent-gantry-state[google-adk]'
Run it: python examples/frameworks/google_adk_agent.py
"""

from __future__ import annotations

import asyncio

from google.adk.agents import Agent
from google.adk.apps import App
from google.adk.models import BaseLlm, LlmResponse
from google.adk.runners import InMemoryRunner
from google.genai import types

from agent_gantry_state import Gantry
from agent_gantry_state.integrations.google_adk import IdentityPlugin

gantry = Gantry()


@gantry.with_memory
def note(item: str, memory: dict) -> str:
    """Put an item on the list, and read the list."""
    memory.setdefault("items", []).append(item)
    return ", ".join(memory["items"])


class Scripted(BaseLlm):
    """Notes what it is told, and says what the tool answered."""

    async def generate_content_async(self, llm_request, stream=False):
        part = llm_request.contents[-1].parts[-1]
        if part.function_response:
            answer = types.Part(text=part.function_response.response["result"])
        else:
            answer = types.Part(function_call=types.FunctionCall(name="note", args={"item": part.text}))
        yield LlmResponse(content=types.Content(role="model", parts=[answer]))


async def main() -> None:
    agent = Agent(name="helper", model=Scripted(model="scripted"), tools=[note])
    runner = InMemoryRunner(app=App(name="shop", root_agent=agent, plugins=[IdentityPlugin(gantry)]))
    for session in ("monday", "tuesday"):
        await runner.session_service.create_session(app_name="shop", user_id="ada", session_id=session)

    for number, (session, item) in enumerate([("monday", "milk"), ("monday", "bread"), ("tuesday", "tea")], 1):
        message = types.Content(role="user", parts=[types.Part(text=item)])
        async for event in runner.run_async(user_id="ada", session_id=session, new_message=message):
            if event.is_final_response():
                print(f"{number}. {event.content.parts[0].text}")


asyncio.run(main())
