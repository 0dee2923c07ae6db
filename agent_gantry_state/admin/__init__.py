"""What an operator does with the memories of a store: `Gantry.admin`, and what the command line stands on.

It looks past owners and compartments, and below the memory that a tool sees: at what is stored.
"""

from __future__ import annotations

from agent_gantry_state.admin.erasing import Erased, Receipt
from agent_gantry_state.admin.facade import Admin
from agent_gantry_state.admin.health import Damage, Health
from agent_gantry_state.admin.keys import ABSENT
from agent_gantry_state.admin.memories import StoredKey, StoredMemory
from agent_gantry_state.admin.transfer import Transferred

__all__ = ["ABSENT", "Admin", "Damage", "Erased", "Health", "Receipt", "StoredKey", "StoredMemory", "Transferred"]
