from fastmcp_checks import *  # noqa: F403 - of FastMCP's own
from mcp_checks import *  # noqa: F403 - what must hold of every server


def test_example(example):
    assert example("fastmcp_server.py") == "ada: milk\nbob: bread\nada: milk, tea\nbob: refused\n"
