"""The CUDA source of NCC: it compiles for every device, and on the CPU it gives the answers of the reference.

Where there is a CUDA device, `pytest -m gpu` runs the rest on it.
"""

import ctypes
import functools
import importlib.util
import json
import runpy
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ogive.errors import OgiveError, ParameterError
from ogive.kernels import NCC, _ncc_cupy
from ogive.testing.backends import GpuCodeOnCpu
from ogive.testing.cuda import Cpu, compiled
from ogive.testing.pairs import truth_pair

NVRTC_PLATFORMS = ("linux", "win32")
"""There is no wheel of the compiler for others."""
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
"""From Turing to Blackwell."""


# --- it compiles ---


@pytest.fixture(scope="module")
def nvrtc() -> ctypes.CDLL:
    """NVIDIA's run-time compiler, which needs no device."""
    if sys.platform not in NVRTC_PLATFORMS:
        pytest.skip(f"there is no nvidia-cuda-nvrtc-cu12 for {sys.platform}")
    found = importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.cuda_nvrtc")
    assert found is not None, "nvidia-cuda-nvrtc-cu12 is missing: pip install 'ogive[test]'"
    assert found.submodule_search_locations is not None
    folder = Path(found.submodule_search_locations[0])
    library = next(
        p for p in [*folder.glob("lib/libnvrtc.so.*"), *folder.glob("bin/nvrtc64_*_0.dll")] if "alt" not in p.name
    )
    return ctypes.CDLL(str(library))


