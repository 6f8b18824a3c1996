"""Decoders: greedy, with beams, with caches, speculative; until every row has ended."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from tests.script.programs.case import Case, integers, normal, seeded

BOS, EOS, VOCABULARY = 1, 2, 40


def biased(layer: nn.Linear, amount: float) -> nn.Linear:
    """Lets random weights end their sentences, rows at different times."""
    with torch.no_grad():
        layer.bias[EOS] += amount
    return layer


class LSTMGreedy(nn.Module):
    """An image captioner's decoder."""

    def __init__(self, hidden: int = 64, max_steps: int = 30) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, hidden)
        self.cell = nn.LSTMCell(hidden, hidden)
        self.out = biased(nn.Linear(hidden, VOCABULARY), 0.25)
        self.max_steps = max_steps

    def forward(self, features):
        batch = features.shape[0]
        h, c = features, torch.zeros_like(features)
        token = torch.full((batch,), BOS, dtype=torch.long)
        done = torch.zeros(batch, dtype=torch.bool)
        tokens = []
        for _ in range(self.max_steps):
            h, c = self.cell(self.embed(token), (h, c))
            token = self.out(h).argmax(dim=-1)
            token = torch.where(done, torch.full_like(token, 0), token)
            tokens.append(token)
            done = done | (token == EOS)
            if done.all():
                break
        return torch.stack(tokens, dim=1)


class LSTMBeam(nn.Module):
    """Beam search over one LSTM, the beams of all sentences in one batch."""

    def __init__(self, hidden: int = 48, beams: int = 4, max_steps: int = 20) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, hidden)
        self.lstm = nn.LSTM(hidden, hidden, num_layers=2, batch_first=True)
        self.out = biased(nn.Linear(hidden, VOCABULARY), 0.5)
        self.beams = beams
        self.max_steps = max_steps

    def forward(self, features):
        batch = features.shape[0]
        k = self.beams
        h = features.repeat_interleave(k, dim=0).unsqueeze(0).repeat(2, 1, 1)
        c = torch.zeros_like(h)
        sequences = torch.full((batch, k, 1), BOS, dtype=torch.long)
        scores = torch.full((batch, k), -1e9)
        scores[:, 0] = 0.0
        finished = torch.zeros(batch, k, dtype=torch.bool)
        step = 0
        while step < self.max_steps and not finished.all():
            last = sequences[:, :, -1].reshape(batch * k, 1)
            y, (h, c) = self.lstm(self.embed(last), (h, c))
            log_probs = F.log_softmax(self.out(y[:, -1]), dim=-1).view(batch, k, -1)
            frozen = torch.full_like(log_probs, float("-inf"))
            frozen[:, :, EOS] = 0.0
            log_probs = torch.where(finished.unsqueeze(-1), frozen, log_probs)
            total = (scores.unsqueeze(-1) + log_probs).view(batch, -1)
            scores, index = total.topk(k, dim=-1)
            beam, token = index // VOCABULARY, index % VOCABULARY
            sequences = torch.cat(
                [
                    sequences.gather(1, beam.unsqueeze(-1).expand(-1, -1, sequences.shape[-1])),
                    token.unsqueeze(-1),
                ],
                dim=-1,
            )
            finished = finished.gather(1, beam) | (token == EOS)
            flat = (beam + torch.arange(batch).unsqueeze(1) * k).view(-1)
            h, c = h[:, flat], c[:, flat]
            step += 1
        best = scores.argmax(dim=1)
        return sequences[torch.arange(batch), best], scores.max(dim=1).values


