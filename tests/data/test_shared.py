"""Memory shared with workers: slots are taken once, freed when nobody looks at them, and given back to the system."""

import gc
import os
import pickle

import pytest
import torch

import msrn.data.shared
from msrn.data.shared import SharedBatches, by_value


def test_slots_are_taken_until_there_are_none_and_free_again_when_dropped() -> None:
    batches = SharedBatches(2, 3, (4, 5))
    first, second = batches.claim(), batches.claim()
    assert [first, second, batches.claim()] == [0, 1, None]
    batches.images(1, 2).fill_(7)
    received = pickle.loads(pickle.dumps(batches.parcel(1, 2)))
    assert torch.equal(received, torch.full((2, 3, 4, 5), 7.0))
    assert received.is_contiguous(memory_format=torch.channels_last)
    part = received[1, 0]
    del received
    gc.collect()
    assert batches.claim() is None
    assert (part == 7).all()
    del part
    gc.collect()
    assert batches.claim() == 1


def test_memory_of_free_slots_is_given_back_and_that_of_others_kept() -> None:
    batches = SharedBatches(3, 2, (64, 64))
    for slot in range(3):
        assert batches.claim() == slot
        batches.images(slot, 2).fill_(slot + 1)
    middle = batches.receive(1, 2)
    del middle
    batches.give_back()
    assert (batches.images(0, 2) == 1).all()
    assert (batches.images(2, 2) == 3).all()
    assert batches.claim() == 1
    batches.images(1, 2).fill_(9)
    assert (batches.images(1, 2) == 9).all()


def test_a_lost_lock_leaves_batches_without_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(msrn.data.shared, "_LOCK_TIMEOUT_S", 0.05)
    batches = SharedBatches(2, 1, (4, 4))
    batches._lock._lock.acquire()  # as a killed process would leave it
    assert batches.claim() is None
    batches.give_back()


def test_memory_that_is_not_given_is_an_error() -> None:
    with pytest.raises((OSError, OverflowError)):
        SharedBatches(2**20, 2**20, (2**10, 2**10))


@pytest.mark.parametrize("tensor", [torch.arange(6).view(2, 3), torch.zeros(0, 4, dtype=torch.int64)])
def test_small_tensors_arrive_as_they_were_and_may_be_changed(tensor: torch.Tensor) -> None:
    received = pickle.loads(pickle.dumps(by_value(tensor)))
    assert received.dtype == tensor.dtype
    assert torch.equal(received, tensor)
    received += 1


def test_a_forked_process_leaves_the_batches_of_its_parent_alone():
    """A child inherits what waits for a batch to be dropped; only the process that received it may free the slot."""
    batches = SharedBatches(2, 1, (2, 2))
    slot = batches.claim()
    assert slot is not None
    batches.images(slot, 1).fill_(7)
    held = [batches.receive(slot, 1)]
    child = os.fork()
    if child == 0:
        held.clear()
        os._exit(0)
    os.waitpid(child, 0)
    other = batches.claim()
    assert other is not None
    assert other != slot
    assert batches.claim() is None  # both are in use
    held.clear()
    assert batches.claim() == slot
