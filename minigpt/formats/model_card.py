"""The model card of an exported model: what its checkpoint says of its training and of its figures."""

import math
from pathlib import Path

CARD_MARK = "tags: [minigpt]"  # by which an earlier export is recognized
CARD_HEAD = """\
---
library_name: transformers
pipeline_tag: text-generation
language: zh
{mark}
---

# {name}

{what}, written by MiniGPT's `export.py`.
由 MiniGPT 的 `export.py` 导出的{what_zh}。

| | |
| --- | --- |
{rows}
"""
ADAPTER_CARD = """\
---
library_name: peft
base_model: {base}
{mark}
---

# {name}

An adapter (method {method}), written by MiniGPT's `export.py`. It belongs to the model in `{base}`.
由 MiniGPT 的 `export.py` 导出的适配器（方法 {method}），用于 `{base}` 里的模型。

| | |
| --- | --- |
{rows}

```python
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("{name}")
```
"""
CARD_CHAT_USE = """
```python
from transformers import pipeline

answer = pipeline("text-generation", "{name}")
print(answer([{{"role": "user", "content": "铁的元素符号是什么？"}}])[0]["generated_text"][-1]["content"])
```

It answers questions about what it was trained on. It was not trained for safety, and what it says may be wrong.
它只会回答训练内容里的问题，没有做过安全训练，回答可能有错。
"""
CARD_TEXT_USE = """
```python
from transformers import pipeline

continued = pipeline("text-generation", "{name}")
print(continued("地球是")[0]["generated_text"])
```

It continues texts and answers no questions: it was not fine-tuned. What it writes may be wrong.
它只会续写，没有微调过，不会回答问题；写的内容可能有错。
"""


def adapter_card(name, base, content):
    """The text of the card of an adapter, from its checkpoint's dict. base: the Hugging Face folder of its base."""
    rows = "\n".join(f"| {key} | {value} |" for key, value in training_rows(content))
    method = content["adapter"]["method"]
    return ADAPTER_CARD.format(mark=CARD_MARK, name=name, base=base, method=method, rows=rows)


def model_card(name, model, tokenizer, content):
    """The text of the card of a GPT, from its checkpoint's dict. A figure that the dict lacks is left out."""
    is_chat = content["stage"] == "sft"
    what, what_zh = ("question answering", "中文问答模型") if is_chat else ("continuing texts", "中文续写模型")
    rows = [*model_rows(model, tokenizer), *training_rows(content)]
    table = "\n".join(f"| {key} | {value} |" for key, value in rows)
    head = CARD_HEAD.format(mark=CARD_MARK, name=name, what=f"A Chinese model for {what}", what_zh=what_zh, rows=table)
    return head + (CARD_CHAT_USE if is_chat else CARD_TEXT_USE).format(name=name)


def model_rows(model, tokenizer):
    """[(name, text)] of what the model is."""
    config = model.config
    heads = f"{config.n_head} heads" + (f" ({config.n_kv_head} of keys)" if config.n_kv_head != config.n_head else "")
    shape = f"{config.n_layer} layers, width {config.n_embd}, {heads}, {config.block_size} positions"
    return [
        ("architecture", f"{config.architecture}: {shape}"),
        ("parameters", f"{sum(p.numel() for p in model.parameters()):,}"),
        ("tokenizer", f"{tokenizer.name}, {tokenizer.n_vocab:,} ids"),
    ]


def training_rows(content):
    """[(name, text)] of how the model was trained and what was measured, as far as a checkpoint's dict says."""
    settings, progress = content["settings"], content["progress"]
    if not progress.get("step"):  # adopted, and not trained here
        return []
    start = settings.get("init_from", "scratch")
    origin = "from scratch" if start in ("scratch", "resume") else f"from {'/'.join(Path(start).parts[-2:])}"
    took = f"{progress['step']:,} steps, {progress['tokens']:,} tokens, {progress['seconds'] / 60:.1f} minutes"
    rows = [
        ("trained", origin),
        ("on", Path(settings["data_dir"]).name),
        ("for", f"{took}, optimizer {settings['optimizer']}"),
    ]
    loss = progress.get("best_val_loss", math.inf)
    if math.isfinite(loss):
        rows.append(("validation loss", f"{loss:.4f} nats a token (perplexity {math.exp(loss):.2f})"))
    return rows
