"""An agent of Haystack whose tool remembers, per session that is stated around the run.

The model is scripted, so that it runs without a key: pip install 'agent-gantry-state[haystack]'
Run it: python examples/frameworks/haystack_agent.py
"""

from __future__ import annotations

from haystack import component
from haystack.components.agents import Agent
from haystack.dataclasses import ChatMessage, ToolCall
from haystack.tools import tool

from agent_gantry_state import Gantry

gantry = Gantry()


@tool
@gantry.with_memory
def note(item: str, memory: dict) -> str:
    """Put an item on the list, and read the list."""
    memory.setdefault("items", []).append(item)
    return ", ".join(memory["items"])


@component
class Scripted:
    """Notes what it is told, and says what the tool answered."""

    @component.output_types(replies=list[ChatMessage])
    def run(self, messages: list[ChatMessage], tools: list | None = None):
        last = messages[-1]
        if last.tool_call_result:
            return {"replies": [ChatMessage.from_assistant(last.tool_call_result.result)]}
        return {"replies": [ChatMessage.from_assistant(tool_calls=[ToolCall("note", {"item": last.text}, id="1")])]}


agent = Agent(chat_generator=Scripted(), tools=[note])
for number, (session, item) in enumerate([("monday", "milk"), ("monday", "bread"), ("tuesday", "tea")], 1):
    with gantry.session(session, user="ada"):
        print(f"{number}. {agent.run(messages=[ChatMessage.from_user(item)])['last_message'].text}")
