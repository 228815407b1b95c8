"""What a request asks of sampling. This module loads no torch: the server and the page import it."""

from dataclasses import dataclass

from minigpt.common.errors import UserError


@dataclass
class SamplingParams:
    """What may differ between requests.

    temperature: sharpness, 0 is greedy; top_k: draw among the k likeliest, 0 is all; top_p: among the likeliest that
    together have this probability (nucleus sampling, Holtzman et al. 2020); frequency_penalty: taken off a token's
    logit for each time it stands in prompt or answer (OpenAI's, who count the answer only); repetition_penalty: what
    the logits of tokens in prompt or answer are divided by, or multiplied with where negative (CTRL, Keskar et al.
    2019), 1 is none; stop: strings that end a text and are not part of it; seed: None is unseeded. With
    a seed a request has the same text alone or among others, in float32; rounder types have more near-ties.
    """

    temperature: float = 0.1
    top_k: int = 20
    top_p: float = 1.0
    max_new_tokens: int = 225
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self):
        for name, right, wanted in (
            ("temperature", self.temperature >= 0, "at least 0"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0 <= self.top_p <= 1, "a share from 0 to 1"),
            ("max_new_tokens", self.max_new_tokens >= 0, "at least 0"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
        ):
            if not right:
                raise UserError(f"{name} is {getattr(self, name)}; it must be {wanted}")

    @classmethod
    def from_settings(cls, settings):
        """The parameters that the settings give."""
        names = ("temperature", "top_k", "top_p", "max_new_tokens", "frequency_penalty", "repetition_penalty", "seed")
        return cls(**{name: getattr(settings, name) for name in names}, stop=tuple(settings.stop))
