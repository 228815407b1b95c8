"""Requests as chat programs and tools send them, with random values: the fields are those of their public code."""

import random

TEXTS = [
    "你好",
    "铁的元素符号是什么？",
    "北京在哪里？\n请简短回答。",
    "写一句诗 🌙",
    "a" * 300,
    "<b>&quot;</b>",
    "##",
    " ",
    "续写：春天",
]
SYSTEMS = ["", "你是一个有用的助手。", "Answer briefly.\n今天是 2024-05-01。", "Formatting re-enabled\n简短"]
THOUGHT = {
    "reasoning_content": "先想一想",
    "reasoning": "想",
    "reasoning_details": [{"type": "reasoning.text", "text": "想"}],
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}
EFFORTS = ["none", "minimal", "low", "medium", "high", "auto", "xhigh"]


class Chance(random.Random):
    """A random generator with the choices that the requests need."""

    def some(self, fields):
        """A random part of a dict. A value that is callable is called for the value."""
        return {name: value() if callable(value) else value for name, value in fields.items() if self.random() < 0.5}

    def decimal(self, low, high):
        """A slider's value: one or two decimals, or an integer at times."""
        return self.choice([low, high, round(self.uniform(low, high), 1), round(self.uniform(low, high), 2)])

    def sampling(self):
        """Some of the fields that most programs have a slider for."""
        return self.some(
            {
                "temperature": lambda: self.decimal(0, 2),
                "top_p": lambda: self.decimal(0, 1),
                "presence_penalty": lambda: self.decimal(-2, 2),
                "frequency_penalty": lambda: self.decimal(-2, 2),
                "max_tokens": lambda: self.choice([1, 16, 1000, 4096, 8192, 32000, 131072, None]),
            }
        )

    def talk(self, parts=0.2, system=0.6, last=("user",), **more):
        """Messages that end with one of the roles `last`.

        parts: share with a list of parts; system: share of talks with a system message; more: fields of answers.
        """
        turns = []
        for _ in range(self.choice([0, 0, 1, 2, 5, 40])):
            answer = {"role": "assistant", "content": self.choice([*TEXTS, ""]), **self.some(more)}
            turns += [{"role": "user", "content": self.choice(TEXTS)}, answer]
        if self.random() < system:
            turns.insert(0, {"role": "system", "content": self.choice(SYSTEMS)})
        turns.append({"role": "user", "content": self.choice(TEXTS)})
        role = self.choice(last)
        if role != "user":
            turns.append({"role": role, "content": self.choice(TEXTS)})
        for turn in turns:
            if self.random() < parts:
                turn["content"] = [{"type": "text", "text": turn["content"]}]
        return turns

    def used_tool(self, messages):
        """The messages with a call of a tool and its result before the last, as a history from another model has."""
        call = {"role": "assistant", "content": self.choice([None, ""]), "tool_calls": [CALL]}
        result = {"role": "tool", "tool_call_id": "call_1", "content": self.choice(["三点", '{"time": "15:00"}'])}
        return [*messages[:-1], call, result, messages[-1]] if self.random() < 0.2 else messages


def open_webui(chance):
    """Open WebUI: what its backend passes on, with the advanced parameters, and the ids of its own pages."""
    stream = chance.random() < 0.7
    advanced = chance.some(
        {
            "min_p": lambda: chance.decimal(0, 1),
            "top_k": lambda: chance.choice([0, 1, 40, 1000]),
            "repeat_penalty": lambda: chance.choice([0.5, 1, 1.1, 2]),
            "repeat_last_n": lambda: chance.choice([-1, 0, 64]),
            "mirostat": lambda: chance.choice([0, 1, 2]),
            "mirostat_eta": 0.1,
            "mirostat_tau": 5.0,
            "tfs_z": 1,
            "num_ctx": lambda: chance.choice([2048, 8192]),
            "num_batch": 512,
            "num_keep": 24,
            "num_thread": 4,
            "num_gpu": 0,
            "use_mmap": True,
            "use_mlock": False,
            "keep_alive": lambda: chance.choice(["5m", -1, 0]),
            "think": lambda: chance.choice([True, False, "low"]),
            "reasoning_effort": lambda: chance.choice(EFFORTS),
            "seed": lambda: chance.choice([0, 42, -1]),
            "stop": lambda: ["</s>", "\n\n"][: chance.randint(0, 2)],
            "logit_bias": {},
            "max_tokens": lambda: chance.choice([-1, 128, 16000, 131072]),
            "custom_of_the_user": "x",
        }
    )
    pages = chance.some(
        {
            "chat_id": "c0ffee",
            "session_id": "s1",
            "id": "m1",
            "features": {"web_search": False, "image_generation": False},
            "variables": {"{{USER_NAME}}": "小明"},
            "model_item": {"id": "x", "name": "x"},
            "background_tasks": {"title_generation": True, "tags_generation": True},
            "files": [],
            "metadata": {"user_id": "1"},
            "user": {"id": "1", "name": "小明", "role": "admin"},
            "tool_ids": [],
            "tools": [],
        }
    )
    options = {"stream_options": {"include_usage": True}} if stream else {}
    last = ("user", "user", "assistant", "system")
    messages = chance.used_tool(chance.talk(last=last, **THOUGHT, files=[], done=True, id="m", timestamp=1714))
    return {"stream": stream, **options, "messages": messages, **chance.sampling(), **advanced, **pages}


