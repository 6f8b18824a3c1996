"""Programs with lists, heaps of state and early ends: decoding, graphs, matching, clustering, text."""

from __future__ import annotations

import dataclasses
from collections import deque

import torch
import torch.nn.functional as F
from torch import nn

from tests.script.programs.case import Case, integers, normal, seeded, uniform

T = torch.tensor


class TinyLM(nn.Module):
    def __init__(self, vocab=17, dim=12):
        super().__init__()
        self.emb = nn.Embedding(vocab, dim)
        self.rnn = nn.GRUCell(dim, dim)
        self.out = nn.Linear(dim, vocab)

    def forward(self, token, h):
        h = self.rnn(self.emb(token), h)
        return self.out(h), h


class Sampler(nn.Module):
    """Temperature, top-k, top-p, a repetition penalty and stop lists; the noise is given."""

    def __init__(
        self, top_k=5, top_p=0.9, temperature=0.7, repetition_penalty=1.2, max_new=12, eos=2
    ):
        super().__init__()
        self.lm = TinyLM()
        self.top_k, self.top_p, self.temperature = top_k, top_p, temperature
        self.repetition_penalty, self.max_new, self.eos = repetition_penalty, max_new, eos
        self.stop_sequences = [[3, 4], [7]]

    def warp(self, logits, generated):
        if self.repetition_penalty != 1.0:
            score = torch.gather(logits, -1, generated)
            score = torch.where(
                score < 0, score * self.repetition_penalty, score / self.repetition_penalty
            )
            logits = logits.scatter(-1, generated, score)
        logits = logits / self.temperature
        if self.top_k > 0:
            kth = torch.topk(logits, min(self.top_k, logits.size(-1)))[0][..., -1, None]
            logits = logits.masked_fill(logits < kth, -float("inf"))
        if self.top_p < 1.0:
            sl, si = torch.sort(logits, descending=True)
            cp = sl.softmax(-1).cumsum(-1)
            rm = cp > self.top_p
            rm[..., 1:] = rm[..., :-1].clone()
            rm[..., 0] = 0
            logits = logits.masked_fill(rm.scatter(-1, si, rm), -float("inf"))
        return logits

    def should_stop(self, tokens):
        for stop in self.stop_sequences:
            n = len(stop)
            if tokens.shape[0] >= n and tokens[-n:].tolist() == stop:
                return True
        return False

    def forward(self, prompt, noise):
        h = torch.zeros(1, 12)
        logits = None
        for tok in prompt:
            logits, h = self.lm(tok.view(1), h)
        generated = prompt.clone()
        for step in range(self.max_new):
            probs = F.softmax(self.warp(logits, generated.unsqueeze(0)), dim=-1)
            nxt = torch.searchsorted(probs[0].cumsum(0), noise[step]).clamp(max=16)
            generated = torch.cat([generated, nxt.view(1)])
            if nxt == self.eos:
                break
            if self.should_stop(generated):
                break
            logits, h = self.lm(nxt.view(1), h)
        return generated


class BeamSearch(nn.Module):
    def __init__(self, beam=3, max_len=6, alpha=0.6, eos=2):
        super().__init__()
        self.lm = TinyLM()
        self.beam, self.max_len, self.alpha, self.eos = beam, max_len, alpha, eos

    def penalty(self, n):
        return ((5 + n) / 6) ** self.alpha

    def forward(self, h0):
        beams = torch.full((1, 1), 1, dtype=torch.long)
        scores = torch.zeros(1)
        h = h0
        finished = []
        for t in range(self.max_len):
            logits, h = self.lm(beams[:, -1], h)
            logp = scores[:, None] + logits.log_softmax(-1)
            vals, idx = logp.view(-1).topk(self.beam)
            parent, tok = idx // 17, idx % 17
            beams = torch.cat([beams[parent], tok[:, None]], 1)
            h = h[parent]
            scores = vals
            done = tok == self.eos
            for i in range(self.beam):
                if done[i]:
                    finished.append((scores[i] / self.penalty(t + 1), beams[i]))
            scores = scores.masked_fill(done, -1e9)
            if len(finished) >= self.beam:
                break
        if not finished:
            finished = [(scores[0], beams[0])]
        best = finished[0]
        for f in finished[1:]:
            if f[0] > best[0]:
                best = f
        return best[1], best[0]


