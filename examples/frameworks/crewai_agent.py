"""A crew of CrewAI whose tool remembers, per session that is stated around the run.

The model is scripted, so that it runs without a key: pip install 'agent-gantry-state[crewai]'
Run it: python examples/frameworks/crewai_agent.py
"""

from __future__ import annotations

import json
import os

# It asks for permission to report to its makers when it is imported, and prints what it does.
os.environ.update(CREWAI_DISABLE_TELEMETRY="true", CREWAI_TRACING_ENABLED="false", OTEL_SDK_DISABLED="true")

from crewai import Agent, BaseLLM, Crew, Task
from crewai.tools import tool

from agent_gantry_state import Gantry

gantry = Gantry()


@tool
@gantry.with_memory
def note(item: str, memory: dict) -> str:
    """Put an item on the list, and read the list."""
    memory.setdefault("items", []).append(item)
    return ", ".join(memory["items"])


class Scripted(BaseLLM):
    """Notes the last word of its task, and says what the tool answered."""

    def call(self, messages, tools=None, *args, **kwargs):
        answers = [message["content"] for message in messages if message["role"] == "tool"]
        if answers:
            return answers[-1]
        item = messages[-1]["content"].partition("Note this: ")[2].split()[0]
        return [{"id": "1", "type": "function", "function": {"name": "note", "arguments": json.dumps({"item": item})}}]

    def supports_function_calling(self):
        return True

    def get_context_window_size(self):
        return 8000


agent = Agent(role="helper", goal="help", backstory="none", llm=Scripted(model="scripted"), tools=[note], cache=False)
task = Task(description="Note this: {item}", expected_output="the list", agent=agent)
crew = Crew(agents=[agent], tasks=[task])
for number, (session, item) in enumerate([("monday", "milk"), ("monday", "bread"), ("tuesday", "tea")], 1):
    with gantry.session(session, user="ada"):
        print(f"{number}. {crew.kickoff(inputs={'item': item}).raw}")
