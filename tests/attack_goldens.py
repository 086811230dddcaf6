"""What tests/make_attack_goldens.py and the tests of the attacks have in common."""

from __future__ import annotations

from pathlib import Path

FILE = Path(__file__).parent / "goldens" / "attacks.npz"

# A name, and the arguments of `kapps.explain.pgd`; one iteration of the whole budget is FGSM.
ATTACKS = {
    "fgsm": {"eps": 4, "step": 4, "iterations": 1, "norm": "linf", "targeted": False},
    "linf": {"eps": 4, "step": 1, "iterations": 20, "norm": "linf", "targeted": False},
    "linf-targeted": {"eps": 4, "step": 1, "iterations": 5, "norm": "linf", "targeted": True},
    "l2": {"eps": 300, "step": 60, "iterations": 10, "norm": "l2", "targeted": False},
}
KEPT = 1  # images whose change is stored; of all of them whether the attack succeeded
WANTED = 100  # what is added to a label for the wanted class, modulo 1000
L2_UNIT = 1 / 32  # gray levels, of what is stored of the changes of "l2"
EDGE = 64  # pixels: of these changes a corner is stored
