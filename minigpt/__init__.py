"""MiniGPT's library: a room for each stage. The scripts and the chapters to read first lie in the folder above."""

import os
import tempfile

# Threads wait for each other at the end of every operation. They soon sleep, since one that spins may keep another from
# its core: beside one busy loop a step of the demo on two cores takes 0.13 s, not 1.9; alone 0.09, not 0.08. OpenMP
# reads the variable when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def keep_compiled_code(folders):
    """Name a folder for numba's compiled code, if it could write to none of `folders`, those that it takes itself.

    Without one, numba raises an error where a kernel is imported.
    """
    if not any(os.access(folder, os.W_OK) for folder in folders):
        os.environ.setdefault("NUMBA_CACHE_DIR", tempfile.mkdtemp(prefix="minigpt-kernels-"))


keep_compiled_code([os.path.dirname(__file__), os.path.expanduser("~")])
