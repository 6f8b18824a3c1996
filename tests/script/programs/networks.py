"""Networks whose work depends on their input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.script.programs.case import Case, integers, normal, seeded


class DynamicRNN(nn.Module):
    """Each row of a padded batch runs to its own length."""

    def __init__(self, inputs: int = 16, hidden: int = 32) -> None:
        super().__init__()
        self.cell = nn.GRUCell(inputs, hidden)
        self.hidden = hidden

    def forward(self, x, lengths):
        outputs = x.new_zeros(x.size(0), x.size(1), self.hidden)
        last = x.new_zeros(x.size(0), self.hidden)
        for b in range(x.size(0)):
            h = x.new_zeros(1, self.hidden)
            for t in range(int(lengths[b])):
                h = self.cell(x[b, t : t + 1], h)
                outputs[b, t] = h[0]
            last[b] = h[0]
        return outputs, last


class MaskedRNN(nn.Module):
    """The whole batch steps together, rows that have ended keep their state."""

    def __init__(self, inputs: int = 16, hidden: int = 32) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(inputs, hidden)
        self.hidden = hidden

    def forward(self, x, lengths):
        h = c = x.new_zeros(x.size(0), self.hidden)
        outputs = []
        for t in range(int(lengths.max())):
            active = (t < lengths).unsqueeze(1)
            new_h, new_c = self.cell(x[:, t], (h, c))
            h = torch.where(active, new_h, h)
            c = torch.where(active, new_c, c)
            outputs.append(h * active)
        return torch.stack(outputs, dim=1), h


class AdaptiveComputation(nn.Module):
    """Graves' ACT: ponder until the halting probabilities of every row add up to one."""

    def __init__(self, width: int = 32, max_steps: int = 10, epsilon: float = 0.01) -> None:
        super().__init__()
        self.cell = nn.GRUCell(width + 1, width)
        self.halt = nn.Linear(width, 1)
        self.out = nn.Linear(width, 4)
        self.max_steps = max_steps
        self.epsilon = epsilon

    def forward(self, x):
        batch = x.size(0)
        state = torch.zeros_like(x)
        halting = x.new_zeros(batch)
        remainders = x.new_zeros(batch)
        updates = x.new_zeros(batch)
        accumulated = torch.zeros_like(x)
        step = 0
        while ((halting < 1.0 - self.epsilon) & (updates < self.max_steps)).any():
            flag = x.new_full((batch, 1), 1.0 if step == 0 else 0.0)
            state = self.cell(torch.cat([x, flag], dim=1), state)
            p = torch.sigmoid(self.halt(state)).squeeze(-1)
            running = (halting < 1.0).float()
            new_halted = (halting + p * running > 1.0 - self.epsilon).float() * running
            running = (halting + p * running <= 1.0 - self.epsilon).float() * running
            halting = halting + p * running
            remainders = remainders + new_halted * (1 - halting)
            halting = halting + new_halted * remainders
            updates = updates + running + new_halted
            weight = p * running + new_halted * remainders
            accumulated = accumulated + weight.unsqueeze(-1) * state
            step += 1
        return self.out(accumulated), updates, remainders


class PonderNet(nn.Module):
    """Halts when the sampled (here: thresholded) decision says so."""

    def __init__(self, width: int = 24, max_steps: int = 12) -> None:
        super().__init__()
        self.cell = nn.GRUCell(width, width)
        self.out = nn.Linear(width, 3)
        self.lam = nn.Linear(width, 1)
        self.max_steps = max_steps

    def forward(self, x):
        h = x.new_zeros(x.shape)
        unhalted = x.new_ones(x.shape[0])
        halting_step = torch.zeros(x.shape[0], dtype=torch.long)
        ys, ps = [], []
        for n in range(1, self.max_steps + 1):
            h = self.cell(x, h)
            lam = (
                torch.ones(x.shape[0]) if n == self.max_steps else torch.sigmoid(self.lam(h))[:, 0]
            )
            ps.append(unhalted * lam)
            ys.append(self.out(h))
            unhalted = unhalted * (1 - lam)
            halting_step = torch.where((halting_step == 0) & (unhalted < 0.1), n, halting_step)
            if (halting_step > 0).sum() == x.shape[0]:
                break
        return torch.stack(ys), torch.stack(ps), halting_step


