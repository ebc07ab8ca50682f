"""Randomness by purpose: separate streams of one seed, each addressed and never advanced.

A stream is named by (seed, purpose, indices), e.g. (0, "noise", epoch, step), and hashed to the
seed of a fresh generator. So nothing depends on what was drawn before: a run resumes at any step,
variants of one seed share their data order and noise, and no state needs saving.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def derive(seed: int, purpose: str, *indices: int | str) -> int:
    """Return the 63-bit seed of a stream."""
    name = "/".join(str(part) for part in (seed, purpose, *indices))
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def generator(seed: int, purpose: str, *indices: int | str) -> torch.Generator:
    """Return a CPU generator at the beginning of a stream."""
    return torch.Generator().manual_seed(derive(seed, purpose, *indices))


def normal(shape: tuple[int, ...], seed: int, purpose: str, *indices: int | str) -> Tensor:
    """Return float32 standard-normal noise of `shape` from a stream, on the CPU."""
    return torch.randn(shape, generator=generator(seed, purpose, *indices))