class Transducer(nn.Module):
    """RNN-T greedy decode"""

    def __init__(self, V=6, d=8):
        super().__init__()
        self.emb = nn.Embedding(V, d)
        self.pred = nn.LSTMCell(d, d)
        self.joint = nn.Linear(d, V)
        self.enc = nn.Linear(4, d)

    @torch.no_grad()
    def forward(self, feats, max_symbols: int = 3):
        enc = self.enc(feats)
        hyp = []
        state = (torch.zeros(1, 8), torch.zeros(1, 8))
        last = torch.zeros(1, dtype=torch.long)
        g, new_state = self.pred(self.emb(last), state)[0], None
        new_state = self.pred(self.emb(last), state)
        g = new_state[0]
        for f in enc:
            for _ in range(max_symbols):
                k = self.joint(torch.tanh(f[None] + g)).argmax(-1)
                if k.item() == 0:
                    break
                hyp.append(k)
                state = new_state
                new_state = self.pred(self.emb(k), state)
                g = new_state[0]
        return torch.cat(hyp) if len(hyp) > 0 else torch.zeros(0, dtype=torch.long)


def union_find_list(edges):
    parent = list(range(6))
    count = 6

    def find(i):
        while parent[i] != i:
            i = parent[i]
        return i

    for a, b in edges.tolist():
        ra, rb = find(a), find(b)
        if ra != rb:
            parent[ra] = rb
            count -= 1
    return torch.tensor(parent), count


def topo_sort(adj):
    n = adj.shape[0]
    indeg = adj.sum(0)
    queue = [i for i in range(n) if indeg[i] == 0]
    order = []
    while queue:
        u = queue.pop(0)
        order.append(u)
        for v in range(n):
            if adj[u, v] > 0:
                indeg[v] -= 1
                if indeg[v] == 0:
                    queue.append(v)
    return torch.tensor(order, dtype=torch.long), len(order) == n


def quicksort_iter(xs):
    a = xs.clone()
    stack = [(0, a.shape[0] - 1)]
    while stack:
        lo, hi = stack.pop()
        if lo >= hi:
            continue
        p = a[hi].clone()
        i = lo
        for j in range(lo, hi):
            if a[j] < p:
                t = a[i].clone()
                a[i] = a[j]
                a[j] = t
                i += 1
        t = a[i].clone()
        a[i] = a[hi]
        a[hi] = t
        stack.append((lo, i - 1))
        stack.append((i + 1, hi))
    return a


def lis_bisect(xs):
    tails = []
    for x in xs.tolist():
        lo, hi = 0, len(tails)
        while lo < hi:
            mid = (lo + hi) // 2
            if tails[mid] < x:
                lo = mid + 1
            else:
                hi = mid
        if lo == len(tails):
            tails.append(x)
        else:
            tails[lo] = x
    return len(tails), torch.tensor(tails)


def lbfgs(x, A):
    Q = A @ A.T + torch.eye(4)
    grad = lambda x: Q @ x - 1
    S, Y, rho = [], [], []
    g = grad(x)
    for it in range(15):
        if g.norm() < 1e-3:
            break
        q = g.clone()
        alphas = []
        for s, y, r in zip(reversed(S), reversed(Y), reversed(rho)):
            a = r * s.dot(q)
            alphas.append(a)
            q = q - a * y
        if Y:
            q = q * (S[-1].dot(Y[-1]) / Y[-1].dot(Y[-1]))
        for s, y, r, a in zip(S, Y, rho, reversed(alphas)):
            q = q + s * (a - r * y.dot(q))
        t = 1.0
        fx = 0.5 * x @ Q @ x - x.sum()
        while True:
            xn = x - t * q
            if 0.5 * xn @ Q @ xn - xn.sum() <= fx - 1e-4 * t * g.dot(q) or t < 1e-4:
                break
            t *= 0.5
        gn = grad(xn)
        S.append(xn - x)
        Y.append(gn - g)
        rho.append(1 / (gn - g).dot(xn - x))
        if len(S) > 3:
            S.pop(0)
            Y.pop(0)
            rho.pop(0)
        x, g = xn, gn
    return x


def box_iou(a, b):
    lt = torch.max(a[:, None, :2], b[:, :2])
    rb = torch.min(a[:, None, 2:], b[:, 2:])
    i = (rb - lt).clamp(min=0).prod(-1)
    ar = lambda z: (z[:, 2] - z[:, 0]) * (z[:, 3] - z[:, 1])
    return i / (ar(a)[:, None] + ar(b) - i)


