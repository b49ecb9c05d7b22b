"""Spurions against their definition, and the combinations that are refused."""

import math

import pytest
import torch
from lgatr import embed_vector

from topreco.config import LGATrSlimConfig, ModelConfig, SpurionConfig, TransformerConfig
from topreco.network.spurions import build_spurions, spurion_types, vector_spurions
from topreco.network.tasks.tops import TopNetwork

BEAMS = {"lightlike": (1.0, 1.0), "spacelike": (0.0, 1.0), "timelike": (math.sqrt(2), 1.0)}


@pytest.mark.parametrize("time", [False, True], ids=["", "time"])
@pytest.mark.parametrize("mirror", [False, True], ids=["one-beam", "both-beams"])
@pytest.mark.parametrize("beam", BEAMS)
def test_beam_vectors(beam, mirror, time):
    config = SpurionConfig(beam=beam, mirror=mirror, time=time)
    energy, pz = BEAMS[beam]
    expected = [(energy, 0.0, 0.0, pz)]
    expected += [(energy, 0.0, 0.0, -pz)] * mirror + [(1.0, 0.0, 0.0, 0.0)] * time
    spurions = build_spurions(config, torch.float64)
    torch.testing.assert_close(spurions, embed_vector(torch.tensor(expected, dtype=torch.float64)))
    torch.testing.assert_close(vector_spurions(spurions, config), torch.tensor(expected, dtype=torch.float64))
    assert spurion_types(config) == ("beam",) * (1 + mirror) + ("time",) * time


def test_xyplane_is_the_bivector_of_x_and_y():
    config = SpurionConfig(beam="xyplane", time=False)
    spurions = build_spurions(config)
    # Basis (tx, ty, tz, xy, xz, yz) after the scalar and the four vector components.
    assert spurions.nonzero().tolist() == [[0, 8]]
    assert spurion_types(config) == ("beam",)


def test_no_spurions():
    config = SpurionConfig(beam=None, time=False)
    assert build_spurions(config).shape == (0, 16)
    assert vector_spurions(build_spurions(config), config).shape == (0, 4)
    assert spurion_types(config) == ()


@pytest.mark.parametrize(
    "config",
    [
        SpurionConfig(beam=beam, mirror=mirror, time=time)
        for beam in (*BEAMS, "xyplane", None)
        for mirror in (False, True)
        for time in (False, True)
    ],
    ids=str,
)
def test_every_spurion_has_a_type(config):
    assert len(spurion_types(config)) == len(build_spurions(config))


def test_bivector_is_refused_by_vector_networks():
    config = SpurionConfig(beam="xyplane")
    with pytest.raises(ValueError, match=r"'xyplane' is a bivector.*lightlike, spacelike, timelike or null"):
        vector_spurions(build_spurions(config), config)


@pytest.mark.parametrize("backbone", [LGATrSlimConfig(blocks=1), TransformerConfig(blocks=1)], ids=str)
def test_bivector_is_refused_when_built_past_validation(backbone):
    spurions = SpurionConfig(beam="xyplane")
    with pytest.raises(ValueError, match="'xyplane' is a bivector"):
        ModelConfig(backbone=backbone, spurions=spurions)
    unchecked = ModelConfig().model_copy(update={"backbone": backbone, "spurions": spurions})
    with pytest.raises(ValueError, match="'xyplane' is a bivector"):
        TopNetwork(unchecked)
