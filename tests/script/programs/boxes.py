"""Boxes: suppression and tracking."""

from __future__ import annotations

import torch
from torch import nn

from tests.script.programs.case import Case, seeded, uniform


def iou(a, b):
    """Overlap of boxes [N, 4] with boxes [M, 4]."""
    top_left = torch.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    size = (bottom_right - top_left).clamp(min=0)
    inter = size[..., 0] * size[..., 1]
    area_a = (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1])
    area_b = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    return inter / (area_a[:, None] + area_b[None, :] - inter)


def nms(boxes, scores, threshold):
    """As every repository writes it: keep the best, drop what overlaps, repeat."""
    order = scores.argsort(descending=True)
    keep = []
    while order.numel() > 0:
        i = order[0]
        keep.append(i)
        if order.numel() == 1:
            break
        overlap = iou(boxes[i].unsqueeze(0), boxes[order[1:]])[0]
        order = order[1:][overlap <= threshold]
    if len(keep) == 0:
        return torch.empty(0, dtype=torch.long)
    return torch.stack(keep)


def nms_mask(boxes, scores, threshold):
    """The same with a mask, looping over all boxes."""
    order = scores.argsort(descending=True)
    boxes = boxes[order]
    overlap = iou(boxes, boxes)
    suppressed = torch.zeros(len(boxes), dtype=torch.bool)
    for i in range(len(boxes)):
        if suppressed[i]:
            continue
        suppressed[i + 1 :] |= overlap[i, i + 1 :] > threshold
    return order[~suppressed]


def soft_nms(boxes, scores, sigma):
    """Lowers the scores of what overlaps."""
    scores = scores.clone()
    done = torch.zeros_like(scores, dtype=torch.bool)
    kept = []
    for _ in range(len(scores)):
        candidate = torch.where(done, torch.tensor(-1.0), scores)
        i = candidate.argmax()
        if candidate[i] < 0.05:
            break
        done[i] = True
        kept.append(i)
        weight = torch.exp(-(iou(boxes[i : i + 1], boxes)[0] ** 2) / sigma)
        scores = torch.where(done, scores, scores * weight)
    return torch.stack(kept) if kept else torch.zeros(0, dtype=torch.long), scores


def batched_nms(boxes, scores, labels, threshold):
    """Each class by itself."""
    kept = []
    for c in range(3):
        index = torch.where(labels == c)[0]
        if index.numel() > 0:
            kept.append(index[nms(boxes[index], scores[index], threshold)])
    if not kept:
        return torch.zeros(0, dtype=torch.long)
    return torch.cat(kept)


class Sort(nn.Module):
    """A tracker: predict, match by overlap, update; frames are padded, counts say how far."""

    def __init__(self, slots: int = 8) -> None:
        super().__init__()
        self.slots = slots

    def forward(self, frames, counts):
        tracks = torch.zeros(self.slots, 4)
        velocity = torch.zeros(self.slots, 4)
        age = torch.full((self.slots,), -1)
        identity = torch.zeros(self.slots, dtype=torch.long)
        next_id = 1
        history = []
        for t in range(frames.shape[0]):
            boxes = frames[t, : counts[t]]
            predicted = tracks + velocity
            alive = age >= 0
            age = torch.where(alive, age + 1, age)
            taken = torch.zeros(self.slots, dtype=torch.bool)
            for box in boxes:
                overlap = iou(box.unsqueeze(0), predicted)[0].nan_to_num(0.0)
                overlap = torch.where(alive & ~taken, overlap, torch.zeros(()))
                best = overlap.argmax()
                if overlap[best] > 0.3:
                    velocity[best] = 0.5 * velocity[best] + 0.5 * (box - tracks[best])
                else:
                    free = torch.where(age < 0)[0]
                    if len(free) == 0:
                        continue
                    best = free[0]
                    velocity[best] = 0.0
                    identity[best] = next_id
                    next_id += 1
                tracks[best] = box
                age[best] = 0
                taken[best] = True
            age = torch.where(age > 2, torch.full_like(age, -1), age)
            history.append(torch.where(age == 0, identity, torch.zeros_like(identity)))
        return torch.stack(history), next_id


def _boxes(n, seed=0):
    corner = uniform(n, 2, seed=seed) * 10
    return torch.cat([corner, corner + 1 + uniform(n, 2, seed=seed + 1) * 4], 1), uniform(
        n, seed=seed + 2
    )


def _frames(t, n, seed=0):
    boxes, _ = _boxes(n, seed)
    drift = torch.arange(t).view(-1, 1, 1) * 0.3
    counts = (uniform(t, seed=seed) * (n + 1)).long()
    return boxes + drift, counts


T = torch.tensor

CASES = {
    "nms": Case(
        lambda: nms,
        (*_boxes(8), T(0.4)),
        ((*_boxes(0, 1), T(0.4)), (*_boxes(1, 2), T(0.4)), (*_boxes(30, 3), T(0.1))),
        ({0: "n"}, {0: "n"}, {}),
        (*_boxes(200, 4), T(0.3)),
    ),
    "nms_mask": Case(
        lambda: nms_mask,
        (*_boxes(8), T(0.4)),
        ((*_boxes(0, 1), T(0.4)), (*_boxes(1, 2), T(0.4)), (*_boxes(30, 3), T(0.1))),
        ({0: "n"}, {0: "n"}, {}),
        (*_boxes(100, 4), T(0.3)),
    ),
    "soft_nms": Case(
        lambda: soft_nms,
        (*_boxes(8), T(0.5)),
        (
            (*_boxes(1, 2), T(0.5)),
            (*_boxes(30, 3), T(0.5)),
            (_boxes(3)[0], torch.zeros(3), T(0.5)),
        ),
        ({0: "n"}, {0: "n"}, {}),
        (*_boxes(100, 4), T(0.5)),
    ),
    "batched_nms": Case(
        lambda: batched_nms,
        (*_boxes(9), torch.arange(9) % 3, T(0.4)),
        (
            (*_boxes(0, 1), torch.arange(0), T(0.4)),
            (*_boxes(30, 2), torch.arange(30) % 2, T(0.2)),
        ),
        ({0: "n"}, {0: "n"}, {0: "n"}, {}),
        (*_boxes(100, 4), torch.arange(100) % 3, T(0.3)),
    ),
    "sort": Case(
        seeded(Sort),
        _frames(5, 3),
        (_frames(1, 1, 5), _frames(8, 6, 9), (_frames(3, 4)[0], torch.zeros(3, dtype=torch.long))),
        ({0: "frames", 1: "boxes"}, {0: "frames"}),
        _frames(12, 6, 2),
    ),
}