def compile_with(nvrtc: ctypes.CDLL, source: str, *options: str) -> tuple[int, str]:
    """Result and log of a compilation."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"ncc.cu", 0, None, None) == 0
    given = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
    result = nvrtc.nvrtcCompileProgram(program, len(options), given)
    assert nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size)) == 0
    log = ctypes.create_string_buffer(size.value)
    assert nvrtc.nvrtcGetProgramLog(program, log) == 0
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return result, log.value.decode()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_source_compiles_for_every_device_and_spills_no_register(nvrtc, architecture) -> None:
    target = f"--gpu-architecture=sm_{architecture}"
    # The standard is the one that CuPy asks for.
    result, log = compile_with(nvrtc, _ncc_cupy.source(), target, "--std=c++14", "--ptxas-options=-v")
    assert result == 0, log
    assert "warning" not in log
    kernels = _ncc_cupy.source().count("__global__")
    assert kernels == 6
    assert log.count("0 bytes spill stores, 0 bytes spill loads") == kernels, log


def test_a_wrong_source_does_not_compile(nvrtc) -> None:
    result, log = compile_with(nvrtc, _ncc_cupy.source().replace("float4 sum", "float5 sum"))
    assert result != 0
    assert "float5" in log


# --- it gives the right answer, on the CPU ---


def white(shape: tuple[int, int], holes: float, seed: int = 0) -> list[NDArray[Any]]:
    """Two related images of noise and their masks."""
    rng = np.random.default_rng(seed)
    one = rng.standard_normal(shape).astype(np.float32)
    two = np.roll(one, (1, -2), (0, 1)) + 0.5 * rng.standard_normal(shape).astype(np.float32)
    valid = [rng.random(shape) >= holes for _ in range(2)]
    if holes:
        valid[0][: shape[0] // 3, : shape[1] // 2] = False
    return [np.where(valid[0], one, 0), valid[0], np.where(valid[1], two, 0), valid[1]]


GEOMETRY = (4, 4, 16, 8, 8)
"""First pixel, search, chip, step, block."""
CELLS = (5, 7)
SHAPE = (2 * 4 + 4 * 8 + 16, 2 * 4 + 6 * 8 + 16)


def on_cpu(holes: float, geometry: Any = GEOMETRY, min_pixels: Any = 128, **options: Any) -> NDArray[np.float32]:
    images = white(SHAPE, holes)
    return _ncc_cupy.match(*images, CELLS, geometry, min_pixels, device=Cpu(**options))


@settings(max_examples=25)
@given(
    geometry=st.sampled_from([(16, 3, 8), (8, 5, 8), (12, 2, 8), (9, 3, 5), (15, 4, 5), (10, 3, 16)]),
    seed=st.integers(0, 10**6),
    holes=st.sampled_from([0.0, 0.003, 0.03, 0.2, 0.6]),
    enhance=st.sampled_from(["none", "high_pass", "wallis", "orientation"]),
)
def test_it_agrees_with_the_reference_whatever_the_holes(geometry, seed, holes, enhance) -> None:
    chip, search, step = geometry
    kernel = GpuCodeOnCpu(chip, search, step, enhance, "quadric", min_correlation=0.0, max_peak_ratio=1.0)
    slow = NCC(**{**asdict(kernel), "backend": "reference"})
    size = 2 * kernel.halo() + 3 * step
    one, valid1, two, valid2 = white((size, size), holes, seed)
    got, expected = (k.match(k.prepare(one, valid1), k.prepare(two, valid2)) for k in (kernel, slow))
    np.testing.assert_array_equal(got["flag"], expected["flag"])
    for name, tolerance in (("corr", 1e-5), ("snr", 1e-4), ("peak_ratio", 1e-4), ("dy", 1e-4), ("dx", 1e-4)):
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-5, atol=tolerance, err_msg=name)


@pytest.mark.parametrize(("chip", "search"), [(32, 8), (64, 8), (32, 20)])
def test_it_finds_what_numba_finds_on_a_winding_stream(chip, search) -> None:
    pair = truth_pair("P1", 224)
    clear = np.random.default_rng(0).random(pair.image1.shape) > 0.0003
    found = []
    for kernel in (GpuCodeOnCpu(chip, search, refine="quadric"), NCC(chip, search, refine="quadric", backend="numba")):
        scenes = [kernel.prepare(im.astype(np.float32), clear) for im in (pair.image1, pair.image2)]
        found.append(kernel.match(*scenes))
    got, expected = found
    np.testing.assert_array_equal(got["flag"], expected["flag"])
    assert np.isfinite(expected["dy"]).sum() > 100
    for name in ("dy", "dx"):
        np.testing.assert_allclose(got[name], expected[name], rtol=0, atol=1e-5)


def test_a_search_whose_surface_fits_no_shared_memory() -> None:
    kernel = GpuCodeOnCpu(8, 51, 8, "none", "quadric", min_correlation=0.0, max_peak_ratio=1.0)
    assert (2 * kernel.search + 1) ** 2 > _ncc_cupy.SURFACE_FLOATS
    size = 2 * kernel.halo() + kernel.step
    one, valid1, two, valid2 = white((size, size), 0.0)
    slow = replace(kernel, backend="numba")
    numba = NCC(**asdict(slow))
    got, expected = (k.match(k.prepare(one, valid1), k.prepare(two, valid2)) for k in (kernel, numba))
    assert got["corr"].size == 1
    for name in ("corr", "snr", "peak_ratio", "dy", "dx"):
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("holes", [0.0, 0.05])
@pytest.mark.parametrize(
    "limits",
    [
        {"TILE_BYTES": 1, "TILE_COLUMNS": 1},
        {"TILE_BYTES": 500_000, "TILE_COLUMNS": 3},
        {"TILE_FLOATS": 1},
        {"TILE_FLOATS": 150},
        {"TILE_FLOATS": 500},
        {"PRODUCT_THREADS": 1},
        {"SURFACE_FLOATS": 0},
    ],
    ids=str,
)
def test_how_the_work_is_cut_up_changes_no_bit(monkeypatch, holes, limits) -> None:
    expected = on_cpu(holes)
    assert (expected[2] > 0.2).mean() > 0.4
    for name, value in limits.items():
        assert value != getattr(_ncc_cupy, name)
        monkeypatch.setattr(_ncc_cupy, name, value)
    assert on_cpu(holes).tobytes() == expected.tobytes()


def test_the_memory_bounds_the_tiles() -> None:
    pair = _ncc_cupy.Pair(Cpu(), *[None] * 4, origin=0, radius=25, chip=64, step=8, block=8)
    tiles = list(pair.tiles((1000, 700), 6))
    seen = np.zeros((1000, 700), int)
    for t in tiles:
        seen[t.i0 : t.i0 + t.ny, t.j0 : t.j0 + t.nx] += 1
        assert 4 * 6 * pair.blocks(t.ny) * pair.blocks(t.nx) * pair.size * pair.pitch <= _ncc_cupy.TILE_BYTES
    assert (seen == 1).all()
    assert len(tiles) > 3
    # A narrow search has small sums: its tables bound the tile.
    pair = _ncc_cupy.Pair(Cpu(), *[None] * 4, origin=0, radius=1, chip=64, step=8, block=8)
    assert max(t.ny * t.nx for t in pair.tiles((100_000, 256), 1)) * 64 * 40 < _ncc_cupy.TILE_BYTES


def test_chips_of_several_sizes_share_one_pass() -> None:
    images = white(SHAPE, 0.02)
    # All three are centred on the same cells.
    every = _ncc_cupy.match(*images, CELLS, (4, 4, (16, 8, 12), 8, 2), (128, 32, 72), device=Cpu())
    assert every.shape == (3, 8, *CELLS)
    for k, (first, chip, least) in enumerate(((4, 16, 128), (8, 8, 32), (6, 12, 72))):
        alone = _ncc_cupy.match(*images, CELLS, (first, 4, chip, 8, 2), least, device=Cpu())
        assert alone.shape == (8, *CELLS)
        assert (alone[2] > 0.2).any()
        assert every[k].tobytes() == alone.tobytes()


@pytest.mark.parametrize("geometry", [(4, 4, 16, 6, 8), (4, 4, (16, 12), 8, 4), (4, 4, (16, 10), 8, 4)])
def test_chips_that_are_no_whole_blocks_are_refused(geometry) -> None:
    with pytest.raises(ParameterError, match="block: must divide the step, every chip"):
        on_cpu(0.0, geometry)


# --- the shim finds what a device would not tell ---


@pytest.mark.parametrize("holes", [0.0, 0.05])
def test_the_order_of_the_threads_changes_no_bit(holes) -> None:
    assert on_cpu(holes, backwards=True).tobytes() == on_cpu(holes).tobytes()


@pytest.mark.parametrize("barrier", range(5))
def test_every_barrier_is_needed(monkeypatch, barrier) -> None:
    """Without it the answer is another one, at least if the threads go in the opposite order."""
    monkeypatch.setattr(_ncc_cupy, "TILE_FLOATS", 150)  # several rounds of the loop over rows
    pieces = _ncc_cupy.source().split("__syncthreads();")
    assert len(pieces) == 6
    pieces[barrier : barrier + 2] = ["".join(pieces[barrier : barrier + 2])]
    code, expected = "__syncthreads();".join(pieces), on_cpu(0.0)
    assert any(on_cpu(0.0, code=code, backwards=b).tobytes() != expected.tobytes() for b in (False, True))


def run(body: str, *args: Any, threads: int = 4, shared: int = 0, **options: Any) -> None:
    """Run a kernel of one line on an array and an int."""
    code = "extern __shared__ float memory[];\n"
    code += f'extern "C" __global__ void kernel(float* x, int n) {{ const int k = threadIdx.x; {body} }}'
    Cpu(code=code, **options).launch("kernel", (1, 1, 1), threads, args, shared)


def test_threads_meet_at_barriers() -> None:
    x = Cpu().put(np.zeros(4, np.float32))
    run("memory[k] = k; __syncthreads(); x[k] = memory[n - 1 - k];", x, 4, shared=16)
    assert x.tolist() == [3, 2, 1, 0]
    run("x[k] = memory[k];", x, 4, shared=16)
    assert np.isnan(x).all()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("if (k < 2) __syncthreads(); x[k] = n;", "all threads of a block must reach the same barrier"),
        ("x[n + k] = 1;", "kernel kernel: writes beside its argument 0"),
        ("x[k - 1] = 1;", "kernel kernel: writes beside its argument 0"),
        ("memory[n + k] = 1;", "shared memory is smaller than its use"),
        ("y[k] = n;", "the compiler refuses the source .*y"),
    ],
)
def test_a_kernel_that_breaks_a_rule_is_found(body, message) -> None:
    with pytest.raises(OgiveError, match=f"(?s){message}"):
        run(body, Cpu().empty((4,), np.float32), 4, shared=16)


def test_arguments_and_launches_that_no_device_would_take_are_refused() -> None:
    x = Cpu().empty((4,), np.float32)
    with pytest.raises(OgiveError, match=r"arguments of kernel kernel: must be f\*i \(found d\*i\)"):
        run("x[k] = n;", Cpu().empty((4,), np.float64), 4)
    with pytest.raises(OgiveError, match=r"must be f\*i \(found f\*\)"):
        run("x[k] = n;", x)
    for wrong in ({"threads": 1025}, {"shared": 49156}):
        with pytest.raises(OgiveError, match="launch of kernel kernel: a device takes"):
            run("x[k] = n;", x, 4, **wrong)


def test_without_a_compiler_the_error_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(OgiveError, match=r"needs a C\+\+ compiler\. Fix: install g\+\+"):
        compiled("never compiled")


# --- what CuPy is given ---


def test_cupy_is_given_typed_numbers_and_the_packaged_source(monkeypatch) -> None:
    launched = []

    def launch(name: str, grid: Any, block: Any, args: Any, shared_mem: int) -> None:
        assert all(isinstance(a, np.ndarray | np.int32) for a in args)
        numbers = tuple(int(a) if isinstance(a, np.int32) else a for a in args)
        Cpu().launch(name, grid, *block, numbers, shared_mem)
        launched.append(name)

    def module(code: str) -> Any:
        assert code == _ncc_cupy.source()
        return SimpleNamespace(get_function=lambda name: functools.partial(launch, name))

    cpu = Cpu()
    cupy = SimpleNamespace(asarray=cpu.put, empty=cpu.empty, asnumpy=cpu.get, RawModule=module)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(_ncc_cupy, "_kernel", _ncc_cupy._kernel.__wrapped__)
    got = _ncc_cupy.match(*white(SHAPE, 0.02), CELLS, GEOMETRY, 128)
    assert got.tobytes() == on_cpu(0.02).tobytes()
    assert set(launched) == {"classify", "block_sums", "moments", "box_sums", "normalise", "peaks"}


# --- on a device ---


@pytest.fixture
def gpu(request: pytest.FixtureRequest) -> None:
    """Asked for by name, the tests fail without a device; else they are left out."""
    if "gpu" not in request.config.getoption("markexpr"):
        pytest.skip("needs a CUDA device: pytest -m gpu")
    assert _ncc_cupy.available(), "no CUDA device, or no CuPy"


@pytest.mark.gpu
@pytest.mark.parametrize(("chip", "search"), [(32, 8), (64, 8), (32, 25)])
@pytest.mark.parametrize("holes", [0.0, 0.0003])
def test_a_gpu_finds_what_numba_finds(gpu, chip, search, holes) -> None:
    pair = truth_pair("P1")
    clear = np.random.default_rng(0).random(pair.image1.shape) >= holes
    dy, dx = [], []
    for backend in ("cupy", "numba"):
        kernel = NCC(chip, search, refine="quadric", backend=backend)
        found = kernel.match(*(kernel.prepare(im.astype(np.float32), clear) for im in (pair.image1, pair.image2)))
        dy.append(found["dy"])
        dx.append(found["dx"])
    both = np.isfinite(dy).all(0)
    assert both.mean() > 0.99 * np.isfinite(dy[1]).mean() > 0.5
    apart = np.hypot(dy[0] - dy[1], dx[0] - dx[1])[both]
    assert np.mean(apart <= 0.01) >= 0.999


@pytest.mark.gpu
@pytest.mark.parametrize("holes", [0.0, 0.05])
def test_a_gpu_gives_the_same_bits_for_any_tiling_and_those_of_the_cpu_to_rounding(gpu, monkeypatch, holes) -> None:
    images = white(SHAPE, holes)
    expected = _ncc_cupy.match(*images, CELLS, GEOMETRY, 128)
    np.testing.assert_allclose(expected, on_cpu(holes), rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(_ncc_cupy, "TILE_BYTES", 1)
    monkeypatch.setattr(_ncc_cupy, "TILE_COLUMNS", 2)
    assert _ncc_cupy.match(*images, CELLS, GEOMETRY, 128).tobytes() == expected.tobytes()


# --- its benchmark ---


def test_the_benchmark_runs_without_a_gpu_and_says_so(tmp_path, monkeypatch, capsys) -> None:
    file = tmp_path / "gpu.json"
    script = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--dry-run", "--json", str(file)])
    runpy.run_path(str(script), run_name="__main__")
    printed = capsys.readouterr().out
    assert "no GPU: the figures mean nothing" in printed
    result = json.loads(file.read_text())
    assert result["device"]["name"] == "none (CUDA source on the CPU)"
    assert [row["chip"] for row in result["rows"]] == [32, 32]
    for row in result["rows"]:
        assert row["within_0.01_px"] == 1
        assert row["points_per_second"] > 0
        assert set(row["kernel_seconds"]) >= {"block_sums", "peaks"}
