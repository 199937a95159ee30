"""Asks a student that understudy distilled, without torch.

    from understudy_runtime import load

    student = load("student/")                   # its float export; kind="onnx_int8" for that one; or exports/onnx, a static
                                                 # embedding, one .onnx file
    student.predict(raw)                         # (N, C) probabilities: pixels, columns of a table, texts, waveforms
    student.answer(raw)                          # (N,) names of classes
    student.encode(["a text"])                   # (N, D), of a student of sentence vectors

numpy alone runs static embeddings; everything else needs ONNX Runtime (`pip install onnxruntime`).
"""

from understudy_runtime.errors import DataError, RecipeError, UnderstudyError
from understudy_runtime.student import Student, load

__all__ = ["DataError", "RecipeError", "Student", "UnderstudyError", "load"]
