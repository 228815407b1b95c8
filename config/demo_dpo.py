"""Direct preference optimization (DPO) of the demo's model on its own answers, after `python demo.py`.

python sft/make_preferences.py config/demo_dpo.py     # pairs of right and wrong answers to training questions
python train.py config/demo_dpo.py
python sample.py --ckpt=out/demo_dpo/ckpt.pt
"""

# Pairs
ckpt = ["out/demo_sft/ckpt.pt"]
data_dir = "data/processed_demo_sft"
pairs = "sft/preferences.jsonl"
max_samples = 2500  # questions; more than half of them give a pair
max_new_tokens = 60

# Training
objective = "dpo"
preferences = ["sft/preferences.jsonl"]
init_from = "out/demo_sft/ckpt.pt"
out_dir = "out/demo_dpo"
block_size = 192

# Few gentle steps. Beyond them the model unlearns wrong answers to training questions at the cost of right ones to
# others: with two and a half times the rate, beta 0.1 and no chosen_weight it answers fewer held-out questions than
# before.
beta = 0.3
chosen_weight = 1.0
max_epochs = 1
batch_size = 32
optimizer = "muon"
learning_rate = 1e-5
muon_learning_rate = 0.0004
warmup_iters = 5
min_lr_ratio = 0.0
eval_interval = 50
compile = "off"
