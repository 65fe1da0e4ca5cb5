"""Programs as files, each run by the run-time that it is for: torch.export, ONNX, AOTInductor from Python and C++."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import dts
from dts.exports import load_program, torch_program, write_program
from dts_kernels.dispatch import exact_products
from tests.dts.exports.conftest import inputs
from tests.dts.exports.program.toy import MIXED, TIGHT, expected, ids

pytestmark = [pytest.mark.exports, pytest.mark.filterwarnings("ignore::FutureWarning")]
EXAMPLES = Path(__file__).parents[4] / "examples"


@torch.no_grad()
def test_written_and_loaded(rows_program, tmp_path):
    base, made, program = rows_program
    path = write_program(program, tmp_path / "p.pt2")
    loaded = load_program(path)
    assert loaded.manifest == program.manifest
    torch.testing.assert_close(loaded(MIXED, ids=ids(5))["output"], expected(base, made, ids(5), MIXED), **TIGHT)
    with pytest.raises(FileExistsError, match="overwrite"):
        write_program(program, path)
    write_program(program, path, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["p.pt2"]
    with pytest.raises(ValueError, match="inputs are .*'ids'"):
        loaded("a", words=ids(2))
    with pytest.raises(ValueError, match="without rows"):
        loaded("a", ids=ids(5)[:0])
    torch.export.save(program.exported, tmp_path / "other.pt2")
    with pytest.raises(ValueError, match="no manifest of tasks"):
        load_program(tmp_path / "other.pt2")
    (tmp_path / "text.pt2").write_text("no archive")
    with pytest.raises(ValueError, match="no program"):
        load_program(tmp_path / "text.pt2")
    with pytest.raises(FileExistsError, match="is no program"):
        write_program(program, tmp_path / "text.pt2", overwrite=True)
    with pytest.raises(ValueError, match="file .onnx, not"):
        write_program(program, tmp_path / "p.bin", "onnx")


def test_no_paths_of_this_machine(rows_program, tmp_path):
    write_program(rows_program[2], tmp_path / "p.pt2")
    assert __file__.rpartition("/")[0].encode() not in (tmp_path / "p.pt2").read_bytes()


@pytest.fixture(scope="module")
def models(made):
    """``models("bert")`` -> a DTSModel of two tasks, one of components alone and one with samples."""
    done = {}

    def make(name):
        if name not in done:
            folder = made(name)
            if not (folder / "sketch").exists():
                dts.compress(folder / "base", folder / "tuned", folder / "sketch", method="sketch", rank_fraction=0.5)
            adapters = {"a": folder / "adapter", "b": folder / "sketch"}
            done[name] = dts.DTSModel.from_pretrained(folder / "base", adapters=adapters)
        return done[name]

    return make


def compared(model, loaded, given, tasks):
    with exact_products(), torch.no_grad():
        wanted = model(**given, tasks=tasks, **({"use_cache": False} if hasattr(model.config, "use_cache") else {}))
    found = loaded(tasks, **given)
    assert list(found) == [name for name, value in wanted.items() if isinstance(value, torch.Tensor)]
    for name, value in found.items():
        largest = float(wanted[name][torch.isfinite(wanted[name])].abs().max())
        torch.testing.assert_close(value, wanted[name], rtol=0, atol=2e-5 * largest)


@pytest.mark.parametrize("name", ["bert", "vit", "gpt2", "llama"])
def test_models_of_transformers_in_onnxruntime_and_openvino(models, name, tmp_path):
    model, given = models(name), inputs(name)
    program = torch_program(model, given)
    compared(
        model, load_program(write_program(program, tmp_path / "p.pt2")), inputs(name, 5), ["a", "b", "a", "b", "a"]
    )
    path = write_program(program, tmp_path / "p.onnx", "onnx")
    for runtime in ("onnxruntime", "openvino"):
        loaded = load_program(path, runtime)
        assert loaded.manifest == program.manifest
        compared(model, loaded, given, ["a", "b", "a"])
        compared(model, loaded, inputs(name, 1), ["b"])
        compared(model, loaded, inputs(name, 4), ["b", "b", "a", "a"])
        if name in ("gpt2", "llama"):  # whose base has its head
            compared(model, loaded, given, ["a", dts.BASE, "b"])


def test_onnx_keeps_two_bits_and_takes_others_factors(models, tmp_path):
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    program, given = torch_program(models("llama"), inputs("llama")), inputs("llama")
    path = write_program(program, tmp_path / "p.onnx", "onnx", factors="inputs")
    stored = {one.name: one for one in onnx.load(path).graph.initializer}
    assert set(program.factors) <= set(stored)
    packed = [name for name in program.factors if name.endswith(("_u", "_v", "_codes"))]
    assert packed and all(stored[name].data_type == onnx.TensorProto.UINT8 for name in packed)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert {one.name for one in session.get_overridable_initializers()} == set(program.factors)
    feed = {k: v.numpy() for k, v in (program.manifest.routing("a", 3) | given).items()}
    (own,) = session.run(None, feed)
    silent = {name: np.zeros(stored[name].dims, np.float32) for name in program.factors if name.endswith("task0_sigma")}
    silent |= {
        name: np.zeros(stored[name].dims, np.float32) for name in program.factors if name.endswith("__raw.stack")
    }
    (base,) = session.run(None, feed | silent)
    with torch.no_grad():
        plain = models("llama")(**given, tasks=dts.BASE, use_cache=False).logits.numpy()
    np.testing.assert_allclose(base, plain, rtol=1e-4, atol=1e-5)
    assert np.abs(own - base).max() > 0.01


def test_openvino_and_onnxruntime_refuse_other_files(tmp_path):
    onnx = pytest.importorskip("onnx")
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    made_by_hand = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [x], [y]), ir_version=10)
    onnx.save(made_by_hand, tmp_path / "other.onnx")
    for runtime in ("onnxruntime", "openvino"):
        with pytest.raises(ValueError, match="no manifest of tasks"):
            load_program(tmp_path / "other.onnx", runtime)
    with pytest.raises(ValueError, match="runtime is one of"):
        load_program(tmp_path / "other.onnx", "tensorrt")


@pytest.fixture(scope="module")
def compiled(models, tmp_path_factory):
    """A package of machine code: two tasks of a small BERT."""
    program = torch_program(models("bert"), inputs("bert"))
    return write_program(program, tmp_path_factory.mktemp("compiled") / "p.pt2", "aoti")


def test_machine_code_from_python(models, compiled):
    loaded = load_program(compiled)
    for rows, tasks in ((3, ["a", "b", "a"]), (1, ["b"]), (4, ["b", "b", "a", "a"])):
        compared(models("bert"), loaded, inputs("bert", rows), tasks)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_machine_code_from_cpp(models, compiled, tmp_path):
    place = Path(torch.__file__).parent
    words = ["g++", "-std=c++20", f"-I{place}/include", f"-I{place}/include/torch/csrc/api/include"]
    words += [EXAMPLES / "run_program.cpp", "-o", tmp_path / "run", f"-L{place}/lib", f"-Wl,-rpath,{place}/lib"]
    subprocess.run([*map(str, words), "-ltorch", "-ltorch_cpu", "-lc10"], check=True, capture_output=True, text=True)
    given = inputs("bert", 2)["input_ids"]
    rows = [f"{task}:{','.join(map(str, row.tolist()))}" for task, row in zip("ab", given)]
    shown = subprocess.run([tmp_path / "run", compiled, *rows], check=True, capture_output=True, text=True).stdout
    found = [[float(word) for word in line.split("->")[1].split()] for line in shown.splitlines()]
    with exact_products(), torch.no_grad():
        wanted = models("bert")(input_ids=given, attention_mask=torch.ones_like(given), tasks=["a", "b"]).logits
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-5)
    wrong = subprocess.run([tmp_path / "run", compiled, "c:3,4"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "no task c" in wrong.stderr
