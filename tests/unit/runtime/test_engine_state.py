"""An engine is found by any config derived from its own, and by no other's."""

import gc
import weakref
from types import SimpleNamespace

from vllm.config import CompilationConfig

from leanmoe_runtime.engine import engine_of


def config_of(compilation: CompilationConfig) -> SimpleNamespace:
    return SimpleNamespace(compilation_config=compilation)


def test_derived_configs_are_of_the_same_engine_and_others_are_not():
    compilation = CompilationConfig()
    engine = engine_of(config_of(compilation))
    assert engine_of(config_of(compilation)) is engine
    assert engine_of(config_of(CompilationConfig())) is not engine


def test_what_vllm_reads_of_a_config_knows_nothing_of_it():
    compilation = CompilationConfig()
    before = compilation.compute_hash(), repr(compilation)
    engine_of(config_of(compilation))
    assert (compilation.compute_hash(), repr(compilation)) == before


def test_an_engine_ends_with_its_config():
    compilation = CompilationConfig()
    engine = weakref.ref(engine_of(config_of(compilation)))
    assert engine() is not None
    del compilation
    gc.collect()
    assert engine() is None
