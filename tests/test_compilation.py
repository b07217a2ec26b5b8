import os
import subprocess
import sys

from flaxae import compilation

PROGRAM = """
import sys
from flaxae import compilation
folder = compilation.enable_cache(*sys.argv[1:])
import jax
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name.endswith("/cache_hits")))
assert float(jax.jit(lambda x: x * 2)(3.0)) == 6.0
print(folder, sum(hits) > 0)
"""


def run(*arguments: str, **environment: str) -> list[str]:
    """The folder that was used, and whether a program was found there."""
    clean = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env={**clean, **environment}
    ).stdout.split()


def test_the_second_process_finds_what_the_first_compiled_in_the_users_cache(tmp_path):
    folder = str(tmp_path / "flaxae" / "jax")
    assert run(XDG_CACHE_HOME=str(tmp_path)) == [folder, "False"]
    assert run(XDG_CACHE_HOME=str(tmp_path)) == [folder, "True"]


def test_a_folder_given_wins_and_one_that_can_not_be_written_does_no_harm(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert run(str(blocked), JAX_COMPILATION_CACHE_DIR=str(tmp_path)) == [str(blocked), "False"]


def test_what_was_used_longest_ago_makes_room(tmp_path, monkeypatch):
    for age in (3, 1, 2):
        (tmp_path / str(age)).write_bytes(bytes(100))
        os.utime(tmp_path / str(age), (10**9 - age, 10**9))
    monkeypatch.setattr(compilation, "MOST_BYTES", 250)
    compilation._make_room(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]
