"""ExecuTorch: a `.pte` whose methods train with the integer core, the same program inside (docs/export.md).

`pte` reads such files with the standard library alone; `lowering` writes them (torch, executorch); `library` compiles
and loads the backend; `session` trains through ExecuTorch's Python runtime with the methods of `core.Session`.
"""
