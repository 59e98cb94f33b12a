"""``anydepth-convert``: an any-depth detector out of the weights of a fixed one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from anydepth.commands.plain_options import OptionError, one_path, parse_options, start_console, switch, text

HELP: Final = """\
anydepth-convert SOURCE [KEY=VALUE ...]

Makes an any-depth detector out of the weights of a fixed one: RT-DETR v1 or v2, RT-DETR of transformers,
YOLOv12 (turbo), or rtdetr_* and yolov12_* of this project. Its full depth computes what the source computes.
What only shallower depths use starts as copies of the source's weights, and must be trained: give the result
to anydepth-train weights=FILE. SOURCE is a file, a folder with model.safetensors, or the name OWNER/NAME of a
repository of the Hugging Face hub that holds one.

  output=weights.safetensors   file to write; an existing one is refused
  detector=auto                any-depth detector to make; auto: the one whose sizes the source has
  class_names=null             file with one class name per line, in the order of the source; null: those in
                               the source, or else numbers
  list=false                   whether every tensor is listed that did not come from the source itself
  overwrite=false              whether an existing file is replaced

examples:
  anydepth-convert rtdetr_r18vd_6x_coco_from_paddle.pth output=detr_r18.safetensors
  anydepth-convert yolov12l.pt class_names=coco.txt output=yolo_l.safetensors"""

_OPTIONS: Final = {
    "output": text("weights.safetensors"),
    "detector": text("auto"),
    "class_names": text(None),
    "list": switch(False),
    "overwrite": switch(False),
}


@dataclass(frozen=True)
class Options:
    """Options of the command.

    Attributes:
        source: File or folder of weights, or name of a repository.
        values: Value of each key of the help.
    """

    source: str
    values: dict[str, Any]


def parse(argv: Sequence[str]) -> Options:
    """Parse the command line.

    Raises:
        OptionError: No source, an unknown key, a value of another type, or an output that cannot be written.
    """
    paths, values = parse_options(argv, _OPTIONS)
    output = Path(values["output"])
    if output.suffix != ".safetensors":
        raise OptionError(f"got output={output}, expected the name of a .safetensors file")
    if output.exists() and not values["overwrite"]:
        raise OptionError(f"{output}: exists; give another output=, or overwrite=true to replace it")
    return Options(one_path(paths, "files of weights"), values)


def run(options: Options) -> None:
    """Convert, print the report and write the file.

    Raises:
        ValueError: Weights or class names that cannot be used.
    """
    # Only here: PyTorch takes seconds to import, and help and typing errors need none of it.
    from anydepth import zoo
    from anydepth.conversion import convert

    values = options.values
    names = None if values["class_names"] is None else _read_names(Path(values["class_names"]))
    made = convert(options.source, values["detector"], class_names=names)
    print(made.report)
    if values["list"]:
        print(*(f"  {key}" for key in made.report.copied_to_skip), sep="\n")
    detector = made.detector
    count = sum(1 for _ in detector.depth_space.all())
    print(f"{detector.config['name']}: {detector.num_classes} classes, {count} depths, full as the source")
    print(f"written to {zoo.save(detector, values['output'])}")


def _read_names(path: Path) -> list[str]:
    """Return the lines of a file of class names.

    Raises:
        OptionError: There is no such file of text.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(
            f"{path}: cannot be read as a text with one class name per line: {error}"
        ) from error
    return [line.strip() for line in lines if line.strip()]


def main() -> None:
    """Console script ``anydepth-convert``."""
    start_console("anydepth-convert", HELP, lambda words: run(parse(words)))


if __name__ == "__main__":
    main()
