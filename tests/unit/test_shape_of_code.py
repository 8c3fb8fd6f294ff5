"""A function fits a screen and nests little, everywhere in the package."""

import ast
from collections.abc import Iterator
from pathlib import Path

import robosat_pink

FOLDER = Path(robosat_pink.__path__[0])
MAX_LINES = 60  # of a function, from its first decorator to its last line
MAX_DEPTH = 4  # of blocks inside each other in a function

Function = ast.FunctionDef | ast.AsyncFunctionDef
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
BLOCKS = (ast.For, ast.AsyncFor, ast.While, ast.If, ast.With, ast.AsyncWith, ast.Try, ast.TryStar, ast.Match)


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function]]:
    """Every function with its dotted name: of the module, of classes, and inside other functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            name = f"{prefix}{node.name}"
            if isinstance(node, FUNCTIONS):
                yield name, node
            yield from functions(node, f"{name}.")
        else:
            yield from functions(node, prefix)


def lines(function: Function) -> int:
    first = min(node.lineno for node in (function, *function.decorator_list))
    assert function.end_lineno is not None
    return function.end_lineno - first + 1


def depth(node: ast.AST, is_elif: bool = False) -> int:
    """The most blocks inside each other. elif, else and except do not deepen; inner functions count alone."""
    own = int(isinstance(node, BLOCKS) and not is_elif)
    below = 0
    for name, field in ast.iter_fields(node):
        children = field if isinstance(field, list) else [field]
        continues = isinstance(node, ast.If) and name == "orelse" and len(children) == 1
        for child in children:
            if isinstance(child, ast.AST) and not isinstance(child, FUNCTIONS):
                below = max(below, depth(child, is_elif=continues and isinstance(child, ast.If)))
    return own + below


def offences(source: str, file: str) -> list[str]:
    found = []
    for name, function in functions(ast.parse(source)):
        if (length := lines(function)) > MAX_LINES:
            found.append(f"{file}: {name} has {length} lines; accepted: up to {MAX_LINES}")
        if (nesting := depth(function)) > MAX_DEPTH:
            found.append(f"{file}: {name} nests {nesting} deep; accepted: up to {MAX_DEPTH}")
    return found


def test_functions_fit_a_screen_and_nest_little() -> None:
    paths = sorted(FOLDER.rglob("*.py"))
    found = [offence for path in paths for offence in offences(path.read_text(), str(path.relative_to(FOLDER)))]
    assert found == []


def test_long_function_is_found_with_its_decorators_wherever_it_is() -> None:
    body = "        pass\n" * (MAX_LINES - 2)
    source = f"class Loop:\n    @property\n    def step(self):\n{body}"
    assert offences(source, "loop.py") == []
    assert offences(source + "        pass\n", "loop.py") == ["loop.py: Loop.step has 61 lines; accepted: up to 60"]


def test_deep_function_is_found_and_neither_elif_nor_except_deepens_it() -> None:
    source = """
def run(items):
    def inner():
        while True:
            pass
    for item in items:
        with item:
            try:
                pass
            except ValueError:
                if item:
                    pass
                elif items:
                    pass
                else:
                    inner()
"""
    assert offences(source, "train.py") == []
    deeper = source.replace("    inner()\n", "    match item:\n                        case 1: pass\n")
    assert offences(deeper, "train.py") == ["train.py: run nests 5 deep; accepted: up to 4"]