class Block(nn.Module):
    """A pre-norm decoder layer that keeps its keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x, past=None):
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        q, k, v = (
            t.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for t in (q, k, v)
        )
        if past is not None:
            k = torch.cat([past[0], k], dim=2)
            v = torch.cat([past[1], v], dim=2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=past is None)
        x = x + self.proj(y.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.norm2(x)), (k, v)


class TinyGPT(nn.Module):
    """A small language model."""

    def __init__(
        self, width: int = 64, heads: int = 4, layers: int = 2, context: int = 128
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = biased(nn.Linear(width, VOCABULARY), 0.6)

    def forward(self, ids, caches=None):
        start = 0 if caches is None else caches[0][0].shape[2]
        positions = torch.arange(start, start + ids.shape[1])
        x = self.tokens(ids) + self.positions(positions)
        new = []
        for i, block in enumerate(self.blocks):
            x, cache = block(x, None if caches is None else caches[i])
            new.append(cache)
        return self.head(self.norm(x)), new


class GPTGreedy(nn.Module):
    """Greedy decoding with key-value caches: a list of pairs, as model code keeps them."""

    def __init__(self, max_new: int = 24) -> None:
        super().__init__()
        self.model = TinyGPT()
        self.max_new = max_new

    def forward(self, ids):
        logits, caches = self.model(ids)
        unfinished = torch.ones(ids.shape[0], dtype=torch.long)
        for _ in range(self.max_new):
            token = logits[:, -1].argmax(-1)
            token = token * unfinished  # pad with 0
            ids = torch.cat([ids, token[:, None]], dim=1)
            unfinished = unfinished * (token != EOS).long()
            if unfinished.max() == 0:
                break
            logits, caches = self.model(token[:, None], caches)
        return ids


class GPTBeam(nn.Module):
    """Beam search with key-value caches that are reordered at every step."""

    def __init__(self, beams: int = 3, max_new: int = 12) -> None:
        super().__init__()
        self.model = TinyGPT()
        self.beams = beams
        self.max_new = max_new

    def forward(self, ids):
        batch, k = ids.shape[0], self.beams
        ids = ids.repeat_interleave(k, dim=0)
        scores = torch.zeros(batch, k)
        scores[:, 1:] = -1e9
        done = torch.zeros(batch * k, dtype=torch.bool)
        logits, caches = self.model(ids)
        for _ in range(self.max_new):
            log_probs = logits[:, -1].log_softmax(-1)
            log_probs[done] = -1e9
            log_probs[done, EOS] = 0.0
            total = (scores.view(-1, 1) + log_probs).view(batch, -1)
            scores, index = total.topk(k, dim=1)
            rows = (index // VOCABULARY + k * torch.arange(batch)[:, None]).flatten()
            token = (index % VOCABULARY).flatten()
            ids = torch.cat([ids[rows], token[:, None]], dim=1)
            done = done[rows] | (token == EOS)
            if torch.all(done):
                break
            caches = [(key[rows], value[rows]) for key, value in caches]
            logits, caches = self.model(token[:, None], caches)
        best = scores.argmax(1) + k * torch.arange(batch)
        return ids[best], scores.max(1)[0]


class Speculative(nn.Module):
    """A draft model guesses ahead, the target keeps what it agrees with."""

    def __init__(self, ahead: int = 4, length: int = 28) -> None:
        super().__init__()
        self.draft = TinyGPT(width=32, heads=2, layers=1)
        self.target = TinyGPT()
        self.ahead = ahead
        self.length = length

    def forward(self, ids):
        rounds = 0
        while ids.shape[1] < self.length:
            guess = ids
            for _ in range(self.ahead):
                logits, _ = self.draft(guess)
                guess = torch.cat([guess, logits[:, -1:].argmax(-1)], dim=1)
            logits, _ = self.target(guess)
            start = ids.shape[1]
            wanted = logits[0, start - 1 :].argmax(-1)
            accepted = 0
            while accepted < self.ahead and guess[0, start + accepted] == wanted[accepted]:
                accepted += 1
            ids = torch.cat([guess[:, : start + accepted], wanted[accepted].view(1, 1)], dim=1)
            rounds += 1
            if (ids[0, start:] == EOS).any():
                break
        return ids, rounds


def ctc_greedy(log_probs):
    """Collapse repeats, drop blanks; one row after the other, padded to the longest."""
    best = log_probs.argmax(-1)
    batch, steps = best.shape
    result = torch.zeros(batch, steps, dtype=torch.long)
    lengths = torch.zeros(batch, dtype=torch.long)
    for b in range(batch):
        previous = 0
        n = 0
        for t in range(steps):
            token = best[b, t].item()
            if token != previous and token != 0:
                result[b, n] = token
                n += 1
            previous = token
        lengths[b] = n
    return result, lengths


def ctc_collapse(log_probs):
    """The same for one utterance, with a list."""
    decoded = []
    previous = -1
    for frame in log_probs:
        token = int(frame.argmax())
        if token != 0 and token != previous:
            decoded.append(token)
        previous = token
    return torch.tensor(decoded, dtype=torch.long)


class Transducer(nn.Module):
    """Greedy RNN-T: at each frame emit symbols until a blank, at most three."""

    def __init__(self, hidden: int = 48) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, hidden)
        self.predict = nn.GRUCell(hidden, hidden)
        self.enc = nn.Linear(20, hidden)
        self.joint = nn.Sequential(nn.Tanh(), nn.Linear(hidden, VOCABULARY))
        with torch.no_grad():
            self.joint[1].bias[0] += 0.3

    def forward(self, frames):
        encoded = self.enc(frames)
        state = self.predict(self.embed(torch.zeros(1, dtype=torch.long)))
        hypothesis = []
        for t in range(encoded.shape[0]):
            symbols = 0
            while symbols < 3:
                token = self.joint(encoded[t : t + 1] + state).argmax(-1)
                if token == 0:
                    break
                hypothesis.append(token)
                state = self.predict(self.embed(token), state)
                symbols += 1
        if len(hypothesis) == 0:
            return torch.zeros(0, dtype=torch.long)
        return torch.cat(hypothesis)


class AttentionTranslator(nn.Module):
    """Bahdanau's encoder and decoder."""

    def __init__(self, hidden: int = 48, max_steps: int = 20) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, hidden)
        self.encoder = nn.GRU(hidden, hidden, bidirectional=True, batch_first=True)
        self.bridge = nn.Linear(2 * hidden, hidden)
        self.score = nn.Linear(3 * hidden, hidden)
        self.v = nn.Linear(hidden, 1, bias=False)
        self.decoder = nn.GRUCell(3 * hidden, hidden)
        self.out = biased(nn.Linear(hidden, VOCABULARY), 0.3)
        self.max_steps = max_steps

    def forward(self, source):
        memory, last = self.encoder(self.embed(source))
        h = torch.tanh(self.bridge(torch.cat([last[0], last[1]], dim=-1)))
        mask = source == 0
        token = source.new_full((source.size(0),), BOS)
        ended = torch.zeros_like(token, dtype=torch.bool)
        tokens, maps = [], []
        while len(tokens) < self.max_steps:
            query = h.unsqueeze(1).expand(-1, memory.size(1), -1)
            energy = self.v(torch.tanh(self.score(torch.cat([query, memory], -1)))).squeeze(-1)
            weights = energy.masked_fill(mask, -math.inf).softmax(-1)
            context = (weights.unsqueeze(1) @ memory).squeeze(1)
            h = self.decoder(torch.cat([self.embed(token), context], -1), h)
            token = self.out(h).argmax(-1).masked_fill(ended, 0)
            tokens.append(token)
            maps.append(weights)
            ended |= token.eq(EOS)
            if ended.all():
                break
        return torch.stack(tokens, 1), torch.stack(maps, 1)


