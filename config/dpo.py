"""Direct preference optimization (DPO) of the demo's fine-tuned model, after `python demo.py`.

python sft/make_preferences.py config/dpo.py     # pairs of answers to training questions
python train.py config/dpo.py
"""

# Pairs
ckpt = ["out/demo_sft/ckpt.pt"]
data_dir = "data/processed_demo_sft"
pairs = "sft/preferences.jsonl"
max_samples = 2500  # questions; about half of them get a pair
max_new_tokens = 60

# Training
objective = "dpo"
preferences = ["sft/preferences.jsonl"]
init_from = "out/demo_sft/ckpt.pt"
out_dir = "out/dpo"
block_size = 192

# A few gentle steps: the model answers nearly all training questions, and what more steps teach it about their wrong
# answers makes other answers worse.
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