def cherry_studio(chance):
    """Cherry Studio: the thinking switches of each model family, and free parameters."""
    thinking = chance.choice(
        [
            {},
            {"enable_thinking": chance.random() < 0.5},
            {"enable_thinking": True, "thinking_budget": 4096, "incremental_output": True},
            {"thinking": {"type": chance.choice(["enabled", "disabled", "auto"])}},
            {"thinking": {"type": "enabled", "budget_tokens": 1024}},
            {"reasoning": {"enabled": False, "exclude": True}},
            {"reasoning": {"effort": "medium"}},
            {"reasoning_effort": chance.choice(EFFORTS)},
            {"chat_template_kwargs": {"enable_thinking": False}},
            {"extra_body": {"google": {"thinking_config": {"thinking_budget": 0}}}},
            {"thinking_config": {"include_thoughts": True}},
        ]
    )
    more = chance.some(
        {
            "service_tier": lambda: chance.choice(["auto", "flex", "priority"]),
            "verbosity": lambda: chance.choice(["low", "medium", "high"]),
            "keep_alive": "300s",
            "enable_search": False,
            "translation_options": {"source_lang": "auto", "target_lang": "English"},
            "parallel_tool_calls": True,
            "tools": [],
            "modalities": ["text"],
        }
    )
    messages = chance.used_tool(chance.talk(parts=0.5, last=("user", "user", "system"), **THOUGHT))
    if messages[0]["role"] == "system" and chance.random() < 0.3:
        messages[0]["role"] = "developer"
    stream = chance.random() < 0.8
    options = {"stream_options": {"include_usage": True}}
    return {"messages": messages, "stream": stream, **chance.some(options), **chance.sampling(), **thinking, **more}


def lobe_chat(chance):
    """LobeChat: every slider in every request, penalties included."""
    return {
        "messages": chance.used_tool(chance.talk(**THOUGHT, name="a", tool_calls=[])),
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": chance.decimal(0, 2),
        "top_p": chance.decimal(0, 1),
        "presence_penalty": chance.decimal(-2, 2),
        "frequency_penalty": chance.decimal(-2, 2),
        **chance.some(
            {
                "user": "user-1",
                "max_tokens": lambda: chance.choice([None, 2000, 64000]),
                "reasoning_effort": lambda: chance.choice(EFFORTS),
                "thinking": {"type": "enabled", "budget_tokens": 1024},
                "enable_thinking": False,
                "verbosity": "low",
                "prompt_cache_key": "k",
                "safety_identifier": "s",
                "tools": None,
                "metadata": {"topicId": "t"},
                "store": False,
            }
        ),
    }


def next_chat(chance):
    """NextChat: sampling always, the summary as a system message at the end, the length under either name."""
    length = chance.choice(["max_tokens", "max_completion_tokens"])
    return {
        "messages": chance.talk(system=0.8, last=("user", "user", "system")),
        "stream": chance.random() < 0.8,
        "temperature": chance.decimal(0, 1),
        "presence_penalty": chance.decimal(-2, 2),
        "frequency_penalty": chance.decimal(-2, 2),
        "top_p": chance.decimal(0, 1),
        **chance.some({length: lambda: chance.choice([4000, 1024, 512000])}),
    }


