"""understudy-runtime predict FOLDER INPUT: the classes of what a file holds, most likely first; or the vectors of its texts."""

from __future__ import annotations

import argparse
import json
import sys

from understudy_runtime.errors import UnderstudyError
from understudy_runtime.student import load


def main(arguments: list[str] | None = None) -> None:
    """The command line; errors go to stderr and end with their exit code."""
    parser = argparse.ArgumentParser(prog="understudy-runtime", description="Ask a student that understudy distilled, without torch.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    predict = verbs.add_parser("predict", help="print what a student says of a file, a line of JSON for each of its rows")
    predict.add_argument("student", help="student/ or exports/onnx of a run, a static embedding, or an .onnx file")
    predict.add_argument("input", help="an image, a CSV or TSV table, a .npy array, a text file, a .wav file: of the kind that it knows")
    predict.add_argument("--kind", help="of student/: which of the run's exports, as in onnx_int8 (one in float)")
    predict.add_argument("--top", type=int, default=3, help="how many classes of each row (3)")
    given = parser.parse_args(arguments)
    try:
        found = load(given.student, kind=given.kind)
        if found.vectors is not None:
            rows = [[round(float(number), 6) for number in row] for row in found.encode(found.read(given.input))]
        else:
            rows = [{found.classes[at]: round(float(row[at]), 6) for at in row.argsort()[::-1][:given.top]}
                    for row in found.predict_file(given.input)]
    except UnderstudyError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    for row in rows:
        print(json.dumps(row, ensure_ascii=False))

if __name__ == "__main__":
    main()
