"""Kernels that end the process on empty inputs are kept from them.

ONNX Runtime's recurrent kernels call ``std::terminate`` when the batch has no rows (seen up to
1.32 on the CPU), which no caller can catch. Eager code takes such batches, and so does parity
checking, so a session asks here before it runs on anything empty.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.errors import RunError
from bridge.graph_index import GraphIndex, open_model

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bridge.graph_index import NodeInfo
    from bridge.session import Session

__all__ = ["EmptyBatchGuard"]

_ENDS_THE_PROCESS = ("LSTM", "GRU")


class EmptyBatchGuard:
    """Looks ahead, for runs on inputs of which some are empty.

    Args:
        session: The session that is to run.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._model = open_model(session.source)
        nodes = GraphIndex(self._model).nodes
        self._nodes = [i for i in nodes if i.node.op_type in _ENDS_THE_PROCESS]

    def require_safe(self, feed: Mapping[str, Any]) -> None:
        """See that no recurrent node gets an empty batch.

        Raises:
            RunError: One would.
        """
        for (
            info
        ) in self._nodes:  # in graph order: what comes before one is safe when it is reached
            if self._is_empty(info, feed):
                raise RunError(
                    f"{info} would get an empty batch, on which ONNX Runtime's {info.node.op_type} "
                    "kernel ends the whole process",
                    hint="leave empty batches out before calling the model",
                )

    def _is_empty(self, info: NodeInfo, feed: Mapping[str, Any]) -> bool:
        value = info.node.inputs[0]
        if info.around or value is None:
            return True  # what a body gets is not known before it runs
        name = str(value.name)
        if name in feed:
            return 0 in feed[name].shape
        from bridge.parity.forcing import Probe

        probe = Probe(self._model, self._session.settings_for_parts())
        found = dict(probe.values([name], feed)).get(name)
        return isinstance(found, Exception) or 0 in getattr(found, "shape", (0,))
