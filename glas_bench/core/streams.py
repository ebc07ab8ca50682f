"""Randomness by purpose: separate streams of one seed, each addressed and never advanced.

A stream is named by (seed, purpose, indices), e.g. (0, "noise", epoch, step), and hashed to a key.
So nothing depends on what was drawn before: a run resumes at any step, variants of one seed share
their data order and noise, and no state needs saving.

Noise itself is a function of (key, block, position): the counter-based generator Philox4x32-10
(Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3", table 2 and
section 4.3) and the transform of Box & Muller (1958). It is written in tensor operations, because
torch's own generators give other numbers on a GPU than on a CPU, and advance: this one gives the
same numbers on both, to rounding, for many seeds or images at once, and inside a captured graph,
where the block is a counter on the device.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = 0xFFFFFFFF


def derive(seed: int, purpose: str, *indices: int | str) -> int:
    """Return the 63-bit key of a stream."""
    name = "/".join(str(part) for part in (seed, purpose, *indices))
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def keys(seed: int, purpose: str, indices: Iterable[int | str]) -> Tensor:
    """Return the keys of one stream an index, int64 [N] on the CPU."""
    return torch.tensor([derive(seed, purpose, i) for i in indices], dtype=torch.int64)


def generator(seed: int, purpose: str, *indices: int | str) -> torch.Generator:
    """Return a CPU generator of torch's at the beginning of a stream."""
    return torch.Generator().manual_seed(derive(seed, purpose, *indices))


def normal(
    shape: tuple[int, ...],
    seed: int,
    purpose: str,
    *indices: int | str,
    block: int = 0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return float32 standard-normal noise of `shape` from one stream."""
    key = torch.tensor(derive(seed, purpose, *indices), device=device)
    return normals(key, math.prod(shape), block).reshape(shape)


def normals(keys: Tensor, count: int, block: Tensor | int = 0) -> Tensor:
    """Return float32 standard-normal noise [..., count] on the device of the keys.

    Position i of a stream does not depend on `count`, and no two blocks below 2^32 overlap.

    Args:
        keys: int64 [...], as `derive` gives them.
        count: numbers wanted of each stream.
        block: stretch of the stream; an int, or int64 that broadcasts to the keys.
    """
    return normals_at(counters(count, keys.device), keys, block)[..., :count]


def counters(count: int, device: torch.device) -> Tensor:
    """Return the counters 0, 1, ... of `count` numbers, four of each, int64."""
    return torch.arange(-(-count // 4), device=device)


def normals_at(counters_N: Tensor, keys: Tensor, block: Tensor | int) -> Tensor:
    """Return the normals of these counters [N], float32 [..., 4 N]; as `normals` otherwise.

    This part may be compiled. The counters may not be made in it: torch's compiler takes a multiple
    of `arange` for a place in memory, in fewer bits than the product has.
    """
    a, b, c, d = _philox(counters_N, keys, block)
    pairs = (*_box_muller(a, b), *_box_muller(c, d))
    return torch.stack(pairs, -1).flatten(-2)


def _philox(counters_N: Tensor, keys: Tensor, block: Tensor | int) -> tuple[Tensor, ...]:
    """Return four words in [0, 2^32) as int64 [..., N] for these counters [N]."""
    a = counters_N.expand(*keys.shape, len(counters_N))
    blocks = torch.as_tensor(block, device=keys.device).expand(keys.shape)
    b, d = torch.zeros_like(a), torch.zeros_like(a)
    c = (blocks & _LOW)[..., None].expand_as(a)
    low, high = (keys & _LOW)[..., None], ((keys >> 32) & _LOW)[..., None]
    for _ in range(_ROUNDS):
        first_high, first_low = _product(a, _MULTIPLIERS[0])
        second_high, second_low = _product(c, _MULTIPLIERS[1])
        a, b, c, d = second_high ^ b ^ low, second_low, first_high ^ d ^ high, first_low
        low, high = (low + _WEYL[0]) & _LOW, (high + _WEYL[1]) & _LOW
    return a, b, c, d


def _product(word: Tensor, other: int) -> tuple[Tensor, Tensor]:
    """Return the high and the low word of a product of two words."""
    if torch.compiler.is_compiling():  # a compiler may assume that int64 does not overflow
        low = (word & 0xFFFF) * other
        high = (word >> 16) * other + (low >> 16)
        return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)
    product = word * other  # wraps around and keeps its 64 bits
    return (product >> 32) & _LOW, product & _LOW


def _box_muller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return two standard normals from two words; the largest there is has length 6.8."""
    radius = (-2 * ((a.to(torch.float32) + 0.5) * 2.0**-32).log()).clamp(min=0).sqrt()
    angle = b.to(torch.float32) * (2 * math.pi * 2.0**-32)
    return radius * angle.cos(), radius * angle.sin()
