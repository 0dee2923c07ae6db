"""A signal, as Ctrl-C sends it, at each moment at which Python may hear of one: as a function is entered or goes on, after a
call, and where a loop begins anew. Between two other steps of the same function it hears of none.
"""

from __future__ import annotations

import contextvars
import dis
import gc
import pathlib
import sys

import cachetools

import agent_gantry_state

_WHERE = tuple(str(pathlib.Path(module.__file__).parent) for module in (agent_gantry_state, cachetools))
_HEARING = ("RESUME", "CALL", "JUMP_BACKWARD", "JUMP_ABSOLUTE")


class Interruption(BaseException):
    """What a signal raises, wherever the program is."""


def interrupted(act, at, but=()):
    """Do *act*, with a signal at the moment of that number; whether it came so far.

    There is none where a function named in *but* is entered.
    """

    def enter(frame, event, arg):
        if not frame.f_code.co_filename.startswith(_WHERE):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        before = "RESUME"

        def step(frame, event, arg):
            nonlocal at, before
            if event == "exception":
                # What has raised something else does not end with a signal as well.
                before = ""
            elif event == "opcode":
                name = dis.opname[frame.f_code.co_code[frame.f_lasti]]
                # A NOP where a loop begins anew may be outside of the `try` in which Python hears of it, just before that.
                if name != "NOP" or before == "RESUME":
                    if before.startswith(_HEARING) and not (before == "RESUME" and frame.f_code.co_name in but):
                        at -= 1
                        if at < 0:
                            raise Interruption
                    before = name
            return step

        return step

    tracer = sys.gettrace()
    sys.settrace(enter)
    try:
        act()
    except Interruption:
        return True
    finally:
        sys.settrace(tracer)
    return False


def moments(prepare, most=5000, but=()):
    """Interrupt what *prepare* gives, made anew for each moment, at each of them.

    Args:
        prepare: Gives what to do, and what looks then at what came of it, in the same context as what is typed next; it is
            told whether the first came to its end.
        most: So many moments are more than there are.
        but: Names of functions that are entered without a signal.
    """

    def at_one(at):
        act, look = prepare()
        cut = interrupted(act, at, but)
        look(not cut)
        return cut

    # What others have left is not to be finalized in the middle of it, with a signal that nobody hears of.
    gc.collect()
    gc.disable()
    try:
        # Once without, for from Python 3.12 on code may not be traced the first time.
        assert not contextvars.Context().run(at_one, most)
        for at in range(most):
            if not contextvars.Context().run(at_one, at):
                assert at > 0, "nothing was tried"
                return
        raise AssertionError("it does not end")
    finally:
        gc.enable()
