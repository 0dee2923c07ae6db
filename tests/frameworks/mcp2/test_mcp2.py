from agent_gantry_checks import *  # noqa: F403 - of agent-gantry's own
from mcp_checks import *  # noqa: F403 - what must hold of every server


def test_example(example):
    assert example("mcp_server.py") == "shown: item\nada: milk\nbob: bread\nada: milk, tea\nbob: refused\n"
