"""The flags that programs share: of a model, of images, of metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from absl import flags

from kapps.tflite import keras_file

if TYPE_CHECKING:
    from kapps.tflite.conversion_run import About, Images
    from kapps.tflite.evaluation import Split
    from kapps.tflite.source import Model

flags.disclaim_key_flags()  # --help lists them with the program that calls `define`


class ModelFlags(NamedTuple):
    """Where a model comes from: a run, a name and weights, or a `.keras` file."""

    workdir: flags.FlagHolder
    model: flags.FlagHolder
    weights: flags.FlagHolder
    arguments: flags.FlagHolder
    keras: flags.FlagHolder
    image_size: flags.FlagHolder
    classes: flags.FlagHolder

    def is_given(self) -> bool:
        """Whether any of them is."""
        return any(holder.value is not None for holder in self)

    def is_for_another_process(self) -> bool:
        """Whether there is a `.keras` file, which this process is not to load."""
        return self.keras.value is not None and not keras_file.in_limits()

    def start_anew(self, program: str, time_limit: float) -> int:
        """As `keras_file.start_anew`."""
        return keras_file.start_anew(program, self.keras.value, time_limit=time_limit)

    def load(self, labels: str | None = None) -> Model:
        """As `kapps.tflite.source.load_model`; TensorFlow is imported only now."""
        from kapps.tflite import source

        return source.load_model(
            self.workdir.value,
            self.model.value,
            self.weights.value,
            arguments=self.arguments.value,
            saved=self.keras.value,
            image_size=self.image_size.value,
            classes=self.classes.value,
            labels=labels,
        )


def define() -> ModelFlags:
    """To be called once by a program, in place of flags of its own."""
    return ModelFlags(
        flags.DEFINE_string("workdir", None, "folder of a finished run of kapps-train"),
        flags.DEFINE_string("model", None, "network of --weights"),
        flags.DEFINE_string(
            "weights", None, "file of weights, or tag of published ones, in place of --workdir"
        ),
        define_arguments(),
        flags.DEFINE_string(
            "keras",
            None,
            "a .keras file, in place of --workdir; it is loaded in a process with limits",
        ),
        flags.DEFINE_integer(
            "image_size", None, "height and width of the input, pixels; by default the network's"
        ),
        flags.DEFINE_integer("classes", None, "number of classes of --weights", lower_bound=1),
    )


def define_arguments() -> flags.FlagHolder:
    """The flag --arguments, as of kapps-summary."""
    return flags.DEFINE_string(
        "arguments", None, "further arguments of --model, such as depth=20,width=0.5"
    )


class ImageFlags(NamedTuple):
    """Which images calibrate, and which ones a file is checked on."""

    calibration: flags.FlagHolder
    calibration_images: flags.FlagHolder
    verification: flags.FlagHolder
    verification_images: flags.FlagHolder
    data_dir: flags.FlagHolder

    @property
    def value(self) -> Images:
        from kapps.tflite.conversion_run import Images

        return Images(*(holder.value for holder in self))


def define_images() -> ImageFlags:
    """To be called once by a program, in place of flags of its own."""
    return ImageFlags(
        flags.DEFINE_string(
            "calibration",
            None,
            "data set whose training images calibrate: as for kapps-train, or folder:PATH of "
            "images; by default that of the run",
        ),
        flags.DEFINE_integer("calibration_images", 300, "how many of them", lower_bound=1),
        flags.DEFINE_string(
            "verification",
            None,
            "data set on whose validation images file and model are compared; by default as "
            "calibration",
        ),
        flags.DEFINE_integer("verification_images", 200, "how many of them", lower_bound=1),
        flags.DEFINE_string("data_dir", None, "where the TensorFlow data sets lie"),
    )


class SplitFlags(NamedTuple):
    """Which images of a data set a model is evaluated on."""

    dataset: flags.FlagHolder
    split: flags.FlagHolder
    data_dir: flags.FlagHolder
    crop: flags.FlagHolder
    batch_size: flags.FlagHolder

    @property
    def value(self) -> Split:
        from kapps.tflite.evaluation import Split

        return Split(*(holder.value for holder in self))


def define_split() -> SplitFlags:
    """To be called once by a program, in place of flags of its own."""
    return SplitFlags(
        flags.DEFINE_string("dataset", None, "as for kapps-train; by default that of the run"),
        flags.DEFINE_string("split", "validation", "train, validation or test"),
        flags.DEFINE_string("data_dir", None, "where the TensorFlow data sets lie"),
        flags.DEFINE_float(
            "crop",
            None,
            "share of the shorter side that the central crop keeps; by default the run's, or as "
            "the weights were published, or 1",
            lower_bound=0.01,
            upper_bound=1,
        ),
        flags.DEFINE_integer("batch_size", 64, "images a step", lower_bound=1),
    )


class AboutFlags(NamedTuple):
    """What the metadata of a file says."""

    name: flags.FlagHolder
    description: flags.FlagHolder
    author: flags.FlagHolder
    licence: flags.FlagHolder

    @property
    def value(self) -> About:
        from kapps.tflite.conversion_run import About

        return About(*(holder.value for holder in self))


def define_about() -> AboutFlags:
    """To be called once by a program, in place of flags of its own."""
    return AboutFlags(
        flags.DEFINE_string("name", None, "for the metadata; by default that of the network"),
        flags.DEFINE_string("description", "", "for the metadata: what the model does"),
        flags.DEFINE_string("author", "", "for the metadata"),
        flags.DEFINE_string("licence", "", "for the metadata: an SPDX identifier, or the text"),
    )
