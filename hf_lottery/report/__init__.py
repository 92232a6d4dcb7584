"""The report of a run, in `report/` of its output folder.

report reads results and recipe and writes the files; sections (judgement and forgetting are two) says what is shown,
plots draws it in the common style, page turns the sections into HTML and Markdown. damage names the
files that were left out.
"""
