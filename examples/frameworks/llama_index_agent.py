"""An agent of LlamaIndex whose tool remembers, per session that is stated around the run.

The model is scripted, so that it runs without a key: pip install 'agent-gantry-state[llama-index]'
Run it: python examples/frameworks/llama_index_agent.py
"""

from __future__ import annotations

import asyncio

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock, ToolCallBlock
from llama_index.core.llms.mock import MockFunctionCallingLLM

from agent_gantry_state import Gantry

gantry = Gantry()


@gantry.with_memory
def note(item: str, memory: dict) -> str:
    """Put an item on the list, and read the list."""
    memory.setdefault("items", []).append(item)
    return ", ".join(memory["items"])


def scripted(messages, **kwargs):
    """Notes what it is told, and says what the tool answered."""
    last = messages[-1]
    if last.role == MessageRole.TOOL:
        return ChatMessage(role="assistant", blocks=[TextBlock(text=last.content)])
    call = ToolCallBlock(tool_call_id="1", tool_name="note", tool_kwargs={"item": last.content})
    return ChatMessage(role="assistant", blocks=[call])


async def main() -> None:
    agent = FunctionAgent(tools=[note], llm=MockFunctionCallingLLM(response_generator=scripted), streaming=False)
    for number, (session, item) in enumerate([("monday", "milk"), ("monday", "bread"), ("tuesday", "tea")], 1):
        async with gantry.session(session, user="ada"):
            print(f"{number}. {await agent.run(user_msg=item)}")


asyncio.run(main())
