"""PPO of the demo's fine-tuned model against a reward model (config/reward.py), as in InstructGPT.

    python train.py config/ppo.py
    python evaluations-RougeL.py --ckpt=out/ppo/last.pt --data_dir=data/processed_demo_sft --temperature=0

out/ppo/samples.jsonl has the answers with the highest rewards, which show what the reward model is tricked with.
Without a reward model, answers are rewarded that are their references: --reward_model= --rewards=exact.
"""

objective = "ppo"
reward_model = "out/reward/last.pt"
data_dir = "data/processed_demo_sft"
init_from = "out/demo_sft/ckpt.pt"
out_dir = "out/ppo"
block_size = 192

rollout_questions = 64
group_size = 4
updates = 2
kl_weight = 0.05
value_weight = 0.1
max_iters = 40
batch_size = 128
optimizer = "adamw"
learning_rate = 2e-4
head_learning_rate = 1e-3
warmup_iters = 4
min_lr_ratio = 0.0
eval_interval = 20
log_interval = 4
compile = "off"
