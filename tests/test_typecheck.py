"""Checks of shapes and types are made when a function is first called, and then hold for every call."""

import jax.numpy as jnp
import pytest
from beartype import beartype
from beartype.roar import BeartypeCallHintParamViolation
from jaxtyping import TypeCheckError

import slotzoo.typecheck
from slotzoo.losses import codebook_loss


def test_made_once_at_the_first_call(monkeypatch):
    made = []
    monkeypatch.setattr(
        slotzoo.typecheck, "beartype", lambda function: made.append(function) or beartype(function)
    )

    def double(number: int) -> int:
        return 2 * number

    checked = slotzoo.typecheck.when_called(double)
    assert made == []
    for _ in range(2):
        assert checked(3) == 6
        with pytest.raises(BeartypeCallHintParamViolation, match="number='three'"):
            checked("three")
    assert made == [double]


def test_the_package_is_checked():
    with pytest.raises(TypeCheckError, match="codebook_loss"):
        codebook_loss(jnp.zeros((2, 3)), jnp.zeros((2, 4)))
