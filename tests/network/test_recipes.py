"""Effective configurations of the shipped recipes and studies: a changed default must not change them.

``tests/approved/configs.json`` holds the recipes flat, and of the points of each study their difference from
tops.yaml. After an intended change, with a line in the changelog:

    python tests/network/test_recipes.py > tests/approved/configs.json
"""

import json
from pathlib import Path

import pytest

from topreco.config import TrainConfig, load_config, load_study

ROOT = Path(__file__).parents[2]
RECIPES = (
    *("demo", "dilepton", "dilepton-point", "dilepton-full", "dilepton-transformer"),
    "tops",
    *("finetune", "pretrain-masked", "pretrain-tokens"),
)
# Where and on what a training runs.
NOT_OF_THE_RECIPE = ("data.files", "output", "seed")
ABSENT = "(absent)"


def flat(content, prefix=""):
    found = {}
    for key, value in content.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def effective(config):
    """A configuration by dotted keys."""
    content = flat(json.loads(config.model_dump_json()))
    return {key: value for key, value in content.items() if key not in NOT_OF_THE_RECIPE}


def difference(config, reference):
    """Values of the keys in which a configuration differs; without quantiles, of those no keys of theirs."""
    keys = config.keys() | reference.keys()
    if "model.quantiles" in config:
        keys = {key for key in keys if not key.startswith("model.quantiles.")}
    return {
        key: config.get(key, ABSENT)
        for key in sorted(keys)
        if config.get(key, ABSENT) != reference.get(key, ABSENT)
    }


def recipes():
    return {name: effective(load_config(TrainConfig, f"{name}.yaml")) for name in RECIPES}


def studies():
    """Of each study, small and at full size, the difference of each point from tops.yaml."""
    reference = recipes()["tops"]
    found = {}
    for path in sorted((ROOT / "configs" / "study").glob("*.yaml")):
        for size in ("small", "full"):
            study = load_study(f"study/{path.name}", [f"size={size}"])
            for point in study.all_points:
                try:
                    own = difference(effective(study.training(point, 1)), reference)
                except ValueError as error:
                    own = {"impossible": str(error).partition(";")[0]}
                found[f"{path.stem} {size} {point}"] = own
    return found


def current():
    return {"recipes": recipes(), "studies": studies()}


@pytest.fixture(scope="module")
def approved():
    return json.loads((ROOT / "tests" / "approved" / "configs.json").read_text(encoding="utf-8"))


def test_defaults_are_the_recipe_of_tops():
    """But for the quantiles, which are opt-in."""
    default = effective(TrainConfig())
    shipped = {k: v for k, v in recipes()["tops"].items() if not k.startswith("model.quantiles")}
    assert default.pop("model.quantiles") is None
    assert default == shipped
    assert load_config(TrainConfig, "tops.yaml").model.quantiles is not None


def test_defaults_are_the_recipe_of_dilepton():
    """But for the task, the b tag, and what follows from the number of events."""
    posterior = effective(load_config(TrainConfig, None, ["model.task=posterior"]))
    shipped = recipes()["dilepton"]
    different = {key for key in posterior | shipped if posterior.get(key) != shipped.get(key)}
    assert different == {"model.tokens.btag", "epochs", "summaries.epochs", "summaries.samples"}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_as_approved(approved, name):
    assert approved["recipes"].keys() == set(RECIPES)
    assert recipes()[name] == approved["recipes"][name]


def test_points_of_studies_are_as_approved(approved):
    found = studies()
    assert found.keys() == approved["studies"].keys()
    for point, values in found.items():
        assert values == approved["studies"][point], point


if __name__ == "__main__":
    parts = [
        f'"{part}": {{\n'
        + ",\n".join(f"{json.dumps(name)}: {json.dumps(values)}" for name, values in content.items())
        + "\n}"
        for part, content in current().items()
    ]
    print("{\n" + ",\n".join(parts) + "\n}")  # noqa: T201 - the approved file
