import functools
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import xla_flags

from flaxae.parallel import compilation

PROGRAM = """
import sys
from flaxae.parallel import compilation
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


def test_what_was_used_longest_ago_makes_room_and_nothing_of_the_users_does(tmp_path, monkeypatch):
    names = [f"jit_{age}-{age}{'a' * 63}-cache" for age in (3, 1, 2)]
    users = ["thesis.pdf", "model-cache", f"{'a' * 64}.txt"]
    for age, name in zip((3, 1, 2, 9, 9, 9), names + users, strict=True):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (10**9 - age, 10**9))
    monkeypatch.setattr(compilation, "MOST_BYTES", 250)
    compilation._make_room(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([names[1], names[2], *users])


def test_nothing_is_ever_deleted_in_a_folder_of_the_users_choice(tmp_path, monkeypatch):
    name = f"jit_f-{'a' * 64}-cache"
    (tmp_path / name).write_bytes(bytes(100))
    monkeypatch.setattr(compilation, "MOST_BYTES", 10)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    compilation.enable_cache(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    compilation.enable_cache()
    assert (tmp_path / name).exists()


@pytest.mark.parametrize("which", ["flaxae", "flaxae/jax"])
def test_a_folder_that_others_may_write_is_not_used(tmp_path, monkeypatch, which):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(jax.config, "update", lambda *_: pytest.fail("a cache"))
    (tmp_path / "flaxae" / "jax").mkdir(parents=True)
    (tmp_path / which).chmod(0o777)
    with pytest.warns(UserWarning, match="Others than this user may write .* no compiled programs are kept"):
        assert compilation.enable_cache() is None


def test_what_jax_names_its_entries_is_what_is_cleared(tmp_path):
    run(str(tmp_path))
    names = [path.name for path in tmp_path.iterdir()]
    assert names
    assert all(map(compilation._ENTRY.fullmatch, names))


def test_an_option_that_the_compiler_does_not_know_is_left_out_and_the_others_are_kept(monkeypatch):
    monkeypatch.setattr(compilation, "_refused", frozenset())
    asked = []

    def jit(compiler_options):
        asked.append(set(compiler_options))
        return jax.jit(lambda x, rest: x + rest, donate_argnums=0, compiler_options=compiler_options)

    known = "xla_llvm_disable_expensive_passes"
    add = compilation.with_options(jit, {known: True, "xla_no_such_option": True})
    for x in (1.0, 2.0):
        np.testing.assert_array_equal(add(jax.numpy.full(3, x), 1.0), np.full(3, x + 1))
    assert asked == [{known, "xla_no_such_option"}, {known}]
    compilation.with_options(jit, {"xla_no_such_option": True})(jax.numpy.ones(3), 1.0)  # by now it isn't tried
    assert asked[2:] == [set()]


def test_where_most_optimizations_are_off_no_level_brings_some_back():
    asked = []

    def jit(compiler_options):
        asked.append(compiler_options)
        return jax.jit(lambda x: x, compiler_options=compiler_options)

    level = {"xla_backend_optimization_level": 1}
    for off in (True, False):  # the tests' own is True
        jax.config.update("jax_disable_most_optimizations", off)
        try:
            compilation.with_options(jit, level)(1.0)
        finally:
            jax.config.update("jax_disable_most_optimizations", True)
    assert asked == [{}, level]


def test_an_error_of_the_program_itself_is_not_taken_for_a_refusal():
    def fail(x):
        raise ValueError("no such file")

    jit = functools.partial(jax.jit, lambda x: jax.pure_callback(fail, x, x))
    call = compilation.with_options(jit, {"xla_backend_optimization_level": 1})
    with pytest.raises(jax.errors.JaxRuntimeError, match="no such file"):
        call(jax.numpy.ones(3)).block_until_ready()


def test_flags_that_would_abort_a_process_are_found_out_in_others():
    level = "--xla_backend_optimization_level=1"
    assert xla_flags.known(level, "--xla_no_such_flag=1") == [level]


def test_the_processors_instructions_are_those_that_linux_names(monkeypatch, tmp_path):
    for text, wanted in (("flags : avx2 avx512f", True), ("flags : avx2", False), (None, False)):
        if text is not None:
            (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(compilation, "CPUINFO", tmp_path / ("cpuinfo" if text else "none"))
        compilation.instructions.cache_clear()
        assert ("avx512f" in compilation.instructions()) is wanted
    monkeypatch.undo()
    compilation.instructions.cache_clear()
