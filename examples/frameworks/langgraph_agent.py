"""A LangGraph agent with tools that remember: by thread, and by user. The model is scripted, so that it needs no key.

Run it: python examples/frameworks/langgraph_agent.py
"""

from __future__ import annotations

from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.checkpoint.memory import InMemorySaver

from agent_gantry_state import Gantry
from agent_gantry_state.integrations.langgraph import LangGraphResolver

gantry = Gantry(resolvers=[LangGraphResolver()])


@gantry.with_memory(scope="user", into="taste")
@gantry.with_memory
def put_in_basket(item: str, memory: dict, taste: dict) -> str:
    """Put an item into the basket."""
    memory.setdefault("basket", []).append(item)
    taste[item] = taste.get(item, 0) + 1
    return f"in the basket: {', '.join(memory['basket'])}; you had {item} {taste[item]} times"


class Scripted(BaseChatModel):
    """Puts what the user names into the basket, and says what the tool said."""

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **options: Any) -> Any:
        return self

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **options: Any) -> ChatResult:
        last = messages[-1]
        if isinstance(last, HumanMessage):
            calls = [{"name": "put_in_basket", "args": {"item": last.content}, "id": "1"}]
            return ChatResult(generations=[ChatGeneration(message=AIMessage("", tool_calls=calls))])
        return ChatResult(generations=[ChatGeneration(message=AIMessage(last.content))])


agent = create_agent(Scripted(), [put_in_basket], checkpointer=InMemorySaver())


def say(text: str, thread: str, user: str) -> None:
    config = {"configurable": {"thread_id": thread, "user_id": user}}
    answer = agent.invoke({"messages": [HumanMessage(text)]}, config)
    print(f"{user} in {thread}: {answer['messages'][-1].content}")


say("tea", "t1", "ada")
say("milk", "t1", "ada")
say("tea", "t2", "ada")
say("tea", "t3", "bob")