def viterbi(emissions, transitions, start, end):
    """The best path of a linear-chain CRF."""
    score = start + emissions[0]
    history = []
    for t in range(1, emissions.shape[0]):
        total = score.unsqueeze(1) + transitions + emissions[t].unsqueeze(0)
        score, index = total.max(dim=0)
        history.append(index)
    score = score + end
    best = int(score.argmax())
    path = [best]
    for index in reversed(history):
        best = int(index[best])
        path.append(best)
    path.reverse()
    return torch.tensor(path), score.max()


def viterbi_batch(emissions, transitions, lengths):
    """The same over a batch with lengths, as CRF layers do it."""
    batch, steps, _ = emissions.shape
    mask = torch.arange(steps).unsqueeze(0) < lengths.unsqueeze(1)
    score = emissions[:, 0]
    history = []
    for t in range(1, steps):
        candidates = score.unsqueeze(2) + transitions
        best, index = candidates.max(dim=1)
        score = torch.where(mask[:, t].unsqueeze(1), best + emissions[:, t], score)
        history.append(index)
    paths = torch.full((batch, steps), -1, dtype=torch.long)
    for b in range(batch):
        last = int(lengths[b]) - 1
        tag = score[b].argmax()
        paths[b, last] = tag
        for t in range(last - 1, -1, -1):
            tag = history[t][b, tag]
            paths[b, t] = tag
    return paths, score.max(1).values


def _lengths(*n):
    return torch.tensor(n)


