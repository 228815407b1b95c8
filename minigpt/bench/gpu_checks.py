"""Checks that a GPU computes what it should: loss and gradients against float64, compiled code against plain code, a
resumed run against one that was not stopped, generated tokens against the plain model.

Each check is a dict: what is checked, its error (relative, so without a unit), the tolerance, and whether it passed.
"""

import copy
import math

import torch
from torch.nn import functional as F

from minigpt.checkpoint import LAST
from minigpt.device import dtype_name
from minigpt.settings.parse import load_settings
from minigpt.settings.stages import TrainSettings
from minigpt.training.setup import TrainingRun
from minigpt.training.state import save_run
from model import GPT, OutputLoss
from train import train_step

# Largest relative errors by type: of the loss, of all gradients together, and of the worst parameter's gradient. The
# errors of float32 are those of TF32, which training allows; it has as many bits as float16.
LOSS_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-4, torch.bfloat16: 5e-4}
GRADIENT_TOLERANCE = {torch.float32: 5e-3, torch.float16: 5e-3, torch.bfloat16: 0.03}
WORST_TOLERANCE = {torch.float32: 0.02, torch.float16: 0.02, torch.bfloat16: 0.06}
CONFIDENT_TOLERANCE = {torch.float32: 0.05, torch.float16: 0.05, torch.bfloat16: 0.15}
CONFIDENT_LOGIT = 18.0  # of the target, where the other logits are about 0
CONFIDENT_RANGE = 0.9982, 0.9998  # probabilities of the targets that are taken; bfloat16 rounds them to 1
FLOAT16_SCALE = 2.0**10  # of the loss, so that gradients are not rounded to 0
RESUME_STEPS = 10  # before the stop, and as many after it
RESUME_TOLERANCE = 2e-3  # on a GPU attention's gradients are summed in an order that changes
SPREAD = 1.6  # standard deviation of a weight, times the square root of the width: every part of it affects the logits


def check(name, error, tolerance, **more):
    """A check as a dict; an error that is no number has not passed."""
    error = float(error)
    return {"check": name, "error": error, "tolerance": tolerance, "passed": error <= tolerance, **more}


def gradient_errors(model, reference):
    """(relative error of all gradients together, of the worst parameter, that parameter's name) of a GPT, whose
    reference is one of the same shape. Parameters without a gradient in both are left out."""
    worst, name, squares, norms = 0.0, "", 0.0, 0.0
    for (parameter, p), q in zip(model.named_parameters(), reference.parameters(), strict=True):
        if p.grad is None and q.grad is None:
            continue
        wanted = q.grad.double()
        difference, norm = float((p.grad.double() - wanted).norm()), float(wanted.norm())
        squares, norms = squares + difference**2, norms + norm**2
        if not difference <= worst * norm:  # a NaN, too
            worst, name = difference / max(norm, 1e-30), parameter
    return math.sqrt(squares / max(norms, 1e-60)), worst, name


def plain_loss(model, x, y, mask):
    """Sum of the cross-entropies of targets y (B, T) where mask is True, with all logits in memory."""
    return F.cross_entropy(model.lm_head(model.hidden(x))[mask], y[mask], reduction="sum")


def compare_with_float64(model, precision, x, y, mask):
    """(relative error of `GPT.loss_sum`, `gradient_errors`) of a GPT in a `Precision`, against the same weights in
    float64 by `plain_loss`."""
    reference = copy.deepcopy(model).double()
    reference.trunk = reference.hidden
    scale = FLOAT16_SCALE if precision.dtype == torch.float16 else 1.0
    with precision.context(x.device):
        loss = model.loss_sum(x, y, mask)
    (loss * scale).backward()
    for p in model.parameters():
        if p.grad is not None:
            p.grad /= scale
    wanted = plain_loss(reference, x, y, mask)
    wanted.backward()
    error = abs(loss.item() - wanted.item()) / wanted.item()
    return error, gradient_errors(model, reference)


def random_batch(config, rows, device):
    """(x, y, loss mask), each (rows, block_size - 1), of ids of which none comes twice in x. A tenth has no loss."""
    random = torch.Generator().manual_seed(1)
    ids = torch.randperm(config.vocab_size, generator=random)[: rows * config.block_size].view(rows, -1)
    mask = torch.rand(rows, config.block_size - 1, generator=random) > 0.1
    return tuple(t.to(device) for t in (ids[:, :-1], ids[:, 1:], mask))


def check_precision(config, rows, precision, device):
    """Checks of loss and gradients of a GPT of random weights, on rows of random ids, in a `Precision`."""
    torch.set_float32_matmul_precision("high")  # as training has it
    torch.manual_seed(0)
    model = GPT(config).to(device)
    loss_error, (error, worst, name) = compare_with_float64(model, precision, *random_batch(config, rows, device))
    dtype, type_name = precision.dtype, dtype_name(precision.dtype)
    return [
        check(f"loss in {type_name} against float64", loss_error, LOSS_TOLERANCE[dtype]),
        check(f"gradients in {type_name} against float64", error, GRADIENT_TOLERANCE[dtype]),
        check(f"the worst parameter's gradient in {type_name}", worst, WORST_TOLERANCE[dtype], parameter=name),
    ]


