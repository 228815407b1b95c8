"""Direct preference optimization (DPO) by the arena's votes, or by other pairs of answers.

    python train.py config/dpo.py --preferences=arena/preferences.jsonl --init_from=out/demo_sft/ckpt.pt

The arena's page writes the file of pairs, and shows the whole command. config/demo_dpo.py is for the pairs of
sft/make_preferences.py, of which there are more, and which change less.
"""

objective = "dpo"
preferences = ["arena/preferences.jsonl"]
init_from = "out/demo_sft/ckpt.pt"
out_dir = "out/dpo"

# Few pairs: a hundred steps see each of 60 about 50 times, after which a taste is learned. The last step is kept, since
# no loss of three validation pairs tells which one is best.
max_iters = 100
eval_interval = 100
batch_size = 32
beta = 0.1
optimizer = "muon"
learning_rate = 1e-5
muon_learning_rate = 0.001
warmup_iters = 10
min_lr_ratio = 0.0
compile = "off"