class EarlyExit(nn.Module):
    """BranchyNet: returns from the first head that is sure."""

    def __init__(self, width: int = 64, layers: int = 4, classes: int = 10) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(layers)
        )
        self.heads = nn.ModuleList(nn.Linear(width, classes) for _ in range(layers))
        self.threshold = 0.16

    def forward(self, x):
        for depth, (layer, head) in enumerate(zip(self.layers, self.heads)):
            x = layer(x)
            logits = head(x)
            confidence = logits.softmax(-1).max(-1).values
            if confidence.min() > self.threshold:
                return logits, depth
        return logits, len(self.layers)


class ConvEarlyExit(nn.Module):
    """The same with convolutions, and an exit by the entropy of the batch."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.exit = nn.Linear(8, classes)
        self.body = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU())
        self.head = nn.Linear(16, classes)

    def forward(self, x):
        x = self.stem(x)
        early = self.exit(x.mean((2, 3)))
        p = early.softmax(-1)
        entropy = -(p * p.log()).sum(-1).mean()
        if entropy < 1.55:
            return early
        return self.head(self.body(x).mean((2, 3)))


class RoutedExperts(nn.Module):
    """A mixture of experts: experts without tokens are skipped."""

    def __init__(self, width: int = 32, experts: int = 4, k: int = 2) -> None:
        super().__init__()
        self.gate = nn.Linear(width, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
            for _ in range(experts)
        )
        self.k = k

    def forward(self, x):
        weights, chosen = self.gate(x).softmax(-1).topk(self.k, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        result = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            mask = chosen == e
            if mask.any():
                rows, slot = torch.where(mask)
                result[rows] += weights[rows, slot, None] * expert(x[rows])
        return result


class SwitchByInput(nn.Module):
    """One expert for the whole input, chosen by ``if``."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.gate = nn.Linear(width, 3)
        self.small = nn.Linear(width, width)
        self.deep = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x):
        choice = self.gate(x.mean(0)).argmax().item()
        if choice == 0:
            return self.small(x)
        elif choice == 1:
            return self.deep(x)
        return x


class Equilibrium(nn.Module):
    """A deep equilibrium layer: iterate to a fixed point."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.w = nn.Linear(width, width, bias=False)
        self.u = nn.Linear(width, width)
        with torch.no_grad():
            self.w.weight *= 0.5

    def forward(self, x):
        z = torch.zeros_like(x)
        injected = self.u(x)
        for i in range(50):
            new = torch.tanh(self.w(z) + injected)
            error = (new - z).norm() / (new.norm() + 1e-8)
            z = new
            if error < 1e-4:
                break
        return z, i


class TreeLSTM(nn.Module):
    """Composes a binary tree bottom up; parents come after their children."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.leaf = nn.Linear(width, 2 * width)
        self.compose = nn.Linear(2 * width, 5 * width)
        self.width = width

    def forward(self, words, left, right):
        hs, cs = [], []
        for i in range(words.shape[0]):
            if left[i] < 0:
                h, c = self.leaf(words[i]).chunk(2)
            else:
                gates = self.compose(torch.cat([hs[left[i]], hs[right[i]]]))
                i_gate, f_left, f_right, o, u = gates.chunk(5)
                c = (
                    torch.sigmoid(i_gate) * torch.tanh(u)
                    + torch.sigmoid(f_left) * cs[left[i]]
                    + torch.sigmoid(f_right) * cs[right[i]]
                )
                h = torch.sigmoid(o) * torch.tanh(c)
            hs.append(h)
            cs.append(c)
        return hs[-1], torch.stack(hs)


