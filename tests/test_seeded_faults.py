"""That the faults of seeded_faults.py can still be made; whether tests notice them, it says."""

from __future__ import annotations

import seeded_faults

FAULTS = [fault for faults in seeded_faults.FAULTS.values() for fault in faults]


def test_every_fault_has_its_place():
    """One that has lost its place protects nothing: mend its text, where the code has moved on."""
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 40
    for fault in FAULTS:
        place = seeded_faults.place_of(fault)  # ValueError: it has none
        compile(place.content, str(place.file), "exec")
