from topreco.core.folders import ABSENT, differences


def test_differences_are_named_by_dotted_keys():
    before = {"a": 1, "b": {"c": 2, "d": [3]}, "e": {}, "f": {"g": 1}}
    after = {"a": 1, "b": {"c": 9, "d": [3]}, "f": 5, "h": None}
    assert differences(before, after) == {
        "b.c": (2, 9),
        "e": ({}, ABSENT),
        "f": ({"g": 1}, 5),
        "h": (ABSENT, None),
    }
    assert differences(before, before) == {}
