"""What a component is: a context and a table from request class to handler."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from protocols.message import Message, Request
from services.component.context import Context

R = TypeVar("R", bound=Message)
Handler = Callable[[Any, Any], Awaitable[Message]]
_F = TypeVar("_F", bound=Callable[..., Any])


def handles(request: type[Request[Any]]) -> Callable[[_F], _F]:
    """Mark an ``async def`` method as the one handler of a request class."""

    def mark(function: _F) -> _F:
        function.__handles__ = request  # type: ignore[attr-defined]
        return function

    return mark


class Component:
    """Base of every component; subclasses mark handlers with ``@handles``."""

    recognises_repeats = True
    """Whether the host may drop an envelope that a link delivers again."""
    _handler_names: dict[type[Message], str] = {}  # noqa: RUF012

    def __init_subclass__(cls) -> None:
        """Collect the handler table, and refuse two handlers of one request."""
        super().__init_subclass__()
        table: dict[type[Message], str] = {}
        for base in cls.__bases__:
            for request, name in getattr(base, "_handler_names", {}).items():
                assert table.setdefault(request, name) == name, (
                    f"{cls.__name__}: two handlers of {request.__name__}"
                )
        own: set[type[Message]] = set()
        for name, member in vars(cls).items():
            request = getattr(member, "__handles__", None)
            if request is None:
                continue
            assert request not in own, f"{cls.__name__}: two handlers of {request.__name__}"
            own.add(request)
            table[request] = name
        cls._handler_names = table

    def __init__(self, context: Context) -> None:
        self.context = context

    def handlers(self) -> dict[type[Message], Callable[[Any], Any]]:
        """Request class to bound handler."""
        return {kind: getattr(self, name) for kind, name in self._handler_names.items()}
