"""Packages that only some tests need, and that set-up does not install."""

from importlib.util import find_spec

import pytest


def require_packages(*names):
    """Skip the test file that calls this at its top, unless these packages are installed."""
    if missing := [name for name in names if find_spec(name) is None]:
        pytest.skip(f"needs {', '.join(missing)}: make peers", allow_module_level=True)
