"""An agent of Strands whose tool remembers, per session that is named with the invocation.

The model is scripted, so that it runs without a key: pip install 'agent-gantry-state[strands]'
Run it: python examples/frameworks/strands_agent.py
"""

from __future__ import annotations

import json

from strands import Agent, tool
from strands.models.model import Model

from agent_gantry_state import Gantry
from agent_gantry_state.integrations.strands import IdentityPlugin

gantry = Gantry()


@tool
@gantry.with_memory
def note(item: str, memory: dict) -> str:
    """Put an item on the list, and read the list."""
    memory.setdefault("items", []).append(item)
    return ", ".join(memory["items"])


class Scripted(Model):
    """Notes what it is told, and says what the tool answered."""

    def update_config(self, **kwargs):
        pass

    def get_config(self):
        return {}

    async def structured_output(self, *args, **kwargs):
        yield {}

    async def stream(self, messages, *args, **kwargs):
        block = messages[-1]["content"][0]
        answered = "toolResult" in block
        start = {} if answered else {"toolUse": {"name": "note", "toolUseId": f"call{len(messages)}"}}
        if answered:
            delta = {"text": block["toolResult"]["content"][0]["text"]}
        else:
            delta = {"toolUse": {"input": json.dumps({"item": block["text"]})}}
        yield {"messageStart": {"role": "assistant"}}
        yield {"contentBlockStart": {"start": start}}
        yield {"contentBlockDelta": {"delta": delta}}
        yield {"contentBlockStop": {}}
        yield {"messageStop": {"stopReason": "end_turn" if answered else "tool_use"}}


agent = Agent(model=Scripted(), tools=[note], plugins=[IdentityPlugin(gantry)], callback_handler=None)
for number, (session, item) in enumerate([("monday", "milk"), ("monday", "bread"), ("tuesday", "tea")], 1):
    answer = agent(item, invocation_state={"session_id": session, "user_id": "ada"})
    print(f"{number}. {answer.message['content'][0]['text']}")
