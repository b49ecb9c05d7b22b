"""Loading reconstructors: what works, what is refused, what is pickled."""

import pickle

import numpy as np
import pytest
import torch

import topreco
from topreco.errors import TopRecoError
from topreco.events import toy_events


def test_a_model_is_a_callable_on_events(toy_model):
    model = topreco.load(toy_model)
    assert isinstance(model, topreco.Reconstructor)
    assert model.name == "toy"
    pair = model(toy_events(10))
    assert isinstance(pair, topreco.TopPair)
    assert pair.valid.all()
    np.testing.assert_allclose(topreco.load(toy_model, name="x")(toy_events(10)).p4, pair.p4)


def test_pickles_as_its_path(toy_model):
    model = topreco.load(toy_model, name="x", threads=1)
    content = pickle.dumps(model)
    assert len(content) < 1000
    again = pickle.loads(content)
    assert again.name == "x"
    np.testing.assert_array_equal(again(toy_events(5)).p4, model(toy_events(5)).p4)


def test_threads_are_restored(toy_model):
    before = torch.get_num_threads()
    topreco.load(toy_model, threads=2)(toy_events(3))
    assert torch.get_num_threads() == before


def test_metadata_tells_how_it_was_made(toy_model):
    assert "model" in topreco.load(toy_model).metadata


def test_batch_size_changes_nothing(toy_model):
    """Bit for bit: otherwise results would depend on how files are cut into chunks."""
    events = toy_events(300)
    whole = topreco.load(toy_model)(events).p4
    for size in (1, 7, 100):
        parts = [topreco.load(toy_model)(events[i : i + size]).p4 for i in range(0, 300, size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("absent.safetensors", "absent.safetensors"),
        ("nonsense", "model 'nonsense': a .safetensors file"),
        ("model.pt", r"model 'model.pt': a .safetensors file"),
    ],
)
def test_what_is_no_model_is_refused(source, message):
    with pytest.raises(TopRecoError, match=message) as error:
        topreco.load(source)
    assert "\n" not in str(error.value)
