"""Dicts of which only run time knows whether they have a key."""

from __future__ import annotations

import torch

from tests.script.language import Programs

program = Programs()


def masked(x, mask=None):
    if mask is None:
        return x * 2
    return torch.where(mask, x, torch.zeros_like(x))


def scaled(x, scale=3.0, shift=0.5):
    return x * scale + shift


def keyed(x, **kw):
    if "scale" in kw:
        x = x * kw["scale"]
    return x + kw.get("shift", 1.0)


def from_options(x, opts):
    return x * opts["scale"] if "scale" in opts else x - 1


@program
def given_or_the_default(x):
    kwargs = {}
    if x.sum() > 0:
        kwargs["mask"] = x > 0
    return masked(x, **kwargs)


@program
def given_or_another_default(x):
    kwargs = {"shift": 2.0}
    if x.sum() > 0:
        kwargs["scale"] = x.mean().item()
    return scaled(x, **kwargs)


@program
def star_star_keywords(x):
    kwargs = {}
    if x.sum() > 0:
        kwargs["scale"] = x.mean()
    if x[0] > 2:
        kwargs["shift"] = x.max()
    return keyed(x, **kwargs)


@program
def asked_in_another_function(x):
    opts = {}
    if x.sum() > 0:
        opts["scale"] = x.mean()
    return from_options(x, opts)


@program
def get_with_default(x):
    kw = {}
    if x.sum() > 0:
        kw["s"] = x * 2
    return kw.get("s", x)


@program
def asked_by_in(x):
    kw = {}
    if x.sum() > 0:
        kw["s"] = x * 2
    if "s" in kw:
        return kw["s"]
    return x


@program
def asked_by_not_in(x):
    kw = {}
    if x.sum() > 0:
        kw["s"] = x * 2
    if "s" not in kw:
        kw["s"] = x - 1
    return kw["s"]


@program
def counted(x):
    kw = {}
    if x.sum() > 0:
        kw["s"] = x * 2
    return x * len(kw)


@program
def asked_for_its_truth(x):
    kw = {}
    if x.sum() > 0:
        kw["s"] = x * 2
    return kw["s"] if kw else x


@program
def setdefault(x):
    kw = {}
    if x.sum() > 0:
        kw["s"] = x * 2
    kw.setdefault("s", x)
    return kw["s"]


@program
def popped(x):
    kw = {}
    if x.sum() > 0:
        kw["s"] = x * 2
    r = kw.pop("s", None)
    return x if r is None else r


@program
def given_to_a_library(x):
    options = {"eps": 1e-05}
    if x.sum() > 0:
        options["weight"] = x
    return torch.nn.functional.layer_norm(x, x.shape, **options)


@program
def in_two_branches(x):
    d = {}
    if x.sum() > 0:
        if x[0] > 2:
            d["a"] = x * 2
    return d.get("a", x)


@program
def one_key_on_each_way(x):
    d = {}
    if x.sum() > 0:
        d["a"] = x * 2
    else:
        d["b"] = x * 3
    return d.get("a", x) + d.get("b", x * 0.5)


@program
def largest_of_a_loop(x):
    best = {}
    for v in x:
        if "v" not in best or v > best["v"]:
            best["v"] = v
    return best["v"]


@program
def set_again(x):
    d = {}
    if x.sum() > 0:
        d["a"] = x * 2
    d["a"] = x
    return d["a"] * len(d)


@program
def copied(x):
    d = {"z": x}
    if x.sum() > 0:
        d["a"] = x * 2
    e = dict(d)
    e2 = {**d, "q": x}
    return e.get("a", x) + e2.get("a", x * 0) * len(e2)


@program
def deleted(x):
    d = {"a": x}
    if x.sum() > 0:
        del d["a"]
    return d.get("a", x * 5)


@program
def set_in_a_loop(x):
    d = {}
    for v in x:
        if v > 2:
            d["k"] = v
    return d["k"] if "k" in d else x.sum()


@program
def set_in_each_iteration(x):
    d = {}
    for v in x:
        d["k"] = v * 2
        d["n"] = d.get("n", 0) + 1
    return d["k"] * d["n"]


@program
def differences(x):
    st = {}
    out = []
    for v in x:
        prev = st.get("prev")
        out.append(v if prev is None else v - prev)
        st["prev"] = v
    return torch.stack(out)


@program
def first_item_kept(x):
    d = {"n": 0}
    for v in x.tolist():
        if "first" not in d:
            d["first"] = v
        if v > d["first"]:
            d["n"] += 1
    return torch.tensor(d["first"]) + d["n"]


@program
def asked_in_a_loop_in_a_loop(x):
    d = {}
    for v in x:
        for w in x:
            if "most" not in d or v + w > d["most"]:
                d["most"] = v + w
    return d["most"]


test_one_way, test_every_way = program.tests()
