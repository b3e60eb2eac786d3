"""Learning an index's tables and coding vectors with them, as matrix products: pure functions of tensors, any device.

Results are the same on the same kind of device at the same number of threads: sums are taken in the order of sorted
labels, never by atomic additions, and blocks have fixed sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cdkit.index.layout import CENTROIDS_PER_CODEBOOK

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Early rounds see a part of the points: centroids are rough then (nested mini-batches, Newling and Fleuret 2016).
ROUNDS = (1 / 8, 1 / 8, 1 / 4, 1 / 4, 1 / 2, 1 / 2, 1.0, 1.0)
CODEBOOK_ROUNDS = 8
CODEBOOK_POINTS = 65_536
ROTATION_ROUNDS, ROTATION_FIRST_ROUNDS, ROTATION_NEXT_ROUNDS = 4, 8, 2
ROTATION_POINTS = 16_384
# Bytes of similarities at a time: what a cache holds on CPUs, a share of the memory on GPUs.
CPU_BLOCK_BYTES, GPU_BLOCK_BYTES = 1 << 22, 1 << 30


@dataclass(frozen=True)
class Tables:
    """What an index learns: rotation [reduced, d], unit centroids [lists, reduced], codebooks [m, 256, part].

    Codes of signs have no codebooks: [0, 0, 0].
    """

    rotation: Tensor
    centroids: Tensor
    codebooks: Tensor

    def to(self, device: torch.device | str) -> Tables:
        return Tables(self.rotation.to(device), self.centroids.to(device), self.codebooks.to(device))


@dataclass(frozen=True)
class Kernels:
    """The two inner loops. nearest: points, centroids → labels; encode: points, codebooks → codes."""

    nearest: Callable[[Tensor, Tensor], Tensor]
    encode: Callable[[Tensor, Tensor], Tensor]


def tensor_kernels() -> Kernels:
    """The inner loops in PyTorch alone: the way of GPUs."""
    return Kernels(nearest, encode)


def learn_tables(
    vectors: Tensor,
    *,
    reduced: int,
    code_bytes: int,
    lists: int,
    seed: int,
    kernels: Kernels,
    done: Callable[[str], object] = str,
) -> Tables:
    """Rotation, coarse centroids and codebooks from `vectors` [points, dimension], any float type, in random order.

    code_bytes: 0 for codes of signs, which have no codebooks. done: is told the name of each part that is learned.
    """
    rotation = learn_rotation(vectors, reduced, code_bytes, kernels, seed=seed)
    points = rotate(vectors, rotation)
    done("rotation")
    centroids = spherical_k_means(points, lists, kernels.nearest)
    done("k-means")
    if not code_bytes:
        return Tables(rotation, centroids, centroids.new_empty((0, 0, 0)))
    sample = points[:CODEBOOK_POINTS].float()
    residuals = sample - centroids[kernels.nearest(sample, centroids)]
    codebooks = train_codebooks(residuals, code_bytes, kernels.encode, rounds=CODEBOOK_ROUNDS)
    done("codebooks")
    return Tables(rotation, centroids, codebooks)


def assign_and_encode(tables: Tables, vectors: Tensor, kernels: Kernels) -> tuple[Tensor, Tensor]:
    """List number (int64 [n]) and code of the residual (uint8 [n, m]) of each vector."""
    points = rotate(vectors, tables.rotation).float()
    lists = kernels.nearest(points, tables.centroids)
    if not len(tables.codebooks):
        return lists, encode_signs(points, tables.centroids[lists])
    return lists, kernels.encode(points - tables.centroids[lists], tables.codebooks)


def encode_signs(points: Tensor, centroids: Tensor) -> Tensor:
    """Codes of `points` [n, d] in the lists of `centroids` [n, d], as FAISS's RaBitQ has them: uint8 [n, d / 8 + 8].

    The signs of the residual r, the first in the lowest bit, then two float32: ‖r‖² − ‖x‖² and √d ‖r‖² / Σ |r|.
    """
    import torch

    residuals = points - centroids
    weights = 2 ** torch.arange(8, dtype=torch.uint8, device=points.device)
    signs = ((residuals > 0).view(len(points), -1, 8) * weights).sum(dim=2, dtype=torch.uint8)
    squares = residuals.square().sum(dim=1)
    # A residual of nothing has no direction to undo.
    scales = squares * points.shape[1] ** 0.5 / residuals.abs().sum(dim=1).clamp_min(1e-12)
    factors = torch.stack([squares - points.square().sum(dim=1), scales], dim=1)
    return torch.cat([signs, factors.view(torch.uint8)], dim=1)


def rotate(vectors: Tensor, rotation: Tensor) -> Tensor:
    """`vectors` in the rotated, reduced space [n, reduced]; half precision on GPUs, fp32 elsewhere."""
    import torch

    points = torch.empty((len(vectors), len(rotation)), dtype=_operand_type(vectors), device=vectors.device)
    for rows in _blocks(vectors, 4 * vectors.shape[1]):
        points[rows] = vectors[rows].float() @ rotation.T
    return points


def principal_directions(vectors: Tensor, count: int) -> Tensor:
    """The `count` orthonormal directions that keep most of the vectors' inner products, float32 [count, dimension]."""
    import torch

    size = vectors.shape[1]
    moment = torch.zeros((size, size), dtype=torch.float64)
    for rows in _blocks(vectors, 4 * size):
        block = vectors[rows].float()
        moment += (block.T @ block).cpu()
    _, directions = torch.linalg.eigh(moment)
    largest: Tensor = directions.flip(1)[:, :count].T.float().contiguous()
    return largest.to(vectors.device)


