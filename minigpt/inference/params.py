"""The sampling parameters of a request. This module imports no torch, because the server and the page import it."""

from dataclasses import dataclass

from minigpt.common.errors import UserError

MAX_LOGPROBS = 20  # most alternatives of each token


@dataclass
class SamplingParams:
    """How the tokens of one request are sampled. Raises UserError for a value out of range.

    temperature: divides the logits; 0 means greedy decoding
    top_k: sample among the k most likely tokens; 0 means all
    top_p: sample among the most likely tokens whose probabilities add up to this (nucleus sampling, Holtzman et al.
        2020); 1 means all
    min_p: drop tokens that are less likely than this share of the most likely token's probability (Nguyen et al.
        2024), after temperature, top_k and top_p; 0 means none
    frequency_penalty: subtracted from a token's logit for each occurrence in prompt and answer (OpenAI's API counts
        the answer only)
    presence_penalty: subtracted once from the logit of a token that occurs in prompt or answer
    repetition_penalty: divides the logits of tokens in prompt and answer if positive, and multiplies them if negative
        (CTRL, Keskar et al. 2019); 1 means none
    stop: strings that end a text and are not part of it
    seed: None means a random one. In float32 a seeded request gets the same text alone and in any batch; in types of
        lower precision logits are more often nearly equal, so the text may differ.
    logprobs: None, or the number of most likely alternatives, from 0 to MAX_LOGPROBS, that are given with each new
        token's log probability
    prompt_logprobs: the same for the tokens of the prompt
    embedding: whether the prompt's embedding is computed
    """

    temperature: float = 0.1
    top_k: int = 20
    top_p: float = 1.0
    max_new_tokens: int = 225
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    min_p: float = 0.0
    presence_penalty: float = 0.0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    embedding: bool = False

    def __post_init__(self):
        for name, valid, wanted in (
            ("temperature", self.temperature >= 0, "at least 0"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0 <= self.top_p <= 1, "a share from 0 to 1"),
            ("min_p", 0 <= self.min_p <= 1, "a share from 0 to 1"),
            ("max_new_tokens", self.max_new_tokens >= 0, "at least 0"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
            ("logprobs", 0 <= (self.logprobs or 0) <= MAX_LOGPROBS, f"from 0 to {MAX_LOGPROBS}"),
            ("prompt_logprobs", 0 <= (self.prompt_logprobs or 0) <= MAX_LOGPROBS, f"from 0 to {MAX_LOGPROBS}"),
        ):
            if not valid:
                raise UserError(f"{name} is {getattr(self, name)}; it must be {wanted}")

    @property
    def needs_whole_prompt(self):
        """Whether something is asked of every token of the prompt, so that none may be cut off."""
        return self.prompt_logprobs is not None or self.embedding

    @classmethod
    def from_settings(cls, settings):
        """The parameters from settings that have fields of the same names."""
        names = ("temperature", "top_k", "top_p", "max_new_tokens", "frequency_penalty", "repetition_penalty", "seed")
        return cls(**{name: getattr(settings, name) for name in names}, stop=tuple(settings.stop))
