"""What a framework is given that goes on after a hook of it has returned, with the caller's identity held meanwhile.

It is entered for each step and left where somebody else has the turn, so that it reaches nobody but the tool.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Generator
from typing import Any, TypeVar

from agent_gantry_state.blocks import SessionBlock

__all__ = ["awaited", "iterated", "stepped"]

T = TypeVar("T")


async def awaited(block: SessionBlock, result: Awaitable[T]) -> T:
    """Await *result* inside *block*."""
    with block:
        return await result


async def iterated(block: SessionBlock, items: AsyncGenerator[Any, Any]) -> AsyncGenerator[Any, None]:
    """Iterate over *items*, each step inside *block*."""
    try:
        while True:
            with block:
                try:
                    item = await items.__anext__()
                except StopAsyncIteration:
                    return
            yield item
    finally:
        with block:
            await items.aclose()


def stepped(block: SessionBlock, items: Generator[T, Any, Any]) -> Generator[T, None, None]:
    """`iterated`, for a generator that is not async."""
    try:
        while True:
            with block:
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item
    finally:
        with block:
            items.close()
