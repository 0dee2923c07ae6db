import pytest

pytest.register_assert_rewrite("mcp_checks", "fastmcp_checks", "scenario")
