"""What was used last, kept within a limit."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LimitedCache(Generic[K, V]):
    """Keeps the values that were used last, none of them None; safe to be used by several threads.

    Args:
        limit: what all values together may cost; the newest one stays whatever it costs.
        cost: of a value, 1 unless given.
    """

    def __init__(self, limit: int, cost: Callable[[V], int] = lambda _: 1) -> None:
        self._limit, self._cost = limit, cost
        self._lock = threading.Lock()
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._total = 0

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The value of a key; it is made where it is not kept, by each thread that misses it."""
        value = self.peek(key)
        return self.put(key, make()) if value is None else value

    def peek(self, key: K) -> V | None:
        """The value of a key; None where it is not kept."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: K, value: V) -> V:
        """Keep a value, unless another thread was first, and return what is kept."""
        with self._lock:
            if key not in self._values:
                cost = self._cost(value)
                self._values[key] = value, cost
                self._total += cost
                while self._total > self._limit and len(self._values) > 1:
                    self._total -= self._values.popitem(last=False)[1][1]
            return self._values[key][0]
