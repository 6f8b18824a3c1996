"""Fuzzing of model loading: whatever a file holds, loading it ends well or with a bridge error.

Run by hand with ``python -m tests.bridge.fuzz_loading --seconds 600``. Mutants of small sound
models are loaded and run in a worker process; a worker that dies or hangs is a finding, as is any
exception but :class:`bridge.BridgeError`. Findings are written to ``tests/bridge/corpus``, which the
default suite replays.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import multiprocessing
import random
import resource
import sys
import time
from pathlib import Path

import onnx

import bridge
from bridge.files import parse_model
from bridge.graph_index import GraphIndex
from bridge.parity.inputs import generate
from tests.bridge.graphs import FIXED_SEEDS

CORPUS = Path(__file__).parent / "corpus"
HANG = 20.0  # seconds for one mutant
MEMORY = 4 * 2**30  # bytes a worker may have: a mutant that asks for more is refused by malloc


def load(data: bytes) -> str:
    """Load, read, run; what happened. Raises what must not be raised."""
    try:
        model = parse_model(data)
        GraphIndex(model)
        with contextlib.suppress(bridge.BridgeError):
            bridge.Session(model, threads=1)
        session = bridge.Session(data, threads=1)
        session.run(generate(session.inputs), timeout=5)
    except bridge.BridgeError as error:
        return type(error).__name__
    return "ok"


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A model that is a little wrong somewhere."""
    if rng.random() < 0.5:
        with contextlib.suppress(Exception):
            return mutate_message(data, rng)
    mutant = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if not mutant:
            break
        at = rng.randrange(len(mutant))
        kind = rng.randrange(7)
        if kind == 0:
            mutant[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            mutant[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif kind == 2:
            del mutant[at : at + rng.randrange(1, 9)]
        elif kind == 3:
            mutant[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9)))
        elif kind == 4:
            other = rng.randrange(len(mutant))
            mutant[at:at] = mutant[other : other + rng.randrange(1, 64)]
        elif kind == 5:
            del mutant[at:]
        else:
            mutant[at:at] = b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f"
    return bytes(mutant)


NUMBERS = (0, 1, -1, 2, 7, 255, 2**31 - 1, 2**31, -(2**31), 2**62, 2**63 - 1, -(2**63))


def mutate_message(data: bytes, rng: random.Random) -> bytes:
    """A model whose messages are sound, and say something odd."""
    proto = onnx.ModelProto()
    proto.ParseFromString(data)
    message: object = proto
    for _ in range(rng.randrange(1, 9)):
        fields = [f for f, _ in message.ListFields() if f.message_type is not None]
        if not fields:
            break
        field = rng.choice(fields)
        value = getattr(message, field.name)
        message = rng.choice(value) if hasattr(value, "append") or hasattr(value, "add") else value
    fields = [f for f, _ in message.ListFields()]
    field = rng.choice(fields)
    value = getattr(message, field.name)
    if hasattr(value, "add") or hasattr(value, "append"):
        kind = rng.randrange(3)
        if kind == 0 and len(value):
            del value[rng.randrange(len(value))]
        elif kind == 1 and len(value):
            value.extend([value[rng.randrange(len(value))]])
        elif isinstance(value[0], int):
            value[rng.randrange(len(value))] = rng.choice(NUMBERS)
        elif isinstance(value[0], str):
            value[rng.randrange(len(value))] = rng.choice(("", "x", "y", "é", "a" * 300, "a\0b"))
        elif isinstance(value[0], float):
            value[rng.randrange(len(value))] = rng.choice((0.0, -1.0, 1e38, float("nan")))
    elif isinstance(value, bool | int):
        setattr(message, field.name, rng.choice(NUMBERS))
    elif isinstance(value, float):
        setattr(message, field.name, rng.choice((0.0, -1.0, 1e38, float("inf"), float("nan"))))
    elif isinstance(value, str):
        names = (
            "",
            "x",
            "y",
            "Loop",
            "If",
            "Reshape",
            "Identity",
            "Constant",
            "f",
            "test",
            "body",
        )
        setattr(message, field.name, rng.choice(names))
    elif isinstance(value, bytes):
        setattr(message, field.name, value[: rng.randrange(len(value) + 1)] * rng.randrange(3))
    else:
        message.ClearField(field.name)
    return proto.SerializeToString()


def work(connection) -> None:
    """Load what comes through a pipe; say what happened."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    while True:
        data = connection.recv_bytes()
        try:
            connection.send(load(data))
        except BaseException as error:
            connection.send(f"!{type(error).__name__}: {error}")


class Worker:
    """A process that may die."""

    def __init__(self) -> None:
        self.connection, other = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self.process = context.Process(target=work, args=(other,), daemon=True)
        self.process.start()
        other.close()

    def load(self, data: bytes) -> str:
        """What loading came to; starts with ``!`` if it must not."""
        try:
            self.connection.send_bytes(data)
            if not self.connection.poll(HANG + 60):
                return "!hang"
            return self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join(5)
            return f"!died with {self.process.exitcode}"

    def stop(self) -> None:
        self.process.kill()
        self.process.join()


def seeds() -> list[bytes]:
    """Sound models to start from."""
    return [*FIXED_SEEDS, *(p.read_bytes() for p in sorted(CORPUS.glob("*.model")))]


def fuzz(seconds: float, seed: int) -> dict[str, int]:
    """Mutate and load for a while; how often each thing happened."""
    rng = random.Random(seed)
    pool = seeds()
    counts: dict[str, int] = {}
    worker = Worker()
    stop = time.monotonic() + seconds
    while time.monotonic() < stop:
        data = rng.choice(pool)
        for _ in range(rng.choice((1, 1, 2, 3))):
            data = mutate(data, rng)
        outcome = worker.load(data)
        counts[outcome] = counts.get(outcome, 0) + 1
        if outcome.startswith("!"):
            name = f"found-{hashlib.sha256(data).hexdigest()[:12]}.model"
            (CORPUS / name).write_bytes(data)
            print(name, outcome[:300], file=sys.stderr, flush=True)
            worker.stop()
            worker = Worker()
        elif outcome == "ok" and len(pool) < 400 and rng.random() < 0.05:
            pool.append(data)
    worker.stop()
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    CORPUS.mkdir(exist_ok=True)
    print(fuzz(options.seconds, options.seed))
