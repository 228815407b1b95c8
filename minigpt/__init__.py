"""MiniGPT's library: a room for each stage. The scripts and the chapters to read first lie in the folder above."""
