"""Direct preference optimization (DPO) of the demo's model on the votes of the arena, or on other pairs of answers.

    python train.py config/dpo.py --preferences=arena/preferences.jsonl

A hundred steps see each of 60 votes about 50 times, after which a taste is learned. On the demo's own answers to
training questions, where there are more pairs and less to learn: config/demo_dpo.py.
"""

objective = "dpo"
preferences = ["arena/preferences.jsonl"]
data_dir = "data/processed_demo_sft"  # what the model was fine-tuned on, for evaluations that look for known questions
init_from = "out/demo_sft/ckpt.pt"
out_dir = "out/dpo"
block_size = 192

max_iters = 100
batch_size = 32
optimizer = "muon"
learning_rate = 1e-5
muon_learning_rate = 0.001
warmup_iters = 10
min_lr_ratio = 0.0
eval_interval = 50
compile = "off"
