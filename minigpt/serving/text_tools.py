"""What the server does with text besides generating it: tokenization in vLLM's form, and embeddings in OpenAI's."""

import base64

import numpy as np

from minigpt.corpus.chat import write_chat_template
from minigpt.huggingface_tokenizer import HuggingFaceTokenizer
from minigpt.inference.params import SamplingParams
from minigpt.serving.choices import show_token
from minigpt.serving.errors import ApiError, blamed_on

EMBEDDING = SamplingParams(max_new_tokens=0, embedding=True)
# For fine-tuned models. `text_ids` gives its text the ids that `chat_ids` gives the chat.
PROMPT_TEMPLATE = write_chat_template("##", ends_last_answer=False)


def text_ids(generator, text):
    """Token ids of a text as evaluation programs need them: the ids of a text's beginning begin the text's ids.

    The name of a special token alone, such as <|endoftext|>, is that token. For a fine-tuned model, `##` is the answer
    mark and <|endoftext|> an EOT wherever they are, so that a chat's text has the ids of training; with a tokenizer of
    others, the names of all its special tokens are these.
    """
    tokenizer = generator.tokenizer
    special_ids = {name: token_id for token_id, name in tokenizer.special_texts.items()}
    if text in special_ids:
        return [special_ids[text]]
    return tokenizer.encode_marked(text) if generator.stage == "sft" else tokenizer.encode(text)


def tokenize(generator, body):
    """The answer (dict) of /tokenize to a TokenizeRequest. Raises ApiError for a chat with a model that has none."""
    if body.messages is not None and generator.stage == "task":
        raise ApiError(400, "this model reads no chats; send a text as prompt", "messages")
    with blamed_on("messages"):
        ids = text_ids(generator, body.prompt) if body.messages is None else generator.prompt_ids(body.conversation)
    texts = [show_token(generator.tokenizer, token_id)[0] for token_id in ids] if body.return_token_strs else None
    return {"count": len(ids), "max_model_len": generator.block_size, "tokens": ids, "token_strs": texts}


def describe_tokenizer(generator):
    """The answer (dict) of /tokenizer_info."""
    tokenizer = generator.tokenizer
    is_ours = not isinstance(tokenizer, HuggingFaceTokenizer)
    template = PROMPT_TEMPLATE if is_ours else tokenizer.prompt_template
    return {
        "tokenizer_class": "tiktoken.Encoding" if is_ours else "tokenizers.Tokenizer",
        "name": tokenizer.name,
        "vocab_size": tokenizer.n_vocab,
        "model_max_length": generator.block_size,
        "add_bos_token": not is_ours and bool(tokenizer.prefix_ids),
        "bos_token": None if is_ours else tokenizer.token_names.get("bos_token"),
        "eos_token": tokenizer.special_texts[tokenizer.eot_id],
        "pad_token": tokenizer.special_texts.get(tokenizer.pad_id),
        "unk_token": None,
        "chat_template": template if generator.stage == "sft" else None,
    }


def embed(generator, body, start, most):
    """The answer (dict) of /v1/embeddings to an EmbeddingRequest.

    start(prompts): the RunningRequest of up to `most` prompts. Raises ApiError (400) for a text that is longer than
    the model's block, and for other dimensions than the model's width.
    """
    config, tokenizer = generator.model.config, generator.tokenizer
    if body.dimensions not in (None, config.n_embd):
        message = f"the model's embeddings have {config.n_embd} dimensions (given: {body.dimensions})"
        raise ApiError(400, message, "dimensions")
    inputs = [
        (tokenizer.encode(text) or [tokenizer.eot_id]) if isinstance(text, str) else text
        for text in body.prompts(tokenizer.n_vocab)
    ]
    for i, ids in enumerate(inputs):
        if len(ids) > generator.block_size:
            where = f"input[{i}]" if len(inputs) > 1 else "input"
            message = f"an input of {len(ids)} tokens does not fit into the model's {generator.block_size}; split it"
            raise ApiError(400, message, where)
    vectors, n_tokens = [], 0
    for first in range(0, len(inputs), most):
        running = start(inputs[first : first + most])
        try:
            running.wait_for_texts()
            vectors += [stream.embedding for stream in running.streams]
            n_tokens += running.prompt_tokens
        finally:
            running.close()
    if None in vectors:
        raise ApiError(503, "not all embeddings were computed in time", None, "too_slow", "server_error")
    write = to_base64 if body.encoding_format == "base64" else list
    data = [{"object": "embedding", "index": i, "embedding": write(vector)} for i, vector in enumerate(vectors)]
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    return {"object": "list", "data": data, "model": body.model, "usage": usage}


def to_base64(vector):
    """A vector as the text that OpenAI gives for encoding_format base64: little-endian float32."""
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode()
