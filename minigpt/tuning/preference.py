"""Direct preference optimization (DPO; Rafailov et al. 2023): a model learns from pairs of answers, without a reward
model and without sampling.

The reward that a model implies is beta * log(p(answer) / p_ref(answer)), with the probabilities under the model and
under the reference, as which it began. The loss of a pair is the negative log-likelihood, by Bradley and Terry's model,
that the chosen answer has the higher reward (equation 7):
    margin = beta * ((log p(chosen) - log p_ref(chosen)) - (log p(rejected) - log p_ref(rejected)))
    loss   = -log sigmoid(margin)
It can be lowered by making both answers less likely. With chosen_weight > 0 the negative log-likelihood of the chosen
answer, in nats a token, is added (Pang et al. 2024, equation 2).
"""

import contextlib
import hashlib
import zipfile

import numpy as np
import torch
from torch.nn import functional as F

from minigpt.checkpoint import weights_hash
from minigpt.common.files import write_atomic
from minigpt.tuning.logprobs import sum_rows, target_logprobs
from minigpt.tuning.objective import Objective

REFERENCE_FILE = "reference_logprobs.npz"  # in the run's folder
# Means over pairs: how often the chosen answer has the higher implied reward, by how much, and log-probabilities.
FIGURES = ("accuracy", "margin", "chosen_logprob", "rejected_logprob")


def preference_margins(logprobs, reference, beta):
    """(B,) differences of the implied rewards of the chosen and the rejected answers.

    logprobs, reference: (2B,) log-probabilities of the answers under the model and the reference; those of the chosen
    answers at even places, each before the rejected one of its pair.
    """
    rewards = beta * (logprobs - reference)
    return rewards[0::2] - rewards[1::2]


class DirectPreference(Objective):
    """DPO on `PreferenceData`. Its loss is a mean over pairs.

    reference: (2n,) log-probabilities of all answers under the reference, by their numbers in the batches; in float32,
    whatever the run computes in. load_reference, out: as in `make_objective`.
    """

    def __init__(self, settings, data, device, load_reference, out):
        self.beta, self.chosen_weight = settings.beta, settings.chosen_weight
        self.reference = read_or_compute(data, out, load_reference).to(device)
        self.sums = torch.zeros(len(FIGURES) + 1, device=device)  # of figures since the last call of `take_figures`
        self.validated = {}  # figures of the last validation

    def count(self, batch):
        return int(batch[2][::2].any(dim=1).sum())

    def loss(self, model, *batch):
        loss, sums = self.compare(model, *batch)
        self.sums += sums
        return loss

    def compare(self, model, x, y, loss_mask, numbers):
        """(summed loss, sums over the pairs: of ones, then of FIGURES) of a batch of `PreferenceData`."""
        logprobs = sum_rows(target_logprobs(model, x, y, loss_mask), loss_mask)
        # A pair without targets fills up the share of a process that has none.
        is_pair = loss_mask[::2].any(dim=1)
        margins = preference_margins(logprobs, self.reference[numbers], self.beta)
        losses = -F.logsigmoid(margins)
        if self.chosen_weight:
            losses = losses - self.chosen_weight * logprobs[::2] / loss_mask[::2].sum(dim=1).clamp(min=1)
        with torch.no_grad():
            parts = is_pair, margins > 0, margins, logprobs[::2], logprobs[1::2]
            sums = torch.stack([(part * is_pair).sum(dtype=torch.float32) for part in parts])
        return (losses * is_pair).sum(), sums

    @torch.no_grad()
    def validate(self, run):
        """Mean loss of the validation pairs, over all processes."""
        loss, sums = 0.0, torch.zeros_like(self.sums)
        for batch in run.data.batches_of("val", run.processes.rank, run.processes.count):
            with run.precision.context(run.device):
                own_loss, own_sums = self.compare(run.model, *(part.to(run.device) for part in batch))
            loss, sums = loss + float(own_loss), sums + own_sums
        loss, *sums = run.processes.total(loss, *sums.tolist())
        self.validated = {f"val_{name}": mean for name, mean in mean_figures(sums).items()}
        return loss / sums[0]

    def take_figures(self):
        figures = mean_figures(self.sums.tolist()) | self.validated
        self.sums.zero_()
        self.validated = {}
        return figures


def mean_figures(sums):
    """{name of FIGURES: mean over the pairs} of what `DirectPreference.compare` sums up; {} without pairs."""
    pairs, *sums = sums
    return {name: value / pairs for name, value in zip(FIGURES, sums, strict=True)} if pairs else {}


# The reference


def read_or_compute(data, out, load_reference):
    """(2n,) float32: the reference's log-probabilities of all answers of `PreferenceData`, by their numbers.

    They are computed once, and kept in the run's folder `out`, with a hash of the reference's weights and of all rows.
    load_reference(): as in `make_objective`.
    """
    reference, path = load_reference(), out / REFERENCE_FILE
    weights = {name: tensor.cpu() for name, tensor in reference.state_dict().items()}
    about = {"model": weights, "model_args": {"tied": reference.config.tied}}
    digest = hashlib.sha256(weights_hash(about).encode())
    for rows in (data.train, data.val):
        digest.update(np.ascontiguousarray(rows).data)
    key = digest.hexdigest()
    try:
        with np.load(path) as kept:
            if str(kept["key"]) == key:
                return torch.from_numpy(kept["logprobs"])
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):  # there is none, or it is damaged
        pass
    logprobs = answer_logprobs(reference, data)
    if data.rank == 0:
        with contextlib.suppress(OSError):  # of a folder that cannot be written to, saving says it
            write_atomic(path, lambda file: np.savez(file, key=key, logprobs=logprobs.numpy()))
    return logprobs


@torch.no_grad()
def answer_logprobs(model, data):
    """(2n,) float32, on the CPU: a model's log-probabilities of all answers of `PreferenceData`, by their numbers."""
    device = model.wte.weight.device
    found = torch.empty(2 * (len(data.train) + len(data.val)))
    for part in ("train", "val"):
        for x, y, mask, numbers in data.batches_of(part):
            logprobs = target_logprobs(model, *(tensor.to(device) for tensor in (x, y, mask)))
            found[numbers] = sum_rows(logprobs, mask.to(device)).float().cpu()
    return found
