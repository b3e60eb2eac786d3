"""The Ray engine: the same work on a Ray cluster, one outcome per item."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from cdkit.core.errors import MissingExtraError
from cdkit.core.protocols import Item, Outcome, Value


class RayEngine:
    """Runs work as Ray tasks on the cluster of $RAY_ADDRESS, or on one started on this machine.

    `workers` bounds the tasks in flight; None means one per CPU of the cluster. Raises MissingExtraError without ray.
    """

    name = "ray"

    def __init__(self, workers: int | None) -> None:
        try:
            import ray
        except ImportError as error:
            raise MissingExtraError("The engine 'ray'", extra="ray") from error
        if not ray.is_initialized():
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
        self.workers = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))

    @property
    def gpus(self) -> int:
        import ray

        return int(ray.cluster_resources().get("GPU", 0))

    def map(
        self, work: Callable[[Item], Value], items: Sequence[Item], *, label: str, gpu: bool = False
    ) -> Iterator[Outcome[Item, Value]]:
        """Yield one outcome per item, in order; at most `workers` tasks are in flight, with `gpu` one on each GPU."""
        import ray

        # Ray takes plain functions only, and work is often a partial; it is stored once, not sent with every item.
        # A task that asks for a GPU waits for a free one and sees no other.
        task = ray.remote(max_retries=1)(_call).options(name=label, num_gpus=1 if gpu and self.gpus else 0)
        stored = ray.put(work)
        waiting = iter(items)
        flying = deque((item, task.remote(stored, item)) for item in islice(waiting, self.workers))
        while flying:
            item, reference = flying.popleft()
            outcome: Outcome[Item, Value] = _outcome(item, reference)
            flying.extend((following, task.remote(stored, following)) for following in islice(waiting, 1))
            yield outcome


def _call(work: Callable[[Item], Value], item: Item) -> Value:
    return work(item)


def _outcome(item: Item, reference: object) -> Outcome[Item, Value]:
    import ray

    try:
        return Outcome(item, value=ray.get(reference))
    except ray.exceptions.RayTaskError as error:
        return Outcome(item, error=error.cause if isinstance(error.cause, Exception) else error)
    except ray.exceptions.RayError as error:
        return Outcome(item, error=error)
