"""Torch forms of the elementwise ops."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sparsec.pruning.engine.ops.form import Attrs, Form, Results, torch_dtype


def _unary(name: str, function: Callable[[Tensor], Tensor], gradient: bool = True) -> Form:
    return Form(name, lambda attrs, x: (function(x),), gradient)


def _binary(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> Form:
    return Form(name, lambda attrs, a, b: (function(a, b),))


def _never_zero(b: Tensor) -> Tensor:
    return torch.where(b == 0, torch.ones_like(b), b)


def _div(a: Tensor, b: Tensor) -> Tensor:
    if a.is_floating_point():
        return a / b
    quotient = torch.div(a, _never_zero(b), rounding_mode="trunc")
    return torch.where(b == 0, torch.zeros_like(quotient), quotient)


def _pow(attrs: Attrs, a: Tensor, b: Tensor) -> Results:
    if a.is_floating_point():
        return (torch.pow(a, b.to(a.dtype)),)
    if b.is_floating_point() or bool((b < 0).any()):
        return (torch.pow(a.double(), b.double()).to(a.dtype),)
    return (torch.pow(a, b.to(a.dtype)),)


def _mod(attrs: Attrs, a: Tensor, b: Tensor) -> Results:
    function = torch.fmod if attrs.get("fmod") else torch.remainder
    if a.is_floating_point():
        return (function(a, b),)
    rest = function(a, _never_zero(b))
    return (torch.where(b == 0, torch.zeros_like(rest), rest),)


def _cast(attrs: Attrs, x: Tensor) -> Results:
    dtype = torch_dtype(attrs["to"])
    return (x != 0 if dtype == torch.bool else x.to(dtype),)


def _gelu(attrs: Attrs, x: Tensor) -> Results:
    return (torch.nn.functional.gelu(x, approximate=attrs.get("approximate", "none")),)


def _relu(x: Tensor) -> Tensor:
    return x.clamp(min=0)


def _where(attrs: Attrs, condition: Tensor, a: Tensor, b: Tensor) -> Results:
    return (torch.where(condition, a, b),)


ROWS = [
    _binary("add", torch.add),
    _binary("sub", torch.sub),
    _binary("mul", torch.mul),
    _binary("div", _div),
    Form("pow", _pow),
    Form("mod", _mod),
    _binary("min", torch.minimum),
    _binary("max", torch.maximum),
    _unary("neg", torch.neg),
    _unary("abs", torch.abs),
    _unary("sqrt", torch.sqrt),
    _unary("exp", torch.exp),
    _unary("log", torch.log),
    _unary("sin", torch.sin),
    _unary("cos", torch.cos),
    _unary("erf", torch.erf),
    _unary("tanh", torch.tanh),
    _unary("sigmoid", torch.sigmoid),
    _unary("relu", _relu),
    _unary("reciprocal", torch.reciprocal),
    _unary("floor", torch.floor, gradient=False),
    _unary("ceil", torch.ceil, gradient=False),
    _unary("round", torch.round, gradient=False),
    _unary("sign", torch.sign, gradient=False),
    _unary("not", torch.logical_not),
    _unary("isnan", torch.isnan),
    _binary("and", torch.logical_and),
    _binary("or", torch.logical_or),
    _binary("equal", torch.eq),
    _binary("less", torch.lt),
    _binary("less_equal", torch.le),
    _binary("greater", torch.gt),
    _binary("greater_equal", torch.ge),
    Form("where", _where),
    Form("cast", _cast),
    Form("gelu", _gelu),
]
