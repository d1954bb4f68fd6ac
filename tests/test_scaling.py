import json
import math
import re
import time
import warnings
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
import torch.nn.functional as F

from conftest import REPOSITORY
from references import tiny
from vitreous.budget import cost, memory, plain_classifier
from vitreous.distributed import World
from vitreous.errors import InputError
from vitreous.optim import SGD, AdamW
from vitreous.parallel import FullShard, HybridShard, Replicate, compute_again, local
from vitreous.scaling import Cluster, Work, best_interval, endurance, held, lost, step, work
from vitreous.variants import encoder

MANY = 2**30  # so many that (n - 1) / n is 1
WAYS = (Replicate(), FullShard(), HybridShard())


@pytest.fixture(scope="module")
def works() -> dict[str, Work]:
    return {name: work(plain_classifier(encoder(name)), optimizer=AdamW()) for name in ("L/16", "H/14", "g/14")}


def small(**changes) -> Work:
    """Blocks of 3 x 4 and 4 numbers, a rest of 2 x 4, and round figures."""
    block = ((3, 4), (4,))
    given = {"gflops": 0.5, "optimizer": 8 * 40, "cast": 80, "number": 2, "activations": 1000, "recomputed": 300}
    return Work(groups=(block, block, ((2, 4),)), **{**given, **changes})


def test_sizes_are_those_that_budget_measures(works):
    config = plain_classifier(encoder("L/16"))
    whole, spent = memory(config, optimizer=AdamW().build, dtype=torch.bfloat16), cost(config)
    found = works["L/16"]
    assert (found.parameters, found.gflops) == (spent.parameters, spent.gflops)
    assert (found.optimizer, found.cast, found.activations) == (whole.optimizer, whole.weights, whole.activations)
    assert len(found.groups) == 25
    again = work(plain_classifier(tiny()), optimizer=SGD(), dtype=torch.float32)
    assert (again.optimizer, again.cast, again.number) == (4 * again.parameters, 0, 4)


class Living(TorchDispatchMode):
    """Counts the bytes of tensors that are made inside and still alive, and remembers the most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known:
                    self.count(storage)
        return found

    def count(self, storage) -> None:
        raise NotImplementedError