def chatbox(chance):
    """Chatbox, which sends through Vercel's AI SDK."""
    messages = chance.used_tool(chance.talk(parts=0.7, reasoning_content="想"))
    more = {"reasoning_effort": lambda: chance.choice(EFFORTS), "response_format": {"type": "text"}, "seed": 7}
    provider = {"enable_thinking": False, "thinking": {"type": "disabled"}, "stop": ["\n用户："], "user": "u"}
    stream = chance.random() < 0.8
    options = {"stream_options": {"include_usage": True}} if stream else {}
    return {"messages": messages, "stream": stream, **options, **chance.sampling(), **chance.some({**more, **provider})}


def libre_chat(chance):
    """LibreChat: LangChain's fields, those that a user's librechat.yaml adds, and titles with one short message."""
    stream = chance.random() < 0.7
    added = chance.some(
        {
            "user": "65f0c1",
            "n": 1,
            "stop": lambda: chance.choice([[], ["<|im_end|>"], [f"s{i}" for i in range(16)], "###"]),
            "safe_prompt": True,
            "include_reasoning": True,
            "web_search": False,
            "top_k": lambda: chance.choice([-1, 0, 40]),
            "max_completion_tokens": lambda: chance.choice([64, 4096, 100000]),
            "parallel_tool_calls": False,
            "tool_choice": "auto",
            "tools": [],
            "logprobs": False,
            "conversationId": "c",
            "parentMessageId": "p",
            "resendFiles": True,
            "promptPrefix": None,
            "reasoning_effort": "",
            "verbosity": "",
            "service_tier": "default",
        }
    )
    messages = chance.used_tool(chance.talk(parts=0.4, last=("user", "user", "system"), **THOUGHT, name="a"))
    options = {"stream_options": {"include_usage": True}} if stream else {}
    return {"messages": messages, "stream": stream, **options, **chance.sampling(), **added}


def continue_dev(chance):
    """Continue: chats, and completions with many stop texts."""
    stops = ["<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<file_sep>", "<|endoftext|>", "</fim_middle>", "</code>"]
    stops += ["/src/", "#- coding: utf-8", "```", "\n\n", "\r\n\r\n", "\n\n\n", "<|im_end|>", "function", "class "]
    fields = {**chance.sampling(), "stream": chance.random() < 0.8, "stop": stops[: chance.randint(0, len(stops))]}
    if chance.random() < 0.5:
        prompt = chance.choice([*TEXTS, "<fim_prefix>def f(<fim_suffix>):\n<fim_middle>"])
        return {"prompt": prompt, **fields, **chance.some({"raw": True, "suffix": "", "keep_alive": 1800, "n": 1})}
    more = {"prediction": {"type": "content", "content": "x"}, "reasoning_effort": "high", "tools": None}
    messages = chance.used_tool(chance.talk(last=("user", "user", "assistant")))
    return {"messages": messages, **fields, **chance.some(more)}


def dify(chance):
    """Dify: the parameters of a model's form, with empty ones as they are, and its check of an address."""
    if chance.random() < 0.2:
        path = chance.choice(["prompt", "messages"])
        return {"max_tokens": chance.choice([5, 10]), "stream": chance.random() < 0.5} | (
            {"prompt": "ping"} if path == "prompt" else {"messages": [{"role": "user", "content": "ping"}]}
        )
    form = chance.some(
        {
            "user": "abc-123",
            "stop": lambda: chance.choice([[], ["Observation"], ["\nObservation", "\nThought"]]),
            "top_k": lambda: chance.choice([0, 50]),
            "repetition_penalty": lambda: chance.choice([1, 1.1]),
            "response_format": lambda: chance.choice([{"type": "text"}, "", "text"]),
            "enable_thinking": lambda: chance.choice([True, False]),
            "chat_template_kwargs": {"enable_thinking": False, "thinking": True},
            "seed": lambda: chance.choice([0, 1234]),
            "functions": [],
            "function_call": "auto",
            "ignore_eos": False,
            "min_p": 0,
            "thinking_budget": 1,
            "strict_compatibility_checking": False,
        }
    )
    return {"stream": chance.random() < 0.8, "messages": chance.talk(name="a"), **chance.sampling(), **form}


CLIENTS = (open_webui, cherry_studio, lobe_chat, next_chat, chatbox, libre_chat, continue_dev, dify)


def client_requests(seed, count, model):
    """Yields (name of the program, path, body) of `count` requests to `model`, all programs in turn."""
    chance = Chance(seed)
    for i in range(count):
        client = CLIENTS[i % len(CLIENTS)]
        body = {"model": model, **client(chance)}
        yield client.__name__, "/v1/completions" if "prompt" in body else "/v1/chat/completions", body
