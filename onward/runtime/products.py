"""The table of products: what tasks have made for others, until nobody here needs it any more."""

import threading
from collections.abc import Callable, Iterator

from torch import Tensor

from onward.plan.tasks import Product, ProductKind

LARGE = (
    ProductKind.WEIGHTS,
    ProductKind.OPTIMIZER_STATE,
    ProductKind.ACTIVITIES,
    ProductKind.NEUTRAL,
)
"""What a rank takes only so much of before it is needed."""


class Products:
    """What a rank has of the products of a plan.

    A product is put in by the task of this rank that has made it, or by a message. It is released
    by each task that has used it, and freed with the last. Threads that receive messages put, and
    the rank waits.

    Args:
        uses: Returns how many tasks of this rank use a product.
        most_waiting: Times of which large products from one source may wait here.
    """

    def __init__(self, uses: Callable[[Product], int], most_waiting: int) -> None:
        self._uses, self._most_waiting = uses, most_waiting
        self._tensors: dict[Product, list[Tensor]] = {}
        self._left: dict[Product, int] = {}
        self._waiting: dict[int, set[Product]] = {}
        self._changed = threading.Condition(threading.RLock())

    def __contains__(self, product: Product) -> bool:
        """Return whether a product is here."""
        return product in self._tensors

    def __iter__(self) -> Iterator[Product]:
        """Yield the products that are here."""
        return iter(list(self._tensors))

    def put(self, product: Product, tensors: list[Tensor]) -> None:
        """Have a product here, if a task of this rank uses it."""
        with self._changed:
            left = self._uses(product)
            if left:
                self._tensors[product], self._left[product] = tensors, left
            self._changed.notify_all()

    def deliver(
        self, product: Product, tensors: list[Tensor], source: int, *, is_bounded: bool = True
    ) -> None:
        """Take a product that has arrived; wait until there is room for it.

        Args:
            product: Which.
            tensors: Its content.
            source: The rank that it comes from.
            is_bounded: Whether a large one may have to wait.
        """
        with self._changed:
            if is_bounded and product.kind in LARGE:
                waiting = self._waiting.setdefault(source, set())

                def has_room() -> bool:
                    times = {product.time} | {other.time for other in waiting}
                    return len(times) <= self._most_waiting

                self._changed.wait_for(has_room)
                waiting.add(product)
            self.put(product, tensors)

    def wait_for(self, product: Product, check: Callable[[], None]) -> list[Tensor]:
        """Return a product once it is here.

        Args:
            product: Which.
            check: Called before each wait; raises where the product will not come.
        """
        with self._changed:
            while product not in self._tensors:
                check()
                self._changed.wait()
            for waiting in self._waiting.values():
                waiting.discard(product)
            self._changed.notify_all()
            return self._tensors[product]

    def release(self, product: Product) -> None:
        """Say that a task has used a product; free it after the last."""
        with self._changed:
            self._left[product] -= 1
            if not self._left[product]:
                del self._tensors[product], self._left[product]

    def wake(self) -> None:
        """Let those who wait look again whether it is in vain."""
        with self._changed:
            self._changed.notify_all()
