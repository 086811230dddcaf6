"""The flags of an attack."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from absl import flags

from kapps._errors import InputError
from kapps.tflite import robustness

if TYPE_CHECKING:
    from kapps.tflite.attacked_split import Attacked

flags.disclaim_key_flags()  # --help lists them with the program that calls `define`


class AttackFlags(NamedTuple):
    """What is attacked by what; nothing without `eps`."""

    eps: flags.FlagHolder
    method: flags.FlagHolder
    model: flags.FlagHolder
    step: flags.FlagHolder
    iterations: flags.FlagHolder
    start: flags.FlagHolder
    restarts: flags.FlagHolder
    images: flags.FlagHolder
    seed: flags.FlagHolder

    def check(self, of_file: bool, of_run: bool, exits: bool) -> None:
        """Refuses flags that do not go together, before anything is loaded.

        Args:
            of_file: whether a .tflite file is evaluated.
            of_run: whether there is the --workdir of a run.
            exits: whether a network ends at its first confident classifier.

        Raises:
            InputError: so it is.
        """
        if self.eps.value is None:
            given = [holder.name for holder in self if holder.value is not None]
            if given:
                raise InputError(f"--{given[0]} belongs to --attack_eps, the budget in gray levels")
            return
        attack = self._attack()
        if exits:
            raise InputError("--attack_eps and --exit_confidence do not go together")
        if self.model.value is not None and not of_file:
            raise InputError(
                "--attack_model belongs to --tflite: a network is attacked by its own gradients"
            )
        if self.model.value is not None and attack.method == "square":
            raise InputError("--attack_model belongs to --attack=pgd: Square needs no gradients")
        if of_file and attack.method == "pgd" and self.model.value is None and not of_run:
            raise InputError(
                "a .tflite file has no gradients to attack it by: give --attack_model=RUN, the run "
                "that it came from, or --attack=square, which needs none"
            )

    @property
    def value(self) -> Attacked | None:
        """TensorFlow is imported only now."""
        if self.eps.value is None:
            return None
        from kapps.tflite.attacked_split import Attacked

        images = self.images.value or Attacked.images
        return Attacked(self._attack(), images, self.model.value)

    def _attack(self) -> robustness.Attack:
        try:
            eps = tuple(int(each) for each in self.eps.value)
        except ValueError as error:
            raise InputError(
                "--attack_eps: expected whole gray levels, such as 1,2,4,8, not "
                f"{','.join(self.eps.value)!r}"
            ) from error
        return robustness.Attack(
            eps,
            self.method.value or "pgd",
            self.step.value,
            self.iterations.value,
            self.start.value != "image",
            self.restarts.value or 1,
            self.seed.value or 0,
        )


def define() -> AttackFlags:
    """To be called once by a program, in place of flags of its own."""
    return AttackFlags(
        flags.DEFINE_list(
            "attack_eps",
            None,
            "attack: the budgets, gray levels of 0..255, such as 1,2,4,8: the largest change of a "
            "number of an image",
        ),
        flags.DEFINE_enum(
            "attack",
            None,
            list(robustness.METHODS),
            "pgd follows gradients; square (extra `attack`) asks what it attacks for its scores; "
            "by default pgd",
        ),
        flags.DEFINE_string(
            "attack_model",
            None,
            "attack: folder of the run whose gradients attack the file of --tflite; by default "
            "--workdir",
        ),
        flags.DEFINE_float(
            "attack_step",
            None,
            "attack: of an iteration of pgd, gray levels; by default 2.5 eps / iterations",
            lower_bound=0,
        ),
        flags.DEFINE_integer(
            "attack_iterations",
            None,
            "attack: steps of pgd, by default 20, or queries of square, by default 300",
            lower_bound=1,
        ),
        flags.DEFINE_enum(
            "attack_start",
            None,
            ["random", "image"],
            "attack: where pgd starts: at a random point of the budget, which is the default, or "
            "at the image",
        ),
        flags.DEFINE_integer(
            "attack_restarts",
            None,
            "attack: how often each image is attacked, and has to resist; by default once",
            lower_bound=1,
        ),
        flags.DEFINE_integer(
            "attack_images",
            None,
            "attack: how many images of the split, at most, drawn by chance; by default 200",
            lower_bound=1,
        ),
        flags.DEFINE_integer(
            "attack_seed", None, "attack: of all that is random; by default 0", lower_bound=0
        ),
    )
