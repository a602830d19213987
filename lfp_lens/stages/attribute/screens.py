"""The screen of a subject's features on its units."""

from collections.abc import Mapping, Sequence
from typing import Any

from lfp_lens.parts.activations import Batch
from lfp_lens.parts.screening import Screen, screen
from lfp_lens.stages.attribute.reading import Reading
from lfp_lens.stages.attribute.subject import Subject, base_log_p


def screened(
    subject: Subject,
    reading: Reading,
    data: Sequence[Batch],
    *,
    steps: int = 1,
    already: Mapping[str, Any] | None = None,
) -> Screen:
    """Screen every feature on these batches; `already` are edits that are in place meanwhile. Effects are per real token."""
    log_p = None if subject.log_p_base is None else [base_log_p(subject.log_p_base, batch) for batch in data]
    return screen(
        subject.model, subject.dictionaries, data, subject.scalar.measure, values_V=subject.values_V, base=subject.base,
        begin=subject.begin, base_log_p=log_p, signs=reading.sign_T if reading.is_pairs else None, steps=steps,
        already=already,
    )  # fmt: skip
