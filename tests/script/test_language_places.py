"""Objects at run-time positions, changed in place: eager code and ONNX Runtime agree on all ways."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

import torch

from tests.script.language import Programs

program = Programs()


@dataclasses.dataclass
class Tr:
    h: torch.Tensor
    age: int = 0


def add(out, v):
    out.append(v)


def add_if(out, v):
    if v > 0:
        out.append(v)


@program
def list_box_idx(x):
    bs = [0.0, 0.0]
    rows = [[0.0, 0.0], [0.0, 0.0]]
    for v in x:
        i = int(v > 0)
        rows[i][0] = rows[i][0] + v.item()
        rows[i][1] += 1
    return rows[0][0], rows[1][0], rows[1][1]


@program
def tracks_mut(x):
    ts = []
    for v in x:
        ts.append(Tr(v))
    for t in ts:
        t.age += 1
        if t.h > 0:
            t.h = t.h * 2
    return sum(t.h for t in ts), sum(t.age for t in ts)


@program
def defaultdict_(x):
    d = defaultdict(list, pos=[], neg=[])
    for a in x:
        d["pos" if a > 0 else "neg"].append(a)
    return len(d["pos"]), len(d["neg"])


@program
def nested_lists_state(x):
    rows = [[] for _ in range(3)]
    for i, a in enumerate(x):
        rows[i % 3].append(a)
    return [len(r) for r in rows]


@program
def nested_lists_state2(x):
    rows = [[], [], []]
    for a in x:
        k = 0 if a > 1 else 1 if a > -1 else 2
        rows[k].append(a)
    return len(rows[0]), len(rows[1]), len(rows[2]), sum(rows[0], torch.zeros(()))


@program
def closure_counter(x):
    hits = {"n": 0}

    def note(a):
        hits["n"] += 1
        return a * 2

    y = [note(a) if a > 0 else a for a in x]
    return torch.stack(y), hits["n"]


@program
def part2(x):
    a = x.clone()
    i = 0
    for j in range(a.shape[0]):
        if a[j] < 4:
            t = a[i].clone()
            a[i] = a[j]
            a[j] = t
            i += 1
    return a


@program
def part3(x):
    a = x.clone()
    for j in range(a.shape[0]):
        t = a[0].clone()
        a[0] = a[j]
        a[j] = t
    return a


@program
def list_arg(x):
    out = []
    for v in x:
        if v > 0:
            add(out, v)
    return len(out)


@program
def list_arg2(x):
    out = []
    for v in x:
        add_if(out, v)
    return len(out), sum(out, torch.zeros(()))


test_one_way, test_every_way = program.tests()
