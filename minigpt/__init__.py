"""MiniGPT's library: a room for each stage. The scripts and the chapters to read first lie in the folder above."""

import os

# Threads wait for each other at the end of every operation. They soon sleep, since one that spins may keep another from
# its core: beside one busy loop a step of the demo on two cores takes 0.13 s, not 1.9; alone 0.09, not 0.08. OpenMP
# reads the variable when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
