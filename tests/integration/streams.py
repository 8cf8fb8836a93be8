"""What tests compare of the batches that a stream brings."""

import hashlib


def digest(planned) -> tuple[int, str]:
    """Plan index and a hash of all that a worker gets of a batch."""
    batch = planned.batch
    content = hashlib.sha256(batch.images.pixels.contiguous().numpy().tobytes())
    for part in (batch.images.sizes, batch.targets.boxes, batch.targets.labels):
        content.update(part.numpy().tobytes())
    content.update(repr((batch.image_ids, planned.kind, planned.step)).encode())
    return batch.plan_index, content.hexdigest()
