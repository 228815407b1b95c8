"""AdaLoRA (Zhang et al. 2023): training moves a budget of ranks to the matrices where they matter most.

The update of a matrix is P diag(e) Q (`LoRALinear` with adalora_rank), whose columns of P and rows of Q are held nearly
orthogonal by a penalty, so that it resembles a singular value decomposition. A triplet is an element of e with its
column of P and its row of Q. Every matrix begins with `rank` triplets. The number of triplets in all falls, and the
values e of the least important ones are set to zero.
"""

import torch

from minigpt.adapters.lora import LoRALinear

ORTHOGONALITY_WEIGHT = 0.1  # gamma of the paper's equation 4
SENSITIVITY_DECAY, UNCERTAINTY_DECAY = 0.85, 0.85  # beta_1 and beta_2 of equations 9 and 10
WARMUP_SHARE, FINAL_SHARE = 0.1, 0.3  # of the steps: with all triplets, and with those that are chosen for good
STEPS_BETWEEN_CUTS = 10


class AdaLoRABudget:
    """The budget of a GPT with AdaLoRA. For each optimizer step a trainer calls `add_penalty_gradients` between the
    backward pass and the step, and `allocate` after the step, while the gradients are still there."""

    def __init__(self, model, config):
        self.layers = {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}
        parts = sum(len(layer.chosen_rows) for layer in self.layers.values())
        self.first, self.last = parts * config.rank, parts * config.adalora_rank
        self.sensitivity, self.uncertainty = {}, {}  # {name of a parameter: smoothed, of its shape}

    def state_dict(self):
        """What an exact resume needs besides the parameters: plain dicts of tensors."""
        return {"sensitivity": self.sensitivity, "uncertainty": self.uncertainty}

    def load_state_dict(self, state):
        """Go on from a `state_dict`."""
        for name, tensors in state.items():
            device = next(iter(self.layers.values())).lora_a.device
            setattr(self, name, {key: tensor.to(device) for key, tensor in tensors.items()})

    @torch.no_grad()
    def add_penalty_gradients(self):
        """Add the gradients of gamma R to those of the loss, with R the mean over the matrices of equation 4's

            ||P^T P - I||^2 + ||Q Q^T - I||^2,    whose gradient in Q is 4 (Q Q^T - I) Q.

        They need no backward pass, and so do not disturb the exchange of gradients between processes.
        """
        pairs = [(rows, grad) for layer in self.layers.values() for rows, grad in orthogonal_rows(layer)]
        for rows, grad in pairs:
            grad.add_(gram_error(rows) @ rows, alpha=4 * ORTHOGONALITY_WEIGHT / (len(pairs) / 2))

    def budget(self, step, max_iters):
        """Number of triplets that are kept after `step` steps: constant, then cubic (equation 12), then constant."""
        begin, end = WARMUP_SHARE * max_iters, (1 - FINAL_SHARE) * max_iters
        left = min(1.0, max(0.0, (end - step) / (end - begin)))
        return self.last + int((self.first - self.last) * left**3)

    @torch.no_grad()
    def allocate(self, step, max_iters):
        """Update the importance of all triplets and, where it is time, set the values of the least important to zero.

        step: optimizer steps taken, this one included. Between two cuts the optimizer may change what was zero, so that
        a triplet may come back. In the last steps importance no longer changes, so that the same triplets stay zero.
        """
        is_final = step >= (1 - FINAL_SHARE) * max_iters
        if not is_final or not self.sensitivity:
            self.update_importance()
        if is_final or step % STEPS_BETWEEN_CUTS == 0:
            self.cut(self.budget(step, max_iters))

    def update_importance(self):
        """Smooth the sensitivity |w dL/dw| of each parameter, and how far it is from its mean (equations 8 to 10)."""
        for name, p in self.parameters():
            now = (p * p.grad).abs()
            mean = self.sensitivity.setdefault(name, torch.zeros_like(p)).lerp_(now, 1 - SENSITIVITY_DECAY)
            spread = self.uncertainty.setdefault(name, torch.zeros_like(p))
            spread.lerp_((now - mean).abs(), 1 - UNCERTAINTY_DECAY)

    def parameters(self):
        """(name, parameter) of all P, e and Q."""
        for name, layer in self.layers.items():
            for key in ("lora_a", "lora_b", "lora_e"):
                yield f"{name}.{key}", getattr(layer, key)

    def importance(self, name, layer):
        """Importance (parts · r,) of a layer's triplets: that of e plus the means of P's and Q's (equation 7).

        The importance of a number is its smoothed sensitivity times its uncertainty (equation 11).
        """
        a, b, e = (
            self.sensitivity[f"{name}.{key}"] * self.uncertainty[f"{name}.{key}"]
            for key in ("lora_a", "lora_b", "lora_e")
        )
        return e + a.mean(dim=1) + torch.cat([part.mean(dim=0) for part in b.split(layer.chosen_rows)])

    def cut(self, budget):
        """Set the values e of all triplets to zero but for the `budget` most important."""
        scores = torch.cat([self.importance(name, layer) for name, layer in self.layers.items()])
        kept = torch.zeros_like(scores)
        kept[scores.topk(budget).indices] = 1
        masks = kept.split([len(layer.lora_e) for layer in self.layers.values()])
        for layer, mask in zip(self.layers.values(), masks, strict=True):
            layer.lora_e.mul_(mask)


def orthogonal_rows(layer):
    """(rows (r, n), their gradient) that should be orthonormal, of each part of an AdaLoRA layer: P^T, and Q."""
    for p, sizes in ((layer.lora_a, layer.rank), (layer.lora_b, layer.chosen_rows)):
        for rows, grad in zip(p.split(sizes), p.grad.split(sizes), strict=True):
            yield (rows, grad) if p is layer.lora_a else (rows.T, grad.T)


def gram_error(rows):
    """rows rows^T - I (r, r) of rows (r, n): zero where they are orthonormal."""
    return rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
