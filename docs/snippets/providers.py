"""Providers as a contract."""

import torch

import bridge

# --8<-- [start:contract]
program = bridge.export(torch.nn.Linear(8, 8).eval(), torch.ones(2, 8))
session = bridge.load(program, providers="cpu")
session.require_placement(cpu=1.0, copies_in_loops=0)
print(session.placement.share("cpu"), "of the nodes on the CPU")
# --8<-- [end:contract]

# --8<-- [start:absent]
try:
    bridge.load(program, providers="coreml,cpu")
except bridge.ProviderError as error:
    print(error.hint)
# --8<-- [end:absent]

# --8<-- [start:fastest]
session = bridge.load(program, providers="fastest")
print("measured:", ", ".join(session.measured))
# --8<-- [end:fastest]

# --8<-- [start:deployment]
from pathlib import Path

Path("bridge.toml").write_text("""
[deployments.edge]
providers = "cpu"
threads = 2
optimization = "extended"
cache = "graphs"
require = { cpu = 1.0 }
""")
session = bridge.load(program, deployment="edge")
print(session.settings.threads, "threads,", len(list(Path("graphs").iterdir())), "graph kept")
# --8<-- [end:deployment]
