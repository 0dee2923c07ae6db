"""An agent of Agno whose tool remembers, per session of Agno.

The model is scripted, so that it runs without a key: pip install 'agent-gantry-state[agno]'
Run it: python examples/frameworks/agno_agent.py
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from agno.agent import Agent
from agno.models.base import Model
from agno.models.response import ModelResponse

from agent_gantry_state import Gantry
from agent_gantry_state.integrations.agno import identity_hook

gantry = Gantry()


@gantry.with_memory
def note(item: str, memory: dict) -> str:
    """Put an item on the list, and read the list."""
    memory.setdefault("items", []).append(item)
    return ", ".join(memory["items"])


@dataclass
class Scripted(Model):
    """Notes what it is told, and says what the tool answered."""

    id: str = "scripted"

    def invoke(self, messages, **kwargs):
        last = messages[-1]
        if last.role == "tool":
            return ModelResponse(role="assistant", content=last.content)
        function = {"name": "note", "arguments": json.dumps({"item": last.content})}
        return ModelResponse(role="assistant", tool_calls=[{"id": "1", "type": "function", "function": function}])

    async def ainvoke(self, *args, **kwargs):
        return self.invoke(*args, **kwargs)

    def invoke_stream(self, *args, **kwargs):
        yield self.invoke(*args, **kwargs)

    async def ainvoke_stream(self, *args, **kwargs):
        yield self.invoke(*args, **kwargs)

    def _parse_provider_response(self, response, **kwargs):
        return response

    def _parse_provider_response_delta(self, response):
        return response


agent = Agent(model=Scripted(), tools=[note], tool_hooks=[identity_hook(gantry)], telemetry=False)
for number, (session, item) in enumerate([("monday", "milk"), ("monday", "bread"), ("tuesday", "tea")], 1):
    print(f"{number}. {agent.run(item, session_id=session, user_id='ada').content}")
