"""How a memory gets into a tool: the decorator, the wrapper that it makes, and the call."""