def check_confident(config, rows, precision, device):
    """Check of the gradients of targets of which the model is almost sure, where 16 bits are near their end.

    The output layer is set so that each target's logit is CONFIDENT_LOGIT; targets whose probability is not within
    CONFIDENT_RANGE have no loss. Blocks add errors of their own, so the model should have a single one.
    """
    torch.manual_seed(0)
    model = GPT(config).to(device)
    x, y, mask = random_batch(config, rows, device)
    with torch.no_grad():
        states = model.hidden(x).flatten(0, 1)
        directions = CONFIDENT_LOGIT * states / states.square().sum(dim=1, keepdim=True)
        model.lm_head.weight.zero_()
        model.lm_head.weight[y.flatten()] = directions
        p = model(x).softmax(dim=-1).gather(-1, y[..., None]).squeeze(-1)
        mask = (p > CONFIDENT_RANGE[0]) & (p < CONFIDENT_RANGE[1])
    _, (error, worst, name) = compare_with_float64(model, precision, x, y, mask)
    return check(
        f"gradients of sure targets in {dtype_name(precision.dtype)} against float64", error,
        CONFIDENT_TOLERANCE[precision.dtype], targets=int(mask.sum()), worst=worst, parameter=name,
    )  # fmt: skip


def check_compiled(run):
    """Checks of a `TrainingRun`'s compiled trunk and loss against the plain ones, on one of its micro-batches."""
    run.zero_grad()
    batch = [t.to(run.device) for t in run.data.typical_step((0, 0)).batches[0]]
    compiled, losses, gradients = (run.model.trunk, OutputLoss.compiled), [], []
    for code in (compiled, (run.model.hidden, None)):
        run.model.trunk, OutputLoss.compiled = code
        with run.precision.context(run.device):
            loss = run.loss(*batch)
        run.scaler.scale(loss).backward()
        losses.append(loss.item())
        gradients.append([p.grad for p in run.model.parameters()])
        run.zero_grad()
    run.model.trunk, OutputLoss.compiled = compiled
    squares = [
        (float((own.double() - plain.double()).norm()) ** 2, float(plain.double().norm()) ** 2)
        for own, plain in zip(*gradients, strict=True)
        if plain is not None
    ]
    differences, norms = map(sum, zip(*squares, strict=True))
    dtype = run.precision.dtype
    return [
        check("compiled loss against eager", abs(losses[0] - losses[1]) / losses[1], LOSS_TOLERANCE[dtype]),
        check("compiled gradients against eager", math.sqrt(differences / norms), GRADIENT_TOLERANCE[dtype]),
    ]


def train_curve(run, steps):
    """Losses (nats a target) of the next steps of a `TrainingRun`, a list."""
    losses, p = [], run.progress
    for _ in range(steps):
        before, tokens = p.loss_sum, p.loss_tokens
        train_step(run)
        losses.append(float(p.loss_sum - before) / (p.loss_tokens - tokens))
    return losses


def check_resume(flags, folder):
    """Check, as a list, that a run that is saved, closed and resumed has the losses of one that is not. flags: of
    train.py."""
    flags = [*flags, f"--max_iters={2 * RESUME_STEPS}"]

    def open_run(name, *more):
        return TrainingRun(load_settings(TrainSettings, [*flags, f"--out_dir={folder}/{name}", *more]), say=silent)

    whole = train_curve(open_run("whole"), 2 * RESUME_STEPS)
    run = open_run("stopped")
    curve = train_curve(run, RESUME_STEPS)
    save_run(run, LAST)
    run.close()
    curve += train_curve(open_run("stopped", "--init_from=resume"), RESUME_STEPS)
    error = max(abs(own - wanted) / wanted for own, wanted in zip(curve, whole, strict=True))
    return [check("losses of a resumed run against one without a stop", error, RESUME_TOLERANCE, whole=whole[-1])]


def silent(text):
    """Print nothing."""


def spread_model(config, device):
    """A GPT of random weights in eval mode, so large that every part of it affects the logits."""
    torch.manual_seed(0)
    model = GPT(config)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(1.0 if p.dim() == 1 else 0.0, SPREAD * config.n_embd**-0.5)
    return model.to(device).eval()


@torch.inference_mode()
def greedy_gap(model, prompts, answers, allowed):
    """How far greedy answers are from those of a plain pass of a GPT in float32 over prompt and answer: the largest
    difference between the largest logit and that of the answer's token, over the logits' standard deviation.

    prompts, answers: lists of ids; allowed (V,): bool, the ids that may be sampled. 0: the very same tokens.
    """
    worst = 0.0
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([[*prompt, *answer]], device=model.wte.weight.device)
        logits = model(ids)[0, len(prompt) - 1 : -1].float()
        picked = logits.gather(1, ids[0, len(prompt) :, None]).squeeze(1)
        best = logits.masked_fill(~allowed, -math.inf).amax(dim=1)
        worst = max(worst, float((best - picked).max() / logits.std()))
    return worst
