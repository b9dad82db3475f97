"""When functions get their checks of shapes and types."""

from collections.abc import Callable
from typing import Any

from beartype import beartype


def when_called(function: Callable[..., Any]) -> Callable[..., Any]:
    """`beartype(function)`, made at the first call.

    beartype writes and compiles code for every function that it checks, two thousand in this package, of which a
    command calls a few hundred: made when modules are imported, they were more than half of the time of an import.
    """
    checked = None

    def check(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        if checked is None:
            checked = beartype(function)
        return checked(*args, **kwargs)

    return check
