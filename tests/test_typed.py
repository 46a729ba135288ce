"""Types that several threads use for the first time at once."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from forgellm import typed

RACE = """
import sys, threading
import msgspec
from forgellm import typed

sys.setswitchinterval(1e-6)
for _ in range(100):
    names = {"msgspec": msgspec}
    exec('''
class Turn(msgspec.Struct):
    role: str
    content: "list[str] | str"
class Body(msgspec.Struct):
    model: str
    first: Turn | None = None
    turns: tuple[Turn, ...] = ()
''', names)
    together = threading.Barrier(8)
    def decode():
        together.wait()
        CALL({"model": "m", "turns": [{"role": "user", "content": "x"}]}, names["Body"])
    threads = [threading.Thread(target=decode) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


@pytest.mark.process
def test_eight_threads_may_use_a_type_for_the_first_time_at_once() -> None:
    """With msgspec alone the process would end by a segmentation fault."""
    race = RACE.replace("CALL", "typed.convert")
    assert subprocess.run([sys.executable, "-c", race], check=False, timeout=60).returncode == 0


def test_what_does_not_fit_a_type_is_said_as_msgspec_says_it() -> None:
    with pytest.raises(typed.msgspec.ValidationError, match="Expected `int`, got `str`"):
        typed.convert("one", int)
    with pytest.raises(typed.msgspec.DecodeError):
        typed.decode(b'{"a": 1', dict[str, int])
    assert typed.decode(b'{"a": 1}', dict[str, int]) == {"a": 1}


SOURCES = Path(typed.__file__).parent


def by_itself(call: ast.Call) -> bool:
    """Whether this call has msgspec learn a type: convert(), decode(type=…), Decoder(…)."""
    name = ast.unparse(call.func)
    learnt = [*call.args[:1], *(each.value for each in call.keywords if each.arg == "type")]
    is_known = any(ast.unparse(each).startswith("typed.known(") for each in learnt)
    takes_type = any(each.arg == "type" for each in call.keywords) and name.endswith("decode")
    return name == "msgspec.convert" or ((takes_type or name.endswith("Decoder")) and not is_known)


def test_only_this_module_has_msgspec_learn_a_type_while_threads_run() -> None:
    """Modules may, while they are imported: then they are used by nobody."""
    found = [
        f"{path.relative_to(SOURCES)}:{call.lineno}"
        for path in SOURCES.rglob("*.py")
        if path.name != "typed.py"
        for function in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(function, ast.FunctionDef)
        for call in ast.walk(function)
        if isinstance(call, ast.Call) and by_itself(call) and "msgspec" in ast.unparse(call.func)
    ]
    assert found == []