def hungarian(cost):
    n = cost.shape[0]
    u = torch.zeros(n + 1)
    v = torch.zeros(n + 1)
    p = torch.zeros(n + 1, dtype=torch.long)
    way = torch.zeros(n + 1, dtype=torch.long)
    for i in range(1, n + 1):
        p[0] = i
        j0 = 0
        minv = torch.full((n + 1,), float("inf"))
        used = torch.zeros(n + 1, dtype=torch.bool)
        while True:
            used[j0] = True
            i0 = p[j0]
            delta = float("inf")
            j1 = 0
            for j in range(1, n + 1):
                if not used[j]:
                    cur = cost[i0 - 1, j - 1] - u[i0] - v[j]
                    if cur < minv[j]:
                        minv[j] = cur
                        way[j] = j0
                    if minv[j] < delta:
                        delta = minv[j].item()
                        j1 = j
            for j in range(n + 1):
                if used[j]:
                    u[p[j]] += delta
                    v[j] -= delta
                else:
                    minv[j] -= delta
            j0 = j1
            if p[j0] == 0:
                break
        while True:
            j1 = int(way[j0])
            p[j0] = p[j1]
            j0 = j1
            if j0 == 0:
                break
    return p[1:] - 1, -v[0]


def weighted_box_fusion(boxes, scores):
    order = scores.argsort(descending=True)
    clusters, fused = [], []
    for i in order:
        b, s = boxes[i], scores[i]
        matched = -1
        best = 0.3
        for j, f in enumerate(fused):
            iou = box_iou(b[None], f[None, :4])[0, 0].item()
            if iou > best:
                best, matched = iou, j
        if matched < 0:
            fused.append(
                torch.cat([b * s, s[None], torch.ones(1)])
                / torch.cat([s.expand(4), torch.ones(2)])
            )
        else:
            f = fused[matched]
            w = f[4]
            nb = (f[:4] * w + b * s) / (w + s)
            fused[matched] = torch.cat([nb, (w + s)[None], f[5:] + 1])
    return torch.stack(fused)


@dataclasses.dataclass
class Track:
    box: torch.Tensor
    id: int
    age: int = 0


class Tracker:
    def __init__(self, thr=0.3):
        self.thr = thr
        self.tracks = []
        self.next_id = 0

    def update(self, dets):
        ids = []
        for d in dets:
            best, best_j = self.thr, -1
            for j, t in enumerate(self.tracks):
                o = box_iou(d[None], t.box[None])[0, 0]
                if o > best:
                    best, best_j = o, j
            if best_j >= 0:
                self.tracks[best_j].box = d
                ids.append(self.tracks[best_j].id)
            else:
                self.tracks.append(Track(d, self.next_id))
                ids.append(self.next_id)
                self.next_id += 1
        return ids


def isotonic(y):
    vals, wts = [], []
    for v in y:
        vals.append(v)
        wts.append(1)
        while len(vals) > 1 and vals[-2] > vals[-1]:
            v2, w2 = vals.pop(), wts.pop()
            v1, w1 = vals.pop(), wts.pop()
            vals.append((v1 * w1 + v2 * w2) / (w1 + w2))
            wts.append(w1 + w2)
    out = []
    for v, w in zip(vals, wts):
        out.append(v.repeat(w))
    return torch.cat(out)


def dbscan(x):
    eps, min_pts = 0.8, 3
    n = x.shape[0]
    d = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") < eps
    labels = torch.full((n,), -2)
    c = -1
    for i in range(n):
        if labels[i] != -2:
            continue
        nb = d[i].nonzero().flatten().tolist()
        if len(nb) < min_pts:
            labels[i] = -1
            continue
        c += 1
        labels[i] = c
        queue = nb
        while queue:
            j = queue.pop()
            if labels[j] == -1:
                labels[j] = c
            if labels[j] != -2:
                continue
            labels[j] = c
            nj = d[j].nonzero().flatten().tolist()
            if len(nj) >= min_pts:
                queue.extend(nj)
    return labels, c + 1


def median_filter_window(x):
    win = deque(maxlen=3)
    out = []
    for v in x:
        win.append(v)
        out.append(torch.stack(list(win)).median())
    return torch.stack(out)


def bpe_merge(ids, merges):
    for a, b, new in merges:
        i = 0
        out = []
        while i < len(ids):
            if i + 1 < len(ids) and ids[i] == a and ids[i + 1] == b:
                out.append(new)
                i += 2
            else:
                out.append(ids[i])
                i += 1
        ids = torch.stack(out)
    return ids


