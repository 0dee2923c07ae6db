"""An agent of DSPy whose tool remembers, per session that is named in DSPy's context.

The model is scripted, so that it runs without a key: pip install 'agent-gantry-state[dspy]'
Run it: python examples/frameworks/dspy_agent.py
"""

from __future__ import annotations

import json

import dspy

from agent_gantry_state import Gantry
from agent_gantry_state.integrations.dspy import DSPyResolver

gantry = Gantry(resolvers=[DSPyResolver()])


@gantry.with_memory
def note(item: str, memory: dict) -> str:
    """Put an item on the list, and read the list."""
    memory.setdefault("items", []).append(item)
    return ", ".join(memory["items"])


class Scripted(dspy.LM):
    """Notes what it is told, and says what the tool answered."""

    def __call__(self, prompt=None, messages=None, **kwargs):
        asked = messages[-1]["content"]
        item, observed = (_field(asked, name) for name in ("question", "observation_0"))
        call = {"next_tool_name": "finish", "next_tool_args": "{}"}
        if not observed:
            call = {"next_tool_name": "note", "next_tool_args": json.dumps({"item": item})}
        fields = {"next_thought": "Go on.", **call, "reasoning": "It is noted.", "answer": observed}
        wanted = [name for name in fields if f"[[ ## {name} ## ]]" in messages[0]["content"]]
        return ["\n".join([*(f"[[ ## {name} ## ]]\n{fields[name]}" for name in wanted), "[[ ## completed ## ]]"])]


def _field(text: str, name: str) -> str:
    return text.partition(f"[[ ## {name} ## ]]")[2].strip().partition("\n")[0]


agent = dspy.ReAct("question -> answer", tools=[note])
dspy.configure(lm=Scripted("scripted/model"), adapter=dspy.ChatAdapter())
for number, (session, item) in enumerate([("monday", "milk"), ("monday", "bread"), ("tuesday", "tea")], 1):
    with dspy.context(session_id=session, user_id="ada"):
        print(f"{number}. {agent(question=item).answer}")
