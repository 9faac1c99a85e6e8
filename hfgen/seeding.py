"""Every random draw as a pure function of (seed, step, rank).

A generator whose state must be saved can be forgotten, moved by an evaluation, or restored on another rank. One that
is seeded anew at each optimizer step can't: a resumed run draws what the uninterrupted one drew, however often either
evaluated, logged or sampled in between.
"""

from __future__ import annotations

import random

import numpy as np
import torch

# Evaluation draws from steps that training never reaches.
EVALUATION = 1 << 40
_MASK = (1 << 64) - 1


def mix(*numbers: int) -> int:
    """A well-mixed 63-bit integer from a few integers (SplitMix64; Steele et al. 2014, https://doi.org/10.1145/2660193.2660195)."""
    state = 0
    for number in numbers:
        state = (state ^ (number & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state >> 1


def seed_globals(value: int, device: torch.device | None = None) -> None:
    """Seeds the global generators of torch (of `device` too, where it is none of the CPU), NumPy and Python.

    Args:
        value: an integer of at most 63 bits, from [`mix`].
        device: the device that the step computes on.
    """
    # torch.manual_seed formats a stack trace on machines without CUDA, 58 us of the 60 that this function took.
    torch.default_generator.manual_seed(value)
    if device is not None and device.type != "cpu":
        torch.get_device_module(device).manual_seed(value)
    np.random.seed(value & 0xFFFFFFFF)
    random.seed(value)


def seed_step(generator: torch.Generator, seed: int, step: int, rank: int) -> None:
    """Seeds the step's own generator, and the global ones (dropout, users' own code), for one optimizer step."""
    generator.manual_seed(mix(seed, step, rank, 0))
    seed_globals(mix(seed, step, rank, 1), generator.device)


def evaluation_generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for what is measured or drawn outside the steps."""
    return torch.Generator(device).manual_seed(mix(seed, EVALUATION))
