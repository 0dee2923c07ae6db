"""The wrapper around a decorated function: looks like the function without what is injected, and calls it with it.

It is a wrapt proxy, so that it binds as a method does, carries the function's attributes, and passes for a function wherever
a framework looks at it. What a framework must not see of the injected parameters (signature, annotations, docstring) is
answered here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import CodeType
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

import wrapt

from agent_gantry_state.injection.call import runner
from agent_gantry_state.injection.plan import Declaration, Plan
from agent_gantry_state.injection.short import caller
from agent_gantry_state.wiring import Wiring

__all__ = ["BoundTool", "Tool", "decorate"]

P = ParamSpec("P")
R = TypeVar("R")

if TYPE_CHECKING:

    class _Function(Generic[P, R]):
        """What type checkers see: arguments are anything, for PEP 612 cannot take a named one away."""

        __name__: str
        __qualname__: str
        __wrapped__: Callable[P, R]

        def __init__(self, wrapped: Callable[P, R], wrapper: Any) -> None: ...
        def __call__(self, *args: Any, **kwargs: Any) -> R: ...
        @overload
        def __get__(self, instance: None, owner: type, /) -> Tool[P, R]: ...
        @overload
        def __get__(self, instance: object, owner: type | None = None, /) -> BoundTool[R]: ...
        def __get__(self, instance: object | None, owner: type | None = None, /) -> Any: ...

    class _Method(Generic[R]):
        __name__: str
        __qualname__: str
        __wrapped__: Callable[..., R]
        _self_parent: Any
        _self_instance: Any
        _self_owner: Any

        def __call__(self, *args: Any, **kwargs: Any) -> R: ...

else:

    class _Generic:
        def __class_getitem__(cls, _: Any) -> type:
            return cls

    class _Function(_Generic, wrapt.FunctionWrapper):
        # A slot, not a method: calling it costs half of what a method would, for there is no frame in between.
        __slots__ = ("__call__",)

    class _Method(_Generic, wrapt.BoundFunctionWrapper):
        pass


class BoundTool(_Method[R]):
    """A tool that is bound to an instance or a class."""

    @property
    def plan(self) -> Plan:
        """How memory gets into the function."""
        return self._self_parent.plan  # type: ignore[no-any-return]

    @property
    def shift(self) -> int:
        """How many arguments of the function are bound: 1 for a method, 0 for a static one."""
        return int(inspect.ismethod(self.__wrapped__))

    def __call__(self, *args: Any, **kwargs: Any) -> R:
        return runner(self.plan)(self.plan, self.__wrapped__, self.shift, args, kwargs)  # type: ignore[no-any-return]

    @property
    def __func__(self) -> Any:
        # inspect asks a method for its function, whatever the method itself says of its signature and kind.
        return self._self_parent._self_function

    @property
    def __signature__(self) -> inspect.Signature:
        signature = self.plan.signature()
        return signature.replace(parameters=list(signature.parameters.values())[self.shift :])

    @property
    def __annotations__(self) -> dict[str, Any]:  # type: ignore[override]
        return self.plan.annotations()

    @property
    def __annotate__(self) -> Any:
        return self.plan.annotate

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return self.plan.doc

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BoundTool):
            return NotImplemented
        return self._self_parent is other._self_parent and self._self_instance is other._self_instance

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((id(self._self_parent), id(self._self_instance)))

    def __copy__(self) -> BoundTool[R]:
        return self

    def __deepcopy__(self, memo: Any) -> BoundTool[R]:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        owner = getattr(self.__wrapped__, "__self__", None) or self._self_owner
        return getattr, (owner, self.__wrapped__.__name__)


class Tool(_Function[P, R]):
    """A function that is given its memory.

    It is called like the function without the injected parameters. `__wrapped__` is the function itself, to which a test
    can hand a plain dict.
    """

    __bound_function_wrapper__ = BoundTool
    _self_plan: Plan

    def __init__(self, wrapped: Callable[P, R], plan: Plan) -> None:
        super().__init__(wrapped, _unused)
        self._self_plan = plan
        # For a class or static method, the tool of the function in it.
        self._self_function: Any = self if plan.target is wrapped else Tool(plan.target, plan)
        type(self).__call__.__set__(self, caller(plan, wrapped))  # type: ignore[attr-defined]

    @property
    def plan(self) -> Plan:
        """How memory gets into the function."""
        return self._self_plan

    @property
    def shift(self) -> int:
        """How many arguments of the function are bound: none."""
        return 0

    @property
    def __signature__(self) -> inspect.Signature:
        return self._self_plan.signature()

    @property
    def __annotations__(self) -> dict[str, Any]:  # type: ignore[override]
        return self._self_plan.annotations()

    @property
    def __annotate__(self) -> Any:
        return self._self_plan.annotate

    # FastMCP makes a function of its own of what it finds in this one, to give it other annotations. That has to be one that
    # calls the tool and has its signature, and not the body with what is injected.
    @property
    def __code__(self) -> CodeType:
        body = self.__wrapped__.__code__
        names = {"co_name": body.co_name, "co_filename": body.co_filename, "co_firstlineno": body.co_firstlineno}
        code: CodeType = _double(self).__code__.replace(**names)
        return code

    @property
    def __closure__(self) -> Any:
        return _double(self).__closure__

    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override]
        return {**vars(self.__wrapped__), "__signature__": self.__signature__}

    @property
    def __doc__(self) -> str | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._self_plan.doc

    @__doc__.setter
    def __doc__(self, doc: str | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._self_plan.doc = doc

    def __delattr__(self, name: str) -> None:
        # unittest.mock deletes what it put in place; a tool without its call would be broken for good.
        if name == "__call__":
            type(self).__call__.__set__(self, caller(self._self_plan, self.__wrapped__))  # type: ignore[attr-defined]
        else:
            super().__delattr__(name)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    def __hash__(self) -> int:
        return object.__hash__(self)

    def __copy__(self) -> Tool[P, R]:
        return self

    def __deepcopy__(self, memo: Any) -> Tool[P, R]:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        # By reference, as functions are.
        return self.__wrapped__.__qualname__


def _double(tool: Tool[Any, Any]) -> Any:
    """A function of the same kind, which does nothing but to call *tool*, and needs no globals."""
    plan = tool.plan

    async def of_async_generator(*args: Any, **kwargs: Any) -> Any:
        async for item in tool(*args, **kwargs):
            yield item

    async def of_coroutine(*args: Any, **kwargs: Any) -> Any:
        return await tool(*args, **kwargs)

    def of_generator(*args: Any, **kwargs: Any) -> Any:
        return (yield from tool(*args, **kwargs))

    def of_function(*args: Any, **kwargs: Any) -> Any:
        return tool(*args, **kwargs)

    if plan.is_async_generator:
        return of_async_generator
    if plan.is_generator:
        return of_generator
    return of_coroutine if plan.is_async else of_function


def _unused(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
    raise AssertionError("a tool and a bound tool have a call of their own")


def decorate(wiring: Wiring, fn: Any, declaration: Declaration) -> Tool[Any, Any]:
    """Make *fn* a tool, or add one more memory to a tool.

    Raises:
        DeclarationError: *fn* cannot get a memory that way.
    """
    if inspect.ismethod(fn):
        # A bound method: its function becomes the tool, and is bound again.
        return decorate(wiring, fn.__func__, declaration).__get__(fn.__self__, type(fn.__self__))  # type: ignore[return-value]
    declarations: tuple[Declaration, ...] = (declaration,)
    inner = fn.__func__ if type(fn) in (classmethod, staticmethod) else fn
    if isinstance(inner, Tool):
        inner.plan.refuse_beside(wiring, declaration)
        declarations += inner.plan.declarations
        fn = inner.__wrapped__ if inner is fn else type(fn)(inner.__wrapped__)
    return Tool(fn, Plan(wiring, fn, declarations))
