"""A reward model on the demo's fine-tuned model, after `python demo.py`: which of two answers is preferred?

python sft/make_preferences.py config/demo_dpo.py --pairs_a_question=8     # pairs of answers to training questions
python train.py config/reward.py
python sample.py --ckpt=out/reward/last.pt --prompt="铁的元素符号是什么？ ## 铁的元素符号是Fe。"
python train.py config/ppo.py                                         # next step: PPO against it
"""

objective = "reward"
preferences = ["sft/preferences.jsonl"]
init_from = "out/demo_sft/ckpt.pt"
out_dir = "out/reward"
block_size = 192

max_iters = 600
batch_size = 32
optimizer = "muon"
# As in fine-tuning, the embeddings (AdamW's) stay nearly as they are.
learning_rate = 1e-5
muon_learning_rate = 0.005
head_learning_rate = 3e-3
warmup_iters = 20
min_lr_ratio = 0.0
eval_interval = 150
compile = "off"
