"""GRPO of the demo's fine-tuned model, after `python demo.py`: its answers to training questions are compared with the
references, and no reward model is needed.

    python train.py config/grpo.py
    python evaluations-RougeL.py --ckpt=out/grpo/last.pt --data_dir=data/processed_demo_sft --temperature=0

samples.jsonl in the run's folder has answers of the highest reward, which show a reward that is tricked.
"""

objective = "grpo"
rewards = ["exact"]
data_dir = "data/processed_demo_sft"
init_from = "out/demo_sft/ckpt.pt"
out_dir = "out/grpo"
block_size = 192

rollout_questions = 96
group_size = 8
updates = 2
# At 1.0 most signals are slips in answers that the model has right; at 0.8 the gradients of two rollouts agree better.
rollout_temperature = 0.8
rollout_tokens = 40
# The held-out questions gain late: after 60 steps nothing is to be seen yet.
max_iters = 400
batch_size = 256
optimizer = "adamw"
learning_rate = 2e-4  # with 5e-4 the reward falls
weight_decay = 0.0
warmup_iters = 4
min_lr_ratio = 0.0
eval_interval = 50
compile = "off"