def _prompt(*shape, seed=0):
    return 3 + integers(VOCABULARY - 3, *shape, seed=seed)


CASES = {
    "lstm_greedy": Case(
        seeded(LSTMGreedy),
        (normal(3, 64),),
        ((normal(1, 64, seed=1),), (normal(7, 64, seed=2) * 3,), (normal(2, 64, seed=3) * 9,)),
        ({0: "batch"},),
        (normal(16, 64, seed=4) * 3,),  # 11 tokens
    ),
    "lstm_beam": Case(
        seeded(LSTMBeam),
        (normal(2, 48),),
        ((normal(1, 48, seed=1),), (normal(5, 48, seed=2) * 3,)),
        ({0: "batch"},),
        (normal(4, 48, seed=4),),
    ),
    "gpt_greedy": Case(
        seeded(GPTGreedy),
        (_prompt(2, 5),),
        ((_prompt(1, 3, seed=1),), (_prompt(4, 9, seed=2),), (_prompt(3, 1, seed=3),)),
        ({0: "batch", 1: "length"},),
        (_prompt(8, 16, seed=4),),  # 20 tokens,
    ),
    "gpt_beam": Case(
        seeded(GPTBeam),
        (_prompt(2, 5),),
        ((_prompt(1, 3, seed=1),), (_prompt(4, 9, seed=2),), (_prompt(3, 1, seed=3),)),
        ({0: "batch", 1: "length"},),
        (_prompt(4, 16, seed=4),),
    ),
    "speculative": Case(
        seeded(Speculative),
        (_prompt(1, 5),),
        ((_prompt(1, 3, seed=1),), (_prompt(1, 12, seed=2),), (_prompt(1, 30, seed=3),)),
        ({1: "length"},),
        (_prompt(1, 8, seed=4),),
    ),
    "ctc_greedy": Case(
        lambda: ctc_greedy,
        (normal(2, 9, 5),),
        ((normal(1, 1, 5, seed=1),), (normal(3, 20, 5, seed=2),)),
        ({0: "batch", 1: "steps"},),
        (normal(4, 100, 5, seed=4),),
    ),
    "ctc_collapse": Case(
        lambda: ctc_collapse,
        (normal(9, 5),),
        ((normal(1, 5, seed=1),), (normal(20, 5, seed=2),), (torch.eye(5)[[0, 0, 0]],)),
        ({0: "steps"},),
        (normal(200, 5, seed=4),),
    ),
    "transducer": Case(
        seeded(Transducer),
        (normal(6, 20),),
        ((normal(1, 20, seed=1),), (normal(17, 20, seed=2) * 3,), (normal(4, 20, seed=5) * 0,)),
        ({0: "frames"},),
        (normal(60, 20, seed=4) * 3,),
    ),
    "attention_translator": Case(
        seeded(AttentionTranslator),
        (_prompt(2, 6),),
        ((_prompt(1, 3, seed=1),), (_prompt(5, 11, seed=2),)),
        ({0: "batch", 1: "length"},),
        (_prompt(8, 20, seed=4),),
    ),
    "viterbi": Case(
        lambda: viterbi,
        (normal(6, 5), normal(5, 5, seed=1), normal(5, seed=2), normal(5, seed=3)),
        (
            (normal(2, 5), normal(5, 5, seed=4), normal(5, seed=5), normal(5, seed=6)),
            (normal(19, 5), normal(5, 5, seed=4), normal(5, seed=5), normal(5, seed=6)),
        ),
        ({0: "steps"}, {}, {}, {}),
        (normal(100, 5), normal(5, 5, seed=4), normal(5, seed=5), normal(5, seed=6)),
    ),
    "viterbi_batch": Case(
        lambda: viterbi_batch,
        (normal(3, 6, 5), normal(5, 5, seed=1), _lengths(6, 2, 4)),
        (
            (normal(1, 3, 5), normal(5, 5, seed=4), _lengths(3)),
            (normal(4, 9, 5), normal(5, 5, seed=5), _lengths(9, 1, 5, 7)),
        ),
        ({0: "batch", 1: "steps"}, {}, {0: "batch"}),
        (normal(8, 40, 5), normal(5, 5, seed=5), _lengths(40, 1, 25, 33, 40, 12, 18, 9)),
    ),
}
