"""Fake tensors that are quick to compute with: what an operator made of tensors of a form, it makes of them again.

`FakeTensorMode` remembers results too, under keys that are for all programs and took half the time of a trace. A key
here is what shapes the result of a step: the operator, each tensor's dtype, shape, strides, offset and device, and the
plain arguments. How a result is made again is looked up on the result itself, not in a list of operators: it is an
argument, a view of an argument's storage or a storage of its own. Where it is anything else, torch computes it each
time.

No result depends on values: fake tensors have none, and without symbolic shapes torch refuses an operator that asks
for them. The few that do have values, as `FakeTensor.constant`, are left to torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager

from qlora_cli.plan.trace.live_memory import DEVICE_OF

Maker = Callable[[FakeTensorMode, Sequence[FakeTensor]], Any]
"""Makes a result again, given the tensors among the operator's arguments, in their order."""

PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device, torch.layout, torch.memory_format)
"""Types of arguments that are fully known by what they are equal to."""

MOST_KNOWN = 50_000
"""Results that are remembered, at about 1 KB each; then learning begins again. A step of most bases has 500."""

_known: dict[tuple[Any, ...], Maker] = {}


class QuickFakes(FakeTensorMode):
    """Torch's mode, with a memory that all instances in the process share."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors: list[FakeTensor] = []
        form = None if func is DEVICE_OF else _form(func, args, kwargs, tensors)
        if form is None:
            return super().__torch_dispatch__(func, types, args, kwargs)
        make = _known.get(form)
        if make is not None:
            return make(self, tensors)
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if _form(func, args, kwargs, []) == form:  # else it has changed an argument's form, as `t_` does
            _learn(form, _maker(result, tensors))
        return result


def _learn(form: tuple[Any, ...], make: Maker | None) -> None:
    if make is None:
        return
    if len(_known) >= MOST_KNOWN:
        _known.clear()
    _known[form] = make


def _form(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], tensors: list[FakeTensor]
) -> tuple[Any, ...] | None:
    """What shapes the result; None where it may be more than can be said here.

    Args:
        tensors: those among the arguments are appended.
    """
    form: list[Any] = [func, torch.get_default_dtype(), *kwargs]
    return tuple(form) if _add(form, args, tensors) and _add(form, kwargs.values(), tensors) else None


def _add(form: list[Any], values: Iterable[Any], tensors: list[FakeTensor]) -> bool:
    for value in values:
        if isinstance(value, torch.Tensor):
            if not isinstance(value, FakeTensor) or not _is_plain(value):
                return False
            tensors.append(value)
            form += (value.dtype, value.shape, value.stride(), value.storage_offset(), value.fake_device)
        elif isinstance(value, list | tuple):
            form.append(len(value))
            if not _add(form, value, tensors):
                return False
        elif isinstance(value, PLAIN):
            form += (type(value), value)  # 1, 1.0 and True are equal
        else:
            return False
    return True


def _is_plain(tensor: FakeTensor) -> bool:
    """Whether a tensor is no more than its form: without values, and not read as something else than is stored."""
    is_read_as_stored = not (tensor.dtype.is_complex or tensor.is_neg())
    return tensor.constant is None and is_read_as_stored and tensor.layout is torch.strided


def _maker(result: Any, tensors: Sequence[FakeTensor]) -> Maker | None:
    """How to make this result again; None where it cannot be said."""
    if not isinstance(result, list | tuple):
        return _maker_of_one(result, tensors)
    makers = [make for item in result if (make := _maker_of_one(item, tensors)) is not None]
    storages = [item.untyped_storage()._cdata for item in result if isinstance(item, torch.Tensor)]
    if len(makers) < len(result) or len(set(storages)) < len(storages):
        return None
    kind = list if isinstance(result, list) else tuple
    return lambda mode, given: kind([make(mode, given) for make in makers])


def _maker_of_one(result: Any, tensors: Sequence[FakeTensor]) -> Maker | None:
    if result is None or type(result) in (bool, int, float):
        return lambda mode, given: result
    if type(result) is not FakeTensor or result.requires_grad or not _is_plain(result):
        return None
    storage = result.untyped_storage()._cdata
    of_storage = [index for index, tensor in enumerate(tensors) if tensor.untyped_storage()._cdata == storage]
    if not of_storage:
        return _maker_of_storage(result)
    if len(of_storage) > 1:  # next time they may be different storages, and which one is meant cannot be seen
        return None
    (index,) = of_storage
    return (lambda mode, given: given[index]) if tensors[index] is result else _maker_of_view(result, index)


def _maker_of_view(view: FakeTensor, index: int) -> Maker:
    offset, shape, stride = view.storage_offset(), tuple(view.shape), view.stride()
    dtype, device = view.dtype, view.fake_device

    def make(mode: FakeTensorMode, given: Sequence[FakeTensor]) -> FakeTensor:
        made = torch.empty((), dtype=dtype, device="meta")
        with in_kernel_invocation_manager(mode):
            made.set_(given[index].untyped_storage(), offset, shape, stride)
        return FakeTensor(mode, made, device)

    return make


def _maker_of_storage(result: FakeTensor) -> Maker | None:
    shape, stride, dtype, device = tuple(result.shape), result.stride(), result.dtype, result.fake_device

    def make(mode: FakeTensorMode, given: Sequence[FakeTensor]) -> FakeTensor:
        return FakeTensor(mode, torch.empty_strided(shape, stride, dtype=dtype, device="meta"), device)

    made = make(result.fake_mode, ())
    is_same_size = made.untyped_storage().nbytes() == result.untyped_storage().nbytes()
    return make if is_same_size and result.storage_offset() == 0 else None