class ShiftReduce(nn.Module):
    """SPINN: a stack that actions push to and reduce."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.reduce = nn.Linear(2 * width, width)

    def forward(self, words, actions):
        stack = []
        position = 0
        for action in actions.tolist():
            if action == 0:
                stack.append(words[position])
                position += 1
            else:
                right = stack.pop()
                left = stack.pop()
                stack.append(torch.tanh(self.reduce(torch.cat([left, right]))))
        return stack[-1]


class SkipRNN(nn.Module):
    """Updates its state only when the accumulated gate says so."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.cell = nn.GRUCell(width, width)
        self.gate = nn.Linear(width, 1)

    def forward(self, x):
        h = torch.zeros(1, x.shape[1])
        u = torch.tensor(1.0)
        used = 0
        for t in range(x.shape[0]):
            if u >= 0.5:
                h = self.cell(x[t : t + 1], h)
                u = torch.sigmoid(self.gate(h)).squeeze()
                used += 1
            else:
                u = torch.clamp(u + torch.sigmoid(self.gate(h)).squeeze(), max=1.0)
        return h, used


class HierarchicalSoftmax(nn.Module):
    """Walks down a binary tree of decisions."""

    def __init__(self, width: int = 16, depth: int = 5) -> None:
        super().__init__()
        self.nodes = nn.Embedding(2**depth, width)
        self.depth = depth

    def forward(self, x):
        node = 1
        log_prob = torch.zeros(())
        while node < 2**self.depth:
            p = torch.sigmoid((self.nodes.weight[node] * x).sum())
            if p > 0.5:
                log_prob = log_prob + p.log()
                node = 2 * node + 1
            else:
                log_prob = log_prob + (1 - p).log()
                node = 2 * node
        return torch.as_tensor(node - 2**self.depth), log_prob


