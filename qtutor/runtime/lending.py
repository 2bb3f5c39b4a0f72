"""A module that lends its packed bytes to a kernel, which keeps them in its own order.

The bytes exist only once: while they are lent, the buffer ``packed`` is empty. Any access to this buffer, or to the
module's buffers (``state_dict``, ``to``, ``copy.deepcopy``, ``model.buffers()`` ...), first takes the bytes back, in
the usual order; the next product lends them again. So no other code has to know about the loan.

Other code may also hold the tensor that was lent: a tied embedding, or a dict from which the model was loaded. Then the
tensor stays alive beside the kernel's copy. The same tensor is then taken back, and a change in place is noticed.
"""

import contextlib
import os
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

LENT = "packed"
# One lock for all modules: it is held only while bytes change places. A lock per module could not be copied or saved.
_LOCK = threading.RLock()


@dataclass
class Loan:
    """kernel, state: the kernel with the bytes, and its state. tensor: the lent one, while other code holds it, too."""

    kernel: object
    state: object
    tensor: weakref.ref
    version: int

    def outdated(self) -> bool:
        """Whether the lent tensor was changed in place by other code that still holds it."""
        tensor = self.tensor()
        return tensor is not None and tensor._version != self.version


class Lending(nn.Module):
    """A module with a buffer ``packed`` that a kernel may take over."""

    _loan: Loan | None = None

    def held(self) -> list[torch.Tensor]:
        """The buffers that the module has at present, without a lent one."""
        return [buffer for buffer in self.__dict__["_buffers"].values() if buffer is not None]

    def loan_is_outdated(self) -> bool:
        """Whether the bytes are lent, and were changed in place since."""
        loan = self._loan
        return loan is not None and loan.outdated()

    @contextlib.contextmanager
    def settled(self) -> Iterator[None]:
        """Inside, all buffers are back, and no other thread lends them or takes them back."""
        with _LOCK:
            self.take_back()
            yield

    def lend(self, kernel) -> object:
        """Let ``kernel`` prepare its state, which keeps the packed bytes; return it. Call this in :meth:`settled`."""
        buffers = self.__dict__["_buffers"]
        packed = buffers[LENT]
        state = kernel.prepare(self)
        self._loan = Loan(kernel, state, weakref.ref(packed), packed._version)
        # A new dict, because a shallow copy of the module shares the old one.
        self.__dict__["_buffers"] = {**buffers, LENT: None}
        return state

    def take_back(self) -> None:
        """The packed bytes become the buffer ``packed`` again."""
        if self._loan is None:
            return
        with _LOCK:
            if self._loan is None:  # another thread was faster
                return
            tensor = self._loan.tensor()
            if tensor is None:
                with torch.inference_mode(False):  # changes of inference tensors are not counted
                    tensor = self._loan.kernel.packed(self._loan.state)
            self.__dict__["_buffers"][LENT] = tensor
            self._loan = None

    @property
    def _buffers(self) -> dict[str, torch.Tensor | None]:
        """The dict in which nn.Module keeps buffers. All of its methods that list them read it from here."""
        self.take_back()
        return self.__dict__["_buffers"]

    @_buffers.setter
    def _buffers(self, value: dict) -> None:
        self.__dict__["_buffers"] = value

    def __getattr__(self, name: str):
        if name != LENT:
            return super().__getattr__(name)
        with _LOCK:
            self.take_back()
            return super().__getattr__(name)

    def __setattr__(self, name: str, value) -> None:
        if name == LENT:
            self.take_back()
        super().__setattr__(name, value)

    def __getstate__(self) -> dict:
        self.take_back()
        return {name: value for name, value in self.__dict__.items() if name != "_loan"}

    def _save_to_state_dict(self, *args, **kwargs) -> None:
        with _LOCK:  # no other thread may lend buffers while they are listed
            super()._save_to_state_dict(*args, **kwargs)


def _after_fork() -> None:
    """Another thread may have held the lock; a forked child has no other thread that would release it."""
    global _LOCK
    _LOCK = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
