"""How much of the batches of pretraining is padding: three ways to put rows into batches of 16.

python docs/course/scripts/02_padding.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np

from data_utils import BatchOrder, open_rows, row_lengths

rows, meta = open_rows("data/processed_course", "train")
lengths = row_lengths(rows, meta["special_ids"]["pad"])  # tokens of each row, without PAD
print(f"{len(lengths)} rows: {lengths.min()} to {lengths.max()} tokens, {lengths.mean():.1f} on average")
print(f"all rows {rows.shape[1]} wide:                       {1 - lengths.mean() / rows.shape[1]:.1%} padding")

# "traverse" takes the rows as they come, here in a random order; each batch is as wide as its longest row.
shuffled = np.random.default_rng(0).permutation(lengths)
print(
    f"batches as wide as their longest row:   {BatchOrder(shuffled, 'traverse', batch_size=16).padding():.1%} padding"
)

# What train.py does: rows of similar length share a batch.
order = BatchOrder(lengths, batch_size=16)
print(f"and rows of similar length together:    {order.padding():.1%} padding")
print(f"batches in one pass over all rows: {len(order.batches(0))}")