def track_two_frames(a, b):
    tracker = Tracker()
    first = tracker.update(a)
    second = tracker.update(b)
    return torch.tensor(first), torch.tensor(second), tracker.next_id


def boxes(count, seed=0):
    corner = uniform(count, 2, seed=seed) * 10
    return torch.cat([corner, corner + uniform(count, 2, seed=seed + 9) * 5 + 1], 1)


def edges(*pairs):
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)


def above(count, seed=0):
    return torch.triu((uniform(count, count, seed=seed) < 0.5).long(), 1)


CASES = {
    "sample_with_stop_lists": Case(
        seeded(Sampler),
        (T([1, 5, 3]), uniform(12)),
        ((T([4]), uniform(12, seed=1)), (T([4, 4, 2, 1, 0]), uniform(12, seed=2))),
        ({0: "tokens"}, {}),
    ),
    "beam_search_with_finished_list": Case(
        seeded(BeamSearch),
        (normal(1, 12),),
        ((normal(1, 12, seed=1) * 4,), (normal(1, 12, seed=2) * 8,), (normal(1, 12, seed=7) * 3,)),
    ),
    "transducer_greedy": Case(
        seeded(Transducer),
        (normal(4, 4),),
        ((normal(1, 4, seed=1),), (normal(7, 4, seed=2) * 3,)),
        ({0: "frames"},),
    ),
    "union_find_in_a_list": Case(
        lambda: union_find_list,
        (edges((0, 1), (1, 2), (3, 4)),),
        ((edges((0, 1)),), (edges((0, 1), (2, 3), (1, 2), (4, 5), (5, 0)),), (edges(),)),
        ({0: "edges"},),
    ),
    "topological_sort": Case(
        lambda: topo_sort,
        (above(5),),
        ((above(1),), (above(8, 3),), (T([[0, 1], [1, 0]]),)),
        ({0: "n", 1: "n"},),
    ),
    "quicksort_with_a_stack": Case(
        lambda: quicksort_iter,
        (T([3, 1, 4, 1, 5, 9, 2, 6]),),
        ((T([2]),), (T([5, 4, 3]),), (integers(50, 20, seed=1),)),
        ({0: "n"},),
    ),
    "longest_increasing_subsequence": Case(
        lambda: lis_bisect,
        (T([3, 1, 4, 1, 5, 9, 2, 6]),),
        ((T([2]),), (T([5, 4, 3]),), (integers(50, 20, seed=1),)),
        ({0: "n"},),
    ),
    "lbfgs_two_loop": Case(
        lambda: lbfgs,
        (normal(4), normal(4, 4)),
        ((normal(4, seed=1) * 3, normal(4, 4, seed=2)),),
        atol=1e-3,
    ),
    "hungarian_matching": Case(
        lambda: hungarian,
        (uniform(3, 3),),
        ((uniform(3, 3, seed=5),), (uniform(4, 4, seed=1),), (uniform(1, 1),)),
        ({0: "n", 1: "n"},),
    ),
    "weighted_box_fusion": Case(
        lambda: weighted_box_fusion,
        (boxes(6), uniform(6)),
        ((boxes(1), uniform(1)), (boxes(10, 3), uniform(10, seed=1))),
        ({0: "n"}, {0: "n"}),
    ),
    "tracking_two_frames": Case(
        lambda: track_two_frames,
        (boxes(3), boxes(3) + 0.2),
        ((boxes(2, 4), boxes(1, 5)), (boxes(6, 4), boxes(5, 4) + 0.1)),
        ({0: "first"}, {0: "second"}),
    ),
    "isotonic_regression": Case(
        lambda: isotonic,
        (normal(10),),
        ((normal(1),), (normal(25, seed=1),)),
        ({0: "n"},),
    ),
    "dbscan_with_seeds": Case(
        lambda: dbscan,
        (normal(12, 2),),
        ((normal(1, 2),), (normal(20, 2, seed=4),)),
        ({0: "n"},),
    ),
    "median_of_a_window": Case(
        lambda: median_filter_window,
        (normal(8),),
        ((normal(1),), (normal(20, seed=1),)),
        ({0: "n"},),
    ),
    "byte_pair_merges": Case(
        lambda: bpe_merge,
        (T([104, 105, 105, 105, 105, 120]), T([[105, 105, 256], [256, 256, 257]])),
        ((T([1]), T([[105, 105, 256]])), (T([1, 2, 1, 2, 3]), T([[1, 2, 300], [300, 3, 301]]))),
        ({0: "n"}, {0: "merges"}),
    ),
}
