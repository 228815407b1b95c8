"""What surrounds the loop of train.py: setup, saving and resuming, monitor, validation, optimizers, processes."""
