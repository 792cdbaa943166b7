"""The digest of PyTorch models: whatever changes what they compute changes it, what cannot be told has none."""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional
from torch import nn

from optimizer import optimize
from optimizer.cache.digest import Digest, Undigestable
from optimizer.cache.objects import ObjectWalk
from optimizer.cache.torch_digest import add_examples, add_torch

ROOT = Path(__file__).parents[2]

PLAIN = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x):
        return torch.relu(self.linear(x))
"""

Load = Callable[..., types.ModuleType]


def digest(model: Any, examples: object = None) -> str:
    made = Digest()
    walk = ObjectWalk(made)
    add_torch(made, walk, model)
    add_examples(made, walk, examples)
    return made.hexdigest()


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    """Writes a module of the user's and imports it; its name stays the same."""
    numbers = itertools.count()

    def load(source: str, name: str = "user_module") -> types.ModuleType:
        file = tmp_path / str(next(numbers)) / f"{name}.py"
        file.parent.mkdir()
        file.write_text(textwrap.dedent(source))
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module

    before = set(sys.modules)
    yield load
    for name in set(sys.modules) - before:
        if name.startswith("user_"):
            del sys.modules[name]


@pytest.fixture
def of(load: Load) -> Callable[..., str]:
    """The digest of `Model()` of some source, with the same weights each time."""

    def of(source: str, **replaced: str) -> str:
        for old, new in replaced.items():
            source = source.replace(old.upper(), new)
        module = load(source)
        torch.manual_seed(0)
        return digest(module.Model())

    return of


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4))


def test_the_same_model_has_the_same_digest(of: Callable[..., str]) -> None:
    assert digest(plain()) == digest(plain())
    assert of(PLAIN) == of(PLAIN)


def test_comments_and_places_do_not_count(of: Callable[..., str]) -> None:
    moved = PLAIN.replace("        return", "        # what it gives\n\n        return")
    assert of(moved) == of(PLAIN)


def test_it_is_the_same_in_another_process_whatever_the_seed_of_hashes(tmp_path: Path) -> None:
    (tmp_path / "user_main.py").write_text(
        PLAIN
        + """
    scale = 2.0
    names = {"a", "b", "c", "d", "e"}

def gate(x):
    return x * Model.scale if "a" in Model.names else x

class Main(Model):
    def forward(self, x):
        return gate(super().forward(x)) if len({"x", "y", "z"}) > self.linear.in_features - 2 else x

if __name__ == "__main__":
    from tests.optimizer.test_cache_modules import digest
    torch.manual_seed(0)
    model = Main()
    model.register_forward_hook(lambda module, args, output: output + 1)
    print(digest(model))
"""
    )
    said = {
        subprocess.run(
            [sys.executable, "user_main.py"],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1
    assert len(next(iter(said)).strip()) == 64


def changes() -> Iterator[tuple[str, Callable[[Any], None]]]:
    """What can be done to `plain()`."""

    def one_bit(model: Any) -> None:
        model[0].weight.detach().view(-1).view(torch.uint8)[0] ^= 1

    yield "one bit of a weight", one_bit
    yield "a buffer", lambda m: m[2].running_mean.add_(1)
    yield "an attribute", lambda m: setattr(m[2], "eps", 1e-3)
    yield "a flag", lambda m: setattr(m[1], "inplace", True)
    yield "a mode", lambda m: m.eval()
    yield "a layer", lambda m: m.append(nn.ReLU())
    yield "the order", lambda m: m._modules.update({"1": m._modules.pop("1")})
    yield "a layer's type", lambda m: m._modules.update({"1": nn.GELU()})
    yield "the type of weights", lambda m: m.double()
    yield "another forward", lambda m: setattr(m[1], "forward", lambda x: x)
    yield "the same function twice", lambda m: setattr(m[1], "forward", m[0].forward)
    yield "a gradient", lambda m: m[0].weight.requires_grad_(False)


@pytest.mark.parametrize("change", [pytest.param(change, id=name) for name, change in changes()])
def test_a_change_of_a_module(change: Callable[[Any], None]) -> None:
    changed = plain()
    change(changed)
    assert digest(changed) != digest(plain())
    again = plain()
    change(again)
    assert digest(again) == digest(changed)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m[0].register_forward_hook(lambda module, args, output: output * 2),
        lambda m: m[0].register_forward_pre_hook(lambda module, args: (args[0] * 2,)),
        lambda m: nn.utils.parametrizations.weight_norm(m[0]),
    ],
)
def test_hooks(change: Callable[[Any], None]) -> None:
    """PyTorch numbers them for the whole process, so that only another process sees the same again."""
    changed = plain()
    change(changed)
    assert digest(changed) != digest(plain())


