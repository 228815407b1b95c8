"""The CPU demo's fine-tuning: questions and answers, from the demo's last checkpoint. Run by demo.py.

Not from its best one: validation articles are about subjects that training never saw, so their loss can
stand still or rise while the model learns the facts of its own articles, which the questions ask about.
"""

qa_files = ["sft/sample_qa.jsonl"]
articles = ["data/wiki_sample"]
heldout = "sft/sample_heldout.txt"
tokenizer = "out/demo.tiktoken"
sft_data_dir = "data/processed_demo_sft"
data_dir = "data/processed_demo_sft"
out_dir = "out/demo_sft"
init_from = "out/demo/last.pt"
block_size = 192
val_share = 0.03

# Fine-tuning ends at the first of its ten checks at which so many training questions are answered. The demo's floor is
# 0.90; a little beyond it, questions about other subjects are answered better.
stop_at_answered = 0.95
max_epochs = 3
max_seconds = 240  # with pretraining's 780 and the measuring, a slow machine ends after about 20 minutes
batch_size = 32
optimizer = "muon"
# The embeddings (AdamW's) stay nearly as they are: where they move, the model forgets the subjects that no question is
# about. The blocks' matrices (Muon's) learn to answer.
learning_rate = 1e-5
muon_learning_rate = 0.002
warmup_iters = 20
min_lr_ratio = 0.0
eval_interval = 70  # of 693 steps: ten checks
# No training question is about these.
watch_prompts = ["狮子是哪个纲的动物？", "锿元素的英文怎么写？", "李白字什么？"]
compile = "off"
