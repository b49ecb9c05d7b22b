"""The hand-made NanoAOD files of `tests/input`."""

import importlib.util
from pathlib import Path

_SPEC = importlib.util.spec_from_file_location(
    "hand_made_nano", Path(__file__).parents[1] / "input" / "conftest.py"
)
_MODULE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MODULE)

nano_file, emu, random_events = _MODULE.nano_file, _MODULE.emu, _MODULE.random_events