def test_shared_weights_and_layouts() -> None:
    def pair(how: str) -> Any:
        torch.manual_seed(0)
        model: Any = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        if how == "equal":
            model[1].load_state_dict(model[0].state_dict())
        elif how == "tied":
            model[1].weight, model[1].bias = model[0].weight, model[0].bias
        elif how == "same memory":
            model[1].weight, model[1].bias = nn.Parameter(model[0].weight.data), nn.Parameter(model[0].bias.data)
        elif how == "strides":
            model[1].load_state_dict(model[0].state_dict())
            model[1].weight = nn.Parameter(model[1].weight.data.t().contiguous().t())
        return model

    ways = ("", "equal", "tied", "same memory", "strides")
    assert len({digest(pair(how)) for how in ways}) == len(ways)


SOURCES = {
    "the code of forward": (PLAIN.replace("relu", "WHAT"), "relu", "tanh"),
    "a constant": (PLAIN.replace("(x))", "(x)) * WHAT"), "2.0", "3.0"),
    "a global": (PLAIN.replace("(x))", "(x)) * scale") + "\nscale = WHAT\n", "2.0", "3.0"),
    "a tensor that is a global": (
        PLAIN.replace("(x))", "(x)) * scale") + "\nscale = torch.tensor(WHAT)\n", "2.0", "3.0"),
    "a global of a global function": (
        PLAIN.replace("(x))", "(x)) * f()") + "\nscale = WHAT\ndef f():\n    return [scale for _ in (1,)][0]\n",
        "2.0",
        "3.0",
    ),
    "a default": (PLAIN.replace("forward(self, x)", "forward(self, x, k=WHAT)").replace("(x))", "(x)) * k"), "2", "3"),
    "a keyword's default": (
        PLAIN.replace("forward(self, x)", "forward(self, x, *, k=WHAT)").replace("(x))", "(x)) * k"), "2", "3"),
    "a method": (PLAIN.replace("(x))", "(x)) * self.f()") + "\n    def f(self):\n        return WHAT\n", "2", "3"),
    "a property": (
        PLAIN.replace("(x))", "(x)) * self.f") + "\n    @property\n    def f(self):\n        return WHAT\n", "2", "3"),
    "a static method": (
        PLAIN.replace("(x))", "(x)) * self.f()") + "\n    @staticmethod\n    def f():\n        return WHAT\n",
        "2",
        "3",
    ),
    "a method under a name made at run time": (
        PLAIN.replace("(x))", "(x)) * getattr(self, 'f' + 'g')()") + "\n    def fg(self):\n        return WHAT\n",
        "2",
        "3",
    ),
    "a class attribute": (PLAIN.replace("(x))", "(x)) * self.k") + "\n    k = WHAT\n", "2", "3"),
    "a special method": (PLAIN + "\n    def __call__(self, x):\n        return x * WHAT\n", "2", "3"),
    "an overridden method": (
        PLAIN + "\n    def named_parameters(self, *args, **kwargs):\n        return [WHAT]\n", "2", "3"),
    "a base class": (
        PLAIN.replace("class Model(nn.Module)", "class Model(Base)")
        .replace("class", "class Base(nn.Module):\n    def f(self):\n        return WHAT\n\nclass", 1)
        .replace("(x))", "(x)) * self.f()"),
        "2",
        "3",
    ),
    "a class that is built": (
        PLAIN.replace("(x))", "(x)) * Config().k")
        + "\nclass Config:\n    def __init__(self):\n        self.k = WHAT\n",
        "2",
        "3",
    ),
    "a closure": (
        PLAIN.replace("(x))", "(x)) * f()") + "\ndef make(k):\n    return lambda: k\nf = make(WHAT)\n", "2", "3"),
    "a function under a decorator": (
        PLAIN.replace("    def forward", "    @torch.no_grad()\n    def forward").replace("(x))", "(x)) * WHAT"),
        "2",
        "3",
    ),
    "a partial function": (
        PLAIN.replace("(x))", "(x)) * f()")
        + "\nimport functools\ndef g(k):\n    return k\nf = functools.partial(g, WHAT)\n",
        "2",
        "3",
    ),
    "an inner function": (
        PLAIN.replace("return torch", "f = lambda: WHAT\n        return f() * torch"), "2", "3"),
    "an instance": (
        PLAIN.replace("(x))", "(x)) * config.k")
        + "\nclass Config:\n    def __init__(self, k):\n        self.k = k\nconfig = Config(WHAT)\n",
        "2",
        "3",
    ),
    "an instance with slots": (
        PLAIN.replace("(x))", "(x)) * config.k")
        + "\nclass Config:\n    __slots__ = ('k',)\n    def __init__(self, k):\n        self.k = k\n"
        + "config = Config(WHAT)\n",
        "2",
        "3",
    ),
    "a metaclass": (
        PLAIN.replace("(x))", "(x)) * Thing.k")
        + "\nclass Meta(type):\n    @property\n    def k(cls):\n        return WHAT\n"
        + "class Thing(metaclass=Meta):\n    pass\n",
        "2",
        "3",
    ),
    "a table": (PLAIN.replace("(x))", "(x)) * table['k'][0]") + "\ntable = {'k': [WHAT]}\n", "2", "3"),
    "an enumeration": (
        PLAIN.replace("(x))", "(x)) * Kind.A.value") + "\nimport enum\nclass Kind(enum.Enum):\n    A = WHAT\n",
        "2",
        "3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
def test_a_change_of_the_users_code(name: str, of: Callable[..., str]) -> None:
    source, first, second = SOURCES[name]
    assert of(source, what=first) == of(source, what=first)
    assert of(source, what=first) != of(source, what=second)


def test_a_change_of_another_module_of_the_users(load: Load, of: Callable[..., str]) -> None:
    source = "import user_helpers\n" + PLAIN.replace("(x))", "(x)) * user_helpers.f()")
    helpers = "k = WHAT\ndef f():\n    return k\n"
    found = []
    for value in ("2", "2", "3"):
        load(helpers.replace("WHAT", value), "user_helpers")
        found.append(of(source))
    assert found[0] == found[1] != found[2]


UNUSED = {
    "a method that nothing calls": "\n    def save(self):\n        return open('WHAT')\n",
    "a function that nothing calls": "\ndef save():\n    return open('WHAT')\n",
    "how it is shown": "\n    def __repr__(self):\n        return 'WHAT'\n",
}


@pytest.mark.parametrize("name", UNUSED)
def test_code_that_cannot_run_does_not_count(name: str, of: Callable[..., str]) -> None:
    assert of(PLAIN + UNUSED[name], what="2") == of(PLAIN + UNUSED[name], what="3") == of(PLAIN)


REFUSED = {
    "opens a file": ("self.f()", "\n    def f(self):\n        return open('x')\n", r"Model\.f calls open\(\)"),
    "evaluates text": ("eval('2')", "", r"forward calls eval\(\)"),
    "reads the environment": ("len(os.environ)", "\nimport os\n", "uses 'os', which may read what is not a part"),
    "reads the environment by a function": ("len(getenv('x'))", "\nfrom os import getenv\n", "uses 'getenv'"),
    "reads the clock": ("time.time()", "\nimport time\n", "uses 'time'"),
    "draws a number": ("random.random()", "\nimport random\n", "uses 'random'"),
    "changes a global": ("self.f()", "\nk = 2\ndef f(self):\n    global k\n    k += 1\n    return k\nModel.f = f\n",
                         "changes the global variable 'k'"),
    "imports when it runs": ("self.f()", "\n    def f(self):\n        import user_later\n", "imports 'user_later'"),
    "uses a lock": ("lock", "\nimport threading\nlock = threading.Lock()\n", "which may read what is not a part"),
    "holds a generator": ("g", "\ng = torch.Generator()\n", r"is a torch\._C\.Generator, whose state cannot be seen"),
    "holds a running function": ("next(g)", "\ng = (i for i in (1, 2))\n", "generator, whose state cannot be seen"),
    "holds a set of objects": ("len(s)", "\ns = {torch.float32}\n", "is a set, which has no order"),
    "uses all of a module": ("f(user_other)", "\nimport user_other\ndef f(m):\n    return m.k\n",
                             "uses the module 'user_other' as a whole"),
    "uses an operator of its own": ("torch.ops.mine.f", "", "uses the module .torch.ops.mine. as a whole"),
    "uses operators by a name made at run time": ("getattr(torch.ops, 'mi' + 'ne')", "",
                                                  "uses the module 'torch.ops' as a whole"),
    "holds a tensor of another kind": ("t", "\nt = torch.zeros(3).to_sparse()\n", "no plain tensor in memory"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_told_has_no_digest(name: str, load: Load, of: Callable[..., str]) -> None:
    load("k = 2\n", "user_other")
    expression, more, message = REFUSED[name]
    with pytest.raises(Undigestable, match=message):
        of(PLAIN.replace("(x))", f"(x)) * {expression}") + more)


def test_a_subclass_of_a_tensor_and_a_script_have_none() -> None:
    class Mine(torch.Tensor):
        pass

    model = plain()
    model.extra = torch.zeros(2).as_subclass(Mine)
    with pytest.raises(Undigestable, match=r"is a test_a_subclass.*Mine"):
        digest(model)


def test_a_forward_that_is_replaced_in_the_class(of: Callable[..., str], load: Load) -> None:
    before = of(PLAIN)
    module = load(PLAIN)
    module.Model.forward = lambda self, x: x
    torch.manual_seed(0)
    assert digest(module.Model()) != before


def test_what_is_replaced_in_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest(plain())
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: x)
    in_class = digest(plain())
    monkeypatch.undo()
    monkeypatch.setattr(torch.nn.functional, "linear", lambda x, weight, bias: x)
    in_module = digest(plain())
    monkeypatch.undo()
    monkeypatch.setitem(torch.nn.functional.__dict__, "user_table", {"f": lambda x: x})
    in_table = digest(plain())
    monkeypatch.undo()
    assert len({before, in_class, in_module, in_table}) == 4
    assert digest(plain()) == before


def test_flags_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest(plain())
    seen = {before}
    with torch.autocast("cpu", torch.bfloat16):
        seen.add(digest(plain()))
    model = plain()
    torch.set_default_dtype(torch.float64)
    try:
        seen.add(digest(model))
    finally:
        torch.set_default_dtype(torch.float32)
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: output)
    seen.add(digest(plain()))
    handle.remove()
    monkeypatch.setenv("TORCH_SOMETHING", "1")
    seen.add(digest(plain()))
    monkeypatch.undo()
    assert len(seen) == 5
    assert digest(plain()) == before
    with torch.device("meta"), pytest.raises(Undigestable, match="a mode of PyTorch is active"):
        digest(model)


def test_example_inputs_count_by_size_unless_they_are_no_tensors() -> None:
    model, x = plain(), torch.zeros(2, 3)
    assert digest(model, x) == digest(model, torch.ones(2, 3))
    shared = (x, x)
    examples = [x, (x,), {"x": x}, x.double(), torch.zeros(3, 3), x.t().contiguous().t(), shared, (x, x.clone())]
    examples += [(x, 1), (x, 2), (x, None), (x, True), x.numpy(), x.clone().requires_grad_()]
    assert len({digest(model, example) for example in examples}) == len(examples)
    with pytest.raises(Undigestable, match="example_inputs"):
        digest(model, (x, iter(())))


def exported(model: nn.Module, x: torch.Tensor, **options: Any) -> torch.export.ExportedProgram:
    return torch.export.export(model.eval(), (x,), **options)


def test_exported_programs() -> None:
    x = torch.zeros(2, 3)
    other_weights: Any = plain()
    other_weights[0].weight.data[0, 0] += 1
    batch = torch.export.Dim("batch", max=8)
    larger = torch.export.Dim("batch", max=16)
    programs = [
        exported(plain(), x),
        exported(other_weights, x),
        exported(plain()[:2], x),
        exported(plain(), torch.zeros(4, 3)),
        exported(plain(), x, dynamic_shapes=({0: batch},)),
        exported(plain(), x, dynamic_shapes=({0: larger},)),
    ]
    assert len({digest(program) for program in programs}) == len(programs)
    assert digest(programs[0]) == digest(exported(plain(), x))


def test_a_program_with_an_operator_of_the_users_has_none() -> None:
    @torch.library.custom_op("tersor_test::double", mutates_args=())
    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    double.register_fake(torch.empty_like)

    class Doubled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            doubled: torch.Tensor = double(x)
            return doubled

    with pytest.raises(Undigestable, match=r"is the operator tersor_test\.double\.default, whose code cannot be seen"):
        digest(exported(Doubled(), torch.zeros(2, 3)))


def test_a_module_is_found_again_and_one_without_a_digest_is_compiled(tmp_path: Path) -> None:
    options: dict[str, Any] = {"example_inputs": torch.zeros(2, 3), "cache": tmp_path / "cache", "progress": False}
    first = optimize(plain().eval(), "onnx", **options)
    again = optimize(plain().eval(), "onnx", **options)
    assert (first.report.cached, first.report.notes) == (None, ())
    assert again.report.cached is not None
    assert again.report.cached.model == "Sequential"
    torch.testing.assert_close(again(torch.ones(2, 3)), first(torch.ones(2, 3)))
    model = plain().eval()
    model.register_forward_pre_hook(lambda module, args: open(os.devnull).close())
    (note,) = optimize(model, "onnx", **options).report.notes
    assert note.startswith("not kept in the cache: ")
    assert note.endswith(" calls open()")