class MemoryNetwork(nn.Module):
    """Hops over a memory until its attention is sharp."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.q = nn.Linear(width, width)
        self.update = nn.Linear(2 * width, width)

    def forward(self, query, memory):
        hops = 0
        while hops < 8:
            attention = F.softmax(memory @ self.q(query) * 2, dim=0)
            if attention.max() > 0.8:
                break
            read = attention @ memory
            query = torch.tanh(self.update(torch.cat([query, read])))
            hops += 1
        return query, attention, torch.tensor(hops)


def _tree(n, seed):
    """Leaves first, then random parents of earlier nodes."""
    leaves = n // 2 + 1
    left, right = -torch.ones(n, dtype=torch.long), -torch.ones(n, dtype=torch.long)
    for i in range(leaves, n):
        left[i], right[i] = integers(i, 1, seed=seed + i), integers(i, 1, seed=seed + 2 * i)
    return normal(n, 24, seed=seed), left, right


def _actions(words):
    """Push all, then reduce to one."""
    mixed = [0, 0, 1] + [0, 1] * (words - 2)
    return torch.tensor(mixed if words > 1 else [0])


CASES = {
    "dynamic_rnn": Case(
        seeded(DynamicRNN),
        (normal(3, 7, 16), torch.tensor([7, 2, 4])),
        (
            (normal(1, 1, 16, seed=1), torch.tensor([1])),
            (normal(2, 5, 16, seed=2), torch.tensor([0, 5])),
            (normal(4, 9, 16, seed=3), torch.tensor([9, 9, 1, 0])),
        ),
        ({0: "batch", 1: "steps"}, {0: "batch"}),
        (normal(8, 20, 16, seed=4), torch.tensor([20, 3, 17, 8, 1, 12, 20, 5])),
    ),
    "masked_rnn": Case(
        seeded(MaskedRNN),
        (normal(3, 7, 16), torch.tensor([7, 2, 4])),
        (
            (normal(1, 1, 16, seed=1), torch.tensor([1])),
            (normal(4, 9, 16, seed=3), torch.tensor([5, 8, 1, 0])),
        ),
        ({0: "batch", 1: "steps"}, {0: "batch"}),
        (normal(8, 40, 16, seed=4), torch.tensor([40, 3, 17, 38, 1, 12, 20, 5])),
    ),
    "adaptive_computation": Case(
        seeded(AdaptiveComputation),
        (normal(3, 32),),
        ((normal(1, 32, seed=1),), (normal(6, 32, seed=2) * 20,), (normal(2, 32, seed=2) * 60,)),
        ({0: "batch"},),
        (normal(16, 32, seed=4),),
    ),
    "ponder_net": Case(
        seeded(PonderNet),
        (normal(3, 24),),
        ((normal(1, 24, seed=1),), (normal(6, 24, seed=2) * 9,)),
        ({0: "batch"},),
        (normal(16, 24, seed=4),),
    ),
    "early_exit": Case(
        seeded(EarlyExit),
        (normal(2, 64),),
        ((normal(1, 64, seed=1) * 9,), (normal(1, 64, seed=2),), (normal(5, 64, seed=3) * 0.1,)),
        ({0: "batch"},),
        (normal(8, 64, seed=4) * 0.3,),
    ),
    "conv_early_exit": Case(
        seeded(ConvEarlyExit),
        (normal(2, 3, 16, 16),),
        ((normal(1, 3, 8, 12, seed=1) * 9,), (normal(3, 3, 20, 9, seed=2) * 0.1,)),
        ({0: "batch", 2: "height", 3: "width"},),
        (normal(4, 3, 64, 64, seed=4),),
    ),
    "routed_experts": Case(
        seeded(RoutedExperts),
        (normal(5, 32),),
        ((normal(1, 32, seed=1),), (normal(40, 32, seed=2),), (normal(2, 32, seed=7) * 30,)),
        ({0: "tokens"},),
        (normal(64, 32, seed=4),),
    ),
    "switch_by_input": Case(
        seeded(SwitchByInput),
        (normal(5, 32),),
        tuple((normal(n, 32, seed=n) * 5,) for n in range(1, 12)),
        ({0: "rows"},),
        (normal(64, 32, seed=4),),
    ),
    "equilibrium": Case(
        seeded(Equilibrium),
        (normal(5, 48),),
        ((normal(1, 48, seed=1),), (normal(9, 48, seed=2) * 5,), (normal(2, 48, seed=2) * 0,)),
        ({0: "rows"},),
        (normal(16, 48, seed=4),),
    ),
    "tree_lstm": Case(
        seeded(TreeLSTM),
        _tree(7, 0),
        (_tree(1, 1), _tree(3, 2), _tree(15, 3)),
        ({0: "nodes"},) * 3,
        _tree(63, 4),
    ),
    "shift_reduce": Case(
        seeded(ShiftReduce),
        (normal(4, 24), _actions(4)),
        ((normal(2, 24, seed=1), _actions(2)), (normal(9, 24, seed=2), _actions(9))),
        None,
        (normal(40, 24, seed=2), _actions(40)),
        examples=((normal(6, 24, seed=5), _actions(6)),),
    ),
    "skip_rnn": Case(
        seeded(SkipRNN),
        (normal(6, 16),),
        ((normal(1, 16, seed=1),), (normal(25, 16, seed=2) * 3,)),
        ({0: "steps"},),
        (normal(60, 16, seed=4) * 3,),
    ),
    "hierarchical_softmax": Case(
        seeded(HierarchicalSoftmax),
        (normal(16),),
        tuple((normal(16, seed=n),) for n in range(1, 6)),
        None,
        (normal(16, seed=9),),
    ),
    "memory_network": Case(
        seeded(MemoryNetwork),
        (normal(24), normal(6, 24, seed=1)),
        (
            (normal(24, seed=2) * 20, normal(3, 24, seed=3) * 9),
            (normal(24, seed=4), normal(1, 24, seed=5)),
            (normal(24, seed=6) * 0, normal(30, 24, seed=7) * 0.1),
        ),
        ({}, {0: "slots"}),
        (normal(24, seed=6), normal(64, 24, seed=7) * 0.1),
    ),
}