def learn_rotation(vectors: Tensor, reduced: int, code_bytes: int, kernels: Kernels, *, seed: int) -> Tensor:
    """The principal subspace, not centred (inner products would change), then turned for the codebooks (OPQ).

    OPQ alone starts from a random subspace, where half of every similarity is lost, and leaves it slowly.
    Ge et al., "Optimized Product Quantization", 2013: codebooks and rotation are improved in turn. Without codebooks
    (code_bytes 0) the turn stays random, which is what RaBitQ asks for.
    """
    import torch

    basis = principal_directions(vectors, reduced)
    points = vectors[:ROTATION_POINTS].float() @ basis.T
    # A random start spreads the principal directions over the parts of a code.
    random = torch.randn((reduced, reduced), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    turn: Tensor = torch.linalg.qr(random)[0].float().to(points.device)
    codebooks = None
    for number in range(ROTATION_ROUNDS if code_bytes else 0):
        turned = points @ turn.T
        rounds = ROTATION_NEXT_ROUNDS if number else ROTATION_FIRST_ROUNDS
        codebooks = train_codebooks(turned, code_bytes, kernels.encode, rounds=rounds, start=codebooks)
        decoded = decode(kernels.encode(turned, codebooks), codebooks)
        left, _, right = torch.linalg.svd((decoded.T @ points).double().cpu())
        turn = (left @ right).float().to(points.device)
    return turn @ basis


def spherical_k_means(points: Tensor, lists: int, nearest: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Unit centroids float32 [lists, d] of greatest inner products with their points; the first points start it."""
    import torch

    centroids = torch.nn.functional.normalize(points[:lists].float(), dim=1)
    for size in batch_sizes(len(points), lists):
        batch = points[:size]
        sums, sizes = group_sums(batch, nearest(batch, centroids), lists)
        moved = torch.where(sizes[:, None] > 0, torch.nn.functional.normalize(sums, dim=1), centroids)
        centroids = torch.nn.functional.normalize(_split(moved[None], sizes[None])[0], dim=1)
    return centroids


def batch_sizes(points: int, lists: int) -> list[int]:
    """Points that each round of k-means sees."""
    return [max(min(points, 4 * lists), int(share * points)) for share in ROUNDS]


def train_codebooks(
    points: Tensor,
    code_bytes: int,
    encode: Callable[[Tensor, Tensor], Tensor],
    *,
    rounds: int,
    start: Tensor | None = None,
) -> Tensor:
    """k-means in each part of `points` [n, d]: float32 [code bytes, 256, d / code bytes]."""
    import torch

    count, part = CENTROIDS_PER_CODEBOOK, points.shape[1] // code_bytes
    first = points[torch.arange(count, device=points.device) % len(points)]
    codebooks = first.reshape(count, code_bytes, part).transpose(0, 1).contiguous() if start is None else start
    offsets = torch.arange(code_bytes, device=points.device) * count
    for _ in range(rounds):
        labels = encode(points, codebooks).long() + offsets
        sums, sizes = group_sums(points.reshape(-1, part), labels.reshape(-1), code_bytes * count)
        means = (sums / sizes.clamp(min=1)[:, None]).reshape(code_bytes, count, part)
        sizes = sizes.reshape(code_bytes, count)
        codebooks = _split(torch.where(sizes[:, :, None] > 0, means, codebooks), sizes)
    return codebooks


def group_sums(points: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Sums float32 [count, d] and sizes int64 [count] of the points of each label, in a fixed order of addition."""
    import torch

    sizes = torch.bincount(labels, minlength=count)
    if points.is_cuda:
        return _sorted_sums(points, labels, count), sizes
    return torch.zeros((count, points.shape[1])).index_add_(0, labels, points.float()), sizes


def _sorted_sums(points: Tensor, labels: Tensor, count: int) -> Tensor:
    """The sums of `group_sums` on a GPU, where additions by index come in any order."""
    import torch

    sums = torch.zeros((count, points.shape[1]), device=points.device)
    for rows in _blocks(points, 8 * points.shape[1]):
        order = torch.argsort(labels[rows], stable=True)
        lengths = torch.bincount(labels[rows], minlength=count)
        sums += torch.segment_reduce(points[rows][order].float(), "sum", lengths=lengths, unsafe=True)
    return sums


def _split(centroids: Tensor, sizes: Tensor) -> Tensor:
    """Centroids [m, k, d] in which every empty one has become half of one of the largest of its own m."""
    import torch

    rising = torch.argsort(sizes, dim=1, stable=True)
    falling = rising.flip(1)
    empty = torch.gather(sizes, 1, rising) == 0
    if not bool(empty.any()):
        return centroids
    group = torch.arange(len(sizes), device=sizes.device)[:, None].expand_as(sizes)[empty]
    large = centroids[group, falling[empty]]
    apart = 1e-3 * (1 - 2 * (torch.arange(large.shape[1], device=large.device) % 2))
    split = centroids.clone()
    split[group, falling[empty]] = large * (1 + apart)
    split[group, rising[empty]] = large * (1 - apart)
    return split


def nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """int64 [n]: the centroid of the greatest inner product with each point, the first of equal ones."""
    import torch

    labels = torch.empty(len(points), dtype=torch.int64, device=points.device)
    across = centroids.to(_operand_type(points)).T
    for rows in _blocks(points, 4 * len(centroids)):
        labels[rows] = (points[rows].to(across.dtype) @ across).argmax(dim=1)
    return labels


def encode(points: Tensor, codebooks: Tensor) -> Tensor:
    """uint8 [n, m]: in each part of a point the nearest of its codebook's 256 entries."""
    import torch

    parts, count, size = codebooks.shape
    codes = torch.empty((len(points), parts), dtype=torch.uint8, device=points.device)
    entries, halves = codebooks.transpose(1, 2), -codebooks.square().sum(dim=2)[:, None] / 2
    for rows in _blocks(points, 4 * parts * count):
        block = points[rows].float().reshape(-1, parts, size).transpose(0, 1)
        codes[rows] = torch.baddbmm(halves, block, entries).argmax(dim=2).T.to(torch.uint8)
    return codes


def decode(codes: Tensor, codebooks: Tensor) -> Tensor:
    """float32 [n, d]: what codes stand for."""
    import torch

    parts = torch.arange(len(codebooks), device=codes.device)
    return codebooks[parts, codes.long()].reshape(len(codes), -1)


def _blocks(rows: Tensor, row_bytes: int) -> Iterator[slice]:
    """Slices of `rows` whose results, of `row_bytes` each, fit at once."""
    size = max(64, (GPU_BLOCK_BYTES if rows.is_cuda else CPU_BLOCK_BYTES) // row_bytes)
    for start in range(0, len(rows), size):
        yield slice(start, start + size)


def _operand_type(like: Tensor) -> Any:
    """Half precision on GPUs, whose matrix units want it: similarities of unit vectors move by 5e-4 at most."""
    import torch

    return torch.float16 if like.is_cuda else torch.float32
