"""What votes of the arena need otherwise than config/dpo.py's pairs; the arena's page shows the whole command.

python train.py config/dpo.py config/votes.py --preferences=arena/preferences.jsonl --out_dir=out/demo_sft_votes

There are few pairs, each is a choice between two answers of the model, and the model shall change more.
"""

# A pass over a few dozen pairs is two steps. The last step is kept: no loss of three pairs tells which one is best.
max_iters = 100
eval_interval = 100
batch_size = 32
# The chosen answer need not be a right one, so it is not learned by heart.
chosen_weight = 0.0
beta = 0.1
learning_rate = 1e-5
muon_learning_rate = 0.001
warmup_iters = 10
min_lr_ratio = 0.0
