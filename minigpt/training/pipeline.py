"""Pipeline parallelism: each process of a group holds some consecutive layers, by torch.distributed.pipelining.

A step's micro-batches go through the stages one behind the other, forward and backward alternately (1F1B: Harlap et
al. 2018, "PipeDream"; its form with one update a step: Narayanan et al. 2021, "Efficient Large-Scale Language Model
Training on GPU Clusters Using Megatron-LM"). What a stage sends is the residual stream, float32 (B, T, C), and back its
gradient. All micro-batches have one shape, since a stage must know what it receives.
"""

import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.nn import functional as F

from data_utils import move_batch
from minigpt.common.errors import UserError
from minigpt.device import explain_out_of_memory
from minigpt.inference.likelihood import likelihood
from minigpt.training.distributed import check_nccl
from minigpt.training.divided import DividedModel
from minigpt.training.optim import make_optimizers
from model import GPT

CPU = torch.device("cpu")
LARGE_BUBBLE = 0.25  # share of a step in which a stage waits, from which a line says how to lower it


def divide_layers(n_layer, parts, output_layers):
    """List of `parts` ranges of consecutive layers, of about equal cost.

    output_layers: cost of the output layer, which the last part has, in layers. The first part has the embeddings,
    which are looked up at little cost; but it holds the most activations, so no part has fewer layers before the last.
    """
    last = max(1, round((n_layer + output_layers) / parts - output_layers))
    size, larger = divmod(n_layer - last, parts - 1)
    sizes = [size] * (parts - 1 - larger) + [size + 1] * larger + [last]
    ends = [sum(sizes[: part + 1]) for part in range(parts)]
    return [range(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def bubble(micro_batches, parts):
    """Share of a step in which a stage of a pipeline waits for the others."""
    return (parts - 1) / (micro_batches + parts - 1)


class StageModel(GPT):
    """The layers of a GPT that one process holds, under the names that they have in the whole model.

    The first stage has the embeddings too, and the last one the final norm and the output layer. Of a tied model both
    have the embedding's matrix. Losses are computed in the last stage, from states in the place of ids.
    """

    def __init__(self, model, whole, layers, precision, group):
        """model: the GPT, whose modules become the stage's; whole: the same on the meta device, for its numbers;
        layers: range of those of the stage; precision: a `Precision`; group: of the processes of all stages, in
        order."""
        with torch.device("meta"):
            super().__init__(model.config)
        self.precision, self.group = precision, group
        self.is_first, self.is_last = layers.start == 0, layers.stop == model.config.n_layer
        has_table = self.is_first or (self.is_last and model.config.tied)
        self.wte, self.wpe = model.wte if has_table else None, model.wpe if self.is_first else None
        self.lm_head = model.lm_head if self.is_last or (has_table and model.config.tied) else None
        self.ln_f = model.ln_f if self.is_last else None
        self.h = torch.nn.ModuleList()
        for layer in layers:
            self.h.add_module(str(layer), model.h[layer])
        self.trunk = lambda states: states
        self.num_params, self.training_flops = whole.num_params, whole.training_flops

    def forward(self, x):
        """States (B, T, C) behind the stage's layers, from what comes before them: ids (B, T) in the first stage, where
        those below 0 are padding, and states in the others."""
        with self.precision.context(x.device):
            at = torch.arange(x.shape[1], device=x.device)
            if self.is_first:
                x = self.wte(x.clamp(min=0))
                x = F.dropout(x if self.wpe is None else x + self.wpe(at), self.config.dropout, self.training)
            angles = self.angles(at)
            for block in self.h:
                x = block(x, angles)
            return self.ln_f(x) if self.is_last else x

    def pass_through(self, idx):
        """States (B, T, C) behind this stage's layers, for ids idx (B, T), which go through all stages before it.
        All processes of the group must call this, without gradients."""
        x, part = idx, self.group.rank()
        if not self.is_first:
            x = torch.empty(*idx.shape, self.config.n_embd, device=idx.device)
            dist.recv(x, group=self.group, group_src=part - 1)
        x = self(x)
        if not self.is_last:
            dist.send(x, group=self.group, group_dst=part + 1)
        return x

    def token_losses(self, x, y, loss_mask):
        """As of a GPT in the last stage; zeros in the others, which do not wait for it. x: ids (B, T)."""
        states = self.pass_through(x)
        if self.is_last:
            return super().token_losses(states, y, loss_mask)
        return torch.zeros(int(loss_mask.sum()))


class Pipeline(DividedModel):
    """The model of a `TrainingRun`, whose layers are divided over the processes of a group.

    Raises UserError where that cannot be done: more stages than layers, rows of a task, GPUs without NCCL.
    """

    def __init__(self, run):
        super().__init__(run)
        self.group = self.processes.mesh.get_group("model")
        self.check()
        batches = run.data.typical_step((0, 0)).batches  # all steps have as many, of the same shape
        self.micro_batches, ids = len(batches), batches[0][0]
        part, parts, config = self.processes.part, self.processes.parts, run.model.config
        with torch.device("meta"):
            self.whole = GPT(config)
        self.whole_optimizers = make_optimizers(self.whole, run.settings)
        of_block = sum(p.numel() for p in self.whole.h[0].parameters())
        ranges = divide_layers(config.n_layer, parts, self.whole.lm_head.weight.numel() / of_block)
        self.model = StageModel(run.model, self.whole, ranges[part], run.precision, self.group).train()
        with explain_out_of_memory(run.device):
            run.model = self.model.to(run.device)
        # NCCL makes the group's communicator at its first use, in which all processes must take part.
        dist.all_reduce(torch.zeros(1, device=run.device), group=self.group)

        # The schedule.
        states = torch.empty(*ids.shape, config.n_embd, device="meta", requires_grad=True)
        stage = PipelineStage(
            self.model, part, parts, run.device, input_args=ids.to("meta") if part == 0 else states, output_args=states,
            group=self.group,
        )  # fmt: skip
        schedule = Schedule1F1B if self.micro_batches >= parts else ScheduleGPipe  # the same times, where 1F1B has none
        self.schedule = schedule(stage, self.micro_batches, loss_fn=self.loss, scale_grads=False)
        self.batches, self.kept, self.losses = [], 0, []  # of the step that is computed

        # What it costs.
        idle = bubble(self.micro_batches, parts)
        advice = "; more gradient_accumulation_steps, of smaller batches, lower that" if idle > LARGE_BUBBLE else ""
        in_words = "1 micro-batch" if self.micro_batches == 1 else f"{self.micro_batches} micro-batches"
        run.say(
            f"pipeline: {' + '.join(str(len(layers)) for layers in ranges)} layers; with {in_words} a step each "
            f"process waits {idle:.0%} of the time{advice}"
        )

    def check(self):
        """Raise UserError where the model of the run cannot be divided."""
        run, parts, layers = self.run, self.processes.parts, self.run.model.config.n_layer
        if parts > layers:
            raise UserError(
                f"pipeline_parallel is {parts}, but the model has {layers} {'layer' if layers == 1 else 'layers'}; "
                f"give {layers} or fewer"
            )
        if run.data.meta["stage"] == "task":
            raise UserError(f"pipeline_parallel does not train task heads, and {run.settings.data_dir} holds a task")
        check_nccl("pipeline_parallel", run.device)

    def loss(self, states, number):
        """The loss of a micro-batch from its states (B, T, C), scaled for the backward pass; number: its own, (1,)."""
        _, *batch = self.batches[int(number)]
        with self.run.precision.context(states.device):
            loss = self.model.loss_sum(states, *batch)
        self.losses.append(loss.detach())
        # Gradients are averaged over the groups, as in train.py's add_gradients.
        return loss * (self.processes.count / max(1, self.kept))

    def add_gradients(self, run, batches, kept):
        """In the place of train.py's: arguments and result as there. All micro-batches go through the pipeline."""
        inputs, targets, self.kept, self.losses = [], None, kept, []
        if self.model.is_first:
            inputs = [torch.cat(move_batch([x for x, *_ in batches], run.device))]
        if self.model.is_last:
            self.batches = [move_batch(batch, run.device) for batch in batches]
            targets = torch.arange(len(batches))
        try:
            self.schedule.step(*inputs, target=targets, return_outputs=False)
        except RuntimeError as error:  # torch wraps what goes wrong in a stage, such as running out of memory
            raise error.__cause__ or error from None
        self.batches = []
        run.on_batch(len(batches), len(batches))
        self.exchange_gradients()
        return self.from_last(sum(self.losses, torch.zeros((), device=run.device)))

    def from_last(self, tensor):
        """The tensor of the last stage; all processes of the group pass one of its shape."""
        dist.broadcast(tensor, group=self.group, group_src=self.processes.parts - 1)
        return tensor

    def exchange_gradients(self):
        """Also sum both gradients of a tied matrix. That comes last, so that first and last stage have the same bits,
        and their copies stay equal."""
        super().exchange_gradients()
        if not (self.model.config.tied and (self.model.is_first or self.model.is_last)):
            return
        gradient, other = self.model.wte.weight.grad, self.processes.parts - 1 - self.processes.part
        received = torch.empty_like(gradient)
        other = dist.get_global_rank(self.group, other)
        exchanged = (dist.isend, gradient), (dist.irecv, received)
        for work in dist.batch_isend_irecv([dist.P2POp(op, t, other, self.group) for op, t in exchanged]):
            work.wait()
        gradient += received

    def counts(self, p):
        return self.model.is_first or p is not getattr(self.model.wte, "weight", None)

    def validation_loss(self):
        """As `Objective.validate`; the last stage has the losses."""
        run, settings, processes = self.run, self.run.settings, self.processes
        part = likelihood(
            self.model, run.data.val, run.data.meta, settings.batch_size, precision=run.precision,
            train_on_eot=settings.train_on_eot, batch_tokens=settings.batch_tokens,
            rank=processes.rank, count=processes.count,
        )  # fmt: skip
        nats = float(self.from_last(torch.tensor(part.nats, dtype=torch.float64)))
        nats, tokens = processes.total(nats, part.tokens)
        return nats / max(1.0, tokens)

    @torch.no_grad()
    def last_logits(self, ids):
        states = self.model.pass_through(torch.tensor([ids], device=self.run.device))
        if not self.model.is_last:
            return self.from_last(torch.empty(self.model.config.vocab_size, device=self.run.device))
        with self.run.precision.context(self.run.device):
            return self.from_last(self.model.lm_head(states[0, -1]).float())

    def full_weights(self):
        found = self.gather({name: p.detach() for name, p in self.model.named_parameters() if self.counts(p)})
        if self.model.config.tied:
            found["lm_head.weight"] = found.get("wte.weight")
        return {name: found.get(name) for name in self.whole.state_dict()}  # None in the other processes

    def full_optimizer_states(self):
        own, states = {}, []
        for number, (optimizer, place) in enumerate(zip(self.run.optimizers, self.places(), strict=True)):
            params = [p for group in optimizer.param_groups for p in group["params"]]
            for i, values in optimizer.state_dict()["state"].items():
                if self.counts(params[i]):
                    own |= {(number, place[i], key): value for key, value in values.items()}
        found = self.gather(own)
        for number, (optimizer, whole) in enumerate(zip(self.run.optimizers, self.whole_optimizers, strict=True)):
            state = {}
            for of, i, key in sorted(found, key=lambda place: place[:2]):
                if of == number:
                    state.setdefault(i, {})[key] = found[of, i, key]
            pairs = zip(optimizer.state_dict()["param_groups"], whole.state_dict()["param_groups"], strict=True)
            groups = [{**values, "params": group["params"]} for values, group in pairs]
            states.append({"state": state, "param_groups": groups})
        return states

    def own_optimizer_states(self, states):
        own = []
        for optimizer, state, place in zip(self.run.optimizers, states, self.places(), strict=True):
            pairs = zip(state["param_groups"], optimizer.state_dict()["param_groups"], strict=True)
            groups = [{**values, "params": group["params"]} for values, group in pairs]
            found = {i: state["state"][of_whole] for i, of_whole in enumerate(place) if of_whole in state["state"]}
            own.append({"state": found, "param_groups": groups})
        return own

    def places(self):
        """For each optimizer: the numbers that its parameters have in that of the whole model, in their order."""
        places = []
        for optimizer, whole in zip(self.run.optimizers, self.whole_optimizers, strict=True):
            number = {name: i for i, name in enumerate(parameter_names(whole, self.whole))}
            places.append([number[name] for name in parameter_names(optimizer, self.model)])
        return places

    def gather(self, tensors):
        """A dict of the tensors of all stages, on the CPU of the main process; {} in the others.

        The main process gets one stage after the other, tensor by tensor.
        """
        if self.processes.rank:  # the first group has them all
            return {}
        if self.processes.part:
            dist.send_object_list(
                [{key: (t.shape, t.dtype) for key, t in tensors.items()}], group=self.group, group_dst=0, device=CPU
            )
            for tensor in tensors.values():
                dist.send(tensor.cpu().contiguous(), group=self.group, group_dst=0)
            return {}
        gathered = {key: tensor.cpu() for key, tensor in tensors.items()}
        for part in range(1, self.processes.parts):
            shapes = [None]
            dist.recv_object_list(shapes, group=self.group, group_src=part, device=CPU)
            for key, (shape, dtype) in shapes[0].items():
                tensor = torch.empty(shape, dtype=dtype)
                dist.recv(tensor, group=self.group, group_src=part)
                gathered[key] = tensor
        return gathered


def parameter_names(optimizer, model):
    """Names of an optimizer's parameters, in the order in which its state dict numbers them."""
    names = {id(p): name for name, p in model.named_parameters()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
