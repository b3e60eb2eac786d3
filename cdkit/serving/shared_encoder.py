"""One encoder for many requests: what they ask for at the same time is one batch, and what was asked for is kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from cdkit.core.protocols import TextEncoder

# Embeddings kept: of queries that come again, and of captions that many answers encode again.
MEMORY_BYTES = 64 << 20
# Of one text and its place in the memory, beside the embedding.
TEXT_BYTES = 200


@dataclass
class _Order:
    """The texts one request waits for, and what became of them."""

    texts: Sequence[str]
    vectors: np.ndarray | None = None
    error: BaseException | None = None


@dataclass
class EncoderUse:
    """What an encoder has done. encoded: texts; batches: times the model ran; remembered: texts it did not run for."""

    encoded: int = 0
    batches: int = 0
    remembered: int = 0


@dataclass
class SharedEncoder:
    """A TextEncoder that several threads may call: whoever comes while it works waits, and is done with the others."""

    encoder: TextEncoder
    memory_bytes: int = MEMORY_BYTES
    use: EncoderUse = field(default_factory=EncoderUse)

    def __post_init__(self) -> None:
        self.spec = self.encoder.spec
        self.dimension = self.encoder.dimension
        self.context_length = self.encoder.context_length
        self.default_threshold = self.encoder.default_threshold
        self.precision = self.encoder.precision
        self._capacity = max(1, self.memory_bytes // (4 * self.dimension + TEXT_BYTES))
        self._remembered: OrderedDict[str, np.ndarray] = OrderedDict()
        self._waiting: list[_Order] = []
        # _gate guards what is kept and who waits, _turn the model.
        self._gate, self._turn = threading.Lock(), threading.Lock()

    def weights_hash(self) -> str:
        return self.encoder.weights_hash()

    def token_counts(self, captions: Sequence[str]) -> np.ndarray:
        return self.encoder.token_counts(captions)

    def encode(self, captions: Sequence[str], *, advance: Callable[[int], None] | None = None) -> np.ndarray:
        """float32 [n, dimension], rows of norm 1, in the order given; raises what the encoder raises."""
        import numpy as np

        vectors = self._recall(captions)
        missing = list(dict.fromkeys(text for text in captions if text not in vectors))
        if missing:
            vectors |= zip(missing, self._order(missing), strict=True)
        if advance is not None:
            advance(len(captions))
        if not captions:
            return np.empty((0, self.dimension), dtype=np.float32)
        return np.stack([vectors[text] for text in captions])

    def _recall(self, captions: Sequence[str]) -> dict[str, np.ndarray]:
        with self._gate:
            kept = {text: self._remembered[text] for text in captions if text in self._remembered}
            for text in kept:
                self._remembered.move_to_end(text)
            self.use.remembered += len(kept)
        return kept

    def _order(self, texts: list[str]) -> np.ndarray:
        order = _Order(texts)
        with self._gate:
            self._waiting.append(order)
        with self._turn:
            # While this thread waited, another may have taken its order along.
            if order.vectors is None and order.error is None:
                with self._gate:
                    orders, self._waiting = self._waiting, []
                self._run(orders)
        if order.vectors is None:
            raise order.error or AssertionError("an order was neither done nor refused")
        return order.vectors

    def _run(self, orders: Sequence[_Order]) -> None:
        texts = list(dict.fromkeys(text for order in orders for text in order.texts))
        try:
            vectors = dict(zip(texts, self.encoder.encode(texts), strict=True))
        except BaseException as error:
            for order in orders:
                order.error = error
            return
        import numpy as np

        for order in orders:
            order.vectors = np.stack([vectors[text] for text in order.texts])
        with self._gate:
            self.use.encoded += len(texts)
            self.use.batches += 1
            for text, vector in vectors.items():
                self._remembered[text] = vector.copy()
            while len(self._remembered) > self._capacity:
                self._remembered.popitem(last=False)
