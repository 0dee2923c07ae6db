import pytest

pytest.register_assert_rewrite("mcp_checks", "agent_gantry_checks", "scenario")
