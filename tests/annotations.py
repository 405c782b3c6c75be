"""pdiff's annotations, checked by every call while tests run."""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

_CHECK = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int where a float is asked for is fine


def install() -> None:
    """Checks whatever is imported of pdiff from now on."""
    jaxtyping.install_import_hook("pdiff", f"{__name__}.checked")


def checked(function: Callable) -> Callable:
    """`function` with its annotations checked.

    JAX makes dataclasses that are pytrees anew with whatever takes the place of their arrays: shapes, shardings, None.
    So these are checked only where someone else makes them.
    """
    if all(hint is Any for hint in function.__annotations__.values()):
        return function  # nothing to check, as of most inner functions
    check = _CHECK(function)
    if function.__name__ != "__init__":
        return check

    @functools.wraps(function)
    def init(*args, **kwargs):
        frame = sys._getframe(1)
        while frame.f_globals["__name__"].startswith("jaxtyping."):
            frame = frame.f_back
        return None if frame.f_globals["__name__"].startswith("jax.") else check(*args, **kwargs)

    return init


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """As outside of tests: for what annotations rule out, and what is refused with a message all the same."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
