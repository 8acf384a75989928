"""A profile: which steps it takes, and what it makes of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from data.test_batches import make_rows
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEventAvg

from bert_train_parallel.config import TrainConfig
from bert_train_parallel.models.matmul import use_matmul
from bert_train_parallel.training.course import Course
from bert_train_parallel.training.profiling import Plan, Profiled, by_kind, computing_times, measured_peak, plan_profile
from training import worlds


def course_of(steps_per_epoch: int, epochs: int, max_steps: int | None = None) -> Course:
    return Course(make_rows([3] * steps_per_epoch), TrainConfig(batch_size=1, epochs=epochs, max_steps=max_steps))


class FewSteps:
    """A strategy of one layer; what Profiled asks of the real one, without a world."""

    def __init__(self, outputs: int = 64) -> None:
        self.model = torch.nn.Sequential(torch.nn.Linear(8, outputs))

    def step(self, *_: object) -> None:
        self.model(torch.zeros(5, 8)).sum().backward()


def profiled(course: Course, trace: Path, first: int = 0, outputs: int = 64) -> list[str]:
    """What a profile of this course says, of a layer with so many outputs."""
    said: list[str] = []
    strategy: Any = FewSteps(outputs)
    watched = Profiled(strategy, course, strategy.model, "float32", trace, said.append)
    for step in range(first, course.steps):
        watched.step(course.batch(step), step, 0.0)
    return said


def test_a_long_run_is_profiled_in_its_first_steps_and_one_that_goes_on_in_its_own_first() -> None:
    assert plan_profile(course_of(100, 2), 0) == Plan(3, 13, 18)
    assert plan_profile(course_of(100, 2), 40) == Plan(43, 53, 58)


def test_a_profile_lies_within_one_epoch_lest_validation_counts_as_a_step() -> None:
    assert plan_profile(course_of(10, 5), 0) == Plan(1, 8, 10)
    assert plan_profile(course_of(100, 2), 95) == Plan(103, 113, 118)
    assert plan_profile(course_of(10, 2), 7) == Plan(11, 18, 20)


def test_a_run_of_three_steps_is_profiled_and_one_of_two_is_not() -> None:
    assert plan_profile(course_of(100, 2, max_steps=3), 0) == Plan(1, 2, 3)
    assert plan_profile(course_of(100, 2, max_steps=2), 0) is None
    assert plan_profile(course_of(2, 50), 0) is None
    assert plan_profile(course_of(100, 1), 100) is None


@pytest.mark.parametrize("steps", [3, 5, 30])
def test_a_profile_of_any_length_says_its_figures_and_leaves_a_trace(steps: int, tmp_path: Path) -> None:
    said = profiled(course_of(50, 1, max_steps=steps), tmp_path / "trace.json")
    assert said[0].startswith("profile: a step takes")
    assert len([line for line in said if "linear layers" in line]) == 1
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


def test_a_model_without_any_large_layer_has_a_profile_too(tmp_path: Path) -> None:
    said = profiled(course_of(3, 1), tmp_path / "trace.json", outputs=3)
    assert "no linear layer of this model is large enough" in said[-1]


def test_a_profile_says_nothing_but_its_figures(tmp_path: Path) -> None:
    # a process of its own: the profiler's library reads its level once
    script = (
        "import pathlib, sys\n"
        "from training.test_profiling import course_of, profiled\n"
        "print(profiled(course_of(3, 1), pathlib.Path(sys.argv[1]))[0])"
    )
    environ = {name: value for name, value in os.environ.items() if name != "KINETO_LOG_LEVEL"} | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "trace.json"], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("profile: a step takes")
    assert done.stderr == ""


def test_a_run_too_short_for_a_profile_says_how_many_steps_it_takes(tmp_path: Path) -> None:
    (sentence,) = profiled(course_of(50, 1, max_steps=2), tmp_path / "trace.json")
    assert "this run has at most 2 steps of an epoch left, and a profile takes 3" in sentence
    assert not (tmp_path / "trace.json").exists()


def event_of(name: str, device: DeviceType, *, cpu: float = 0, gpu: float = 0, annotation: bool = False) -> FunctionEventAvg:
    """One of a profiler's averages; microseconds."""
    made = FunctionEventAvg()
    made.key, made.device_type, made.is_user_annotation = name, device, annotation
    made.self_cpu_time_total, made.self_device_time_total = cpu, gpu
    return made


EVENTS = [
    event_of("aten::mm", DeviceType.CPU, cpu=7e6, gpu=5e6),
    event_of("Optimizer.step#AdamW.step", DeviceType.CPU, cpu=1e6),
    event_of("Optimizer.step#AdamW.step", DeviceType.CUDA, gpu=6e6, annotation=True),
    event_of("nvjet_tst_128x256_64x4", DeviceType.CUDA, gpu=3e6),
    event_of("nvjet_tst_128x256_64x4", DeviceType.CUDA, gpu=2e6),  # of another thread
]


def test_on_a_gpu_the_time_of_each_kernel_counts_once() -> None:
    assert computing_times(EVENTS, on_gpu=True) == [("nvjet_tst_128x256_64x4", 3.0), ("nvjet_tst_128x256_64x4", 2.0)]


def test_on_a_cpu_the_time_of_operators_counts() -> None:
    assert computing_times(EVENTS, on_gpu=False) == [("aten::mm", 7.0), ("Optimizer.step#AdamW.step", 1.0)]


# as CUDA's libraries and torch name them, shortened in the middle
KERNELS = {
    "attention": [
        "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<32, 128, 128, 4, cutlass::bfloat16_t>, true>(Flash_fwd_params)",
        "void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<Flash_bwd_kernel_traits<32, 128, 128, cutlass::bfloat16_t>>",
        "fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel<cutlass::bfloat16_t>::Params)",
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x64",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
    ],
    "matrix products": [
        "ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_stages_64x3_tn",
        "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize64x64x64_cublas",
        "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_128x64_64x3_nn_align8>(Params)",
        "nvjet_tst_128x256_64x4_2x1_v_bz_coopA_TNT",
        "void gemv2T_kernel_val<int, int, __nv_bfloat16, float, 128, 16, 4, 4, false>(cublasGemvParamsEx)",
        "void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16, float>(cublasSplitKParams<float>)",
        "aten::addmm",
    ],
    "averaging": ["ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "gloo:all_reduce"],
    "optimizer and clipping": [
        "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<TensorListMetadata<4>, FusedAdamMathFunctor<float, 4>>",
        "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<TensorListMetadata<1>, at::native::LpNormFunctor<float>>",
        "aten::_fused_adamw_",
    ],
    "normalisation": [
        "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<float, float>(int, float, float const*)",
        "void at::native::(anonymous namespace)::GammaBetaBackwardCUDAKernelTemplate<float, float, 64u, 1u, 32u>",
    ],
    "activation": [
        "void at::native::vectorized_elementwise_kernel<4, at::native::GeluCUDAKernelImpl(at::TensorIteratorBase&, GeluType)>",
        "void (anonymous namespace)::softmax_warp_forward<float, float, float, 1, true, false>(float*, float const*)",
    ],
    "dropout": [
        "void at::native::(anonymous namespace)::fused_dropout_kernel_vec<float, float, unsigned int, 1, 4, bool>",
        "void at::native::vectorized_elementwise_kernel<4, at::native::(anonymous namespace)::masked_scale_kernel<bool, float>>",
    ],
    "moving and gathering": [
        "Memcpy HtoD (Pinned -> Device)",
        "Memset (Device)",
        "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda(at::TensorIteratorBase&)>",
        "void at::native::vectorized_elementwise_kernel<4, at::native::bfloat16_copy_kernel_cuda(at::TensorIteratorBase&)>",
        "void at::native::(anonymous namespace)::embedding_backward_kernel<float, float>(long const*, long const*)",
        "void at::native::(anonymous namespace)::CatArrayBatchedCopy<OpaqueType<4u>, unsigned int, 1, 128, 1>",
    ],
    "sums and elementwise": [
        "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>, std::array<char*, 3ul>>",
        "void at::native::reduce_kernel<128, 4, at::native::ReduceOp<float, at::native::func_wrapper_t<float, sum_functor<float>>>>",
        "aten::add_",
    ],
    "all else": ["autograd::engine::evaluate_function", "aten::empty"],
}


@pytest.mark.parametrize("kind", KERNELS)
def test_kernels_and_operators_are_booked_by_what_they_are_for(kind: str) -> None:
    assert [by_kind([(name, 1.0)]) for name in KERNELS[kind]] == [{kind: 1.0}] * len(KERNELS[kind])


@pytest.mark.parametrize("library", ["mkl", "onednn"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_peak_is_of_three_products_in_the_precision_and_by_the_library_of_the_run(dtype: str, library: Any) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(96, 128))
    use_matmul(model, library)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profiler:
        assert measured_peak(model, 80, dtype, rounds=2) > 0
    operators = [event.key for event in profiler.key_averages() for _ in range(event.count)]
    by_onednn = dtype == "float32" and library == "onednn" and torch.backends.mkldnn.is_available()
    assert operators.count("aten::mm") + operators.count("mkldnn::_linear_pointwise") >= 6
    assert ("mkldnn::_linear_pointwise" in operators) == by_onednn
    assert "aten::_to_copy" not in operators  # a cast
    assert "aten::sum" not in operators  # a bias's gradient


@pytest.mark.slow
def test_two_ranks_of_three_steps_are_profiled(write_csv: Callable[..., Path], tiny_model: Path, tmp_path: Path) -> None:
    source = write_csv(100)
    flags = ("--model", tiny_model, "--max_steps", "3", "--batch_size", "8", "--epochs", "1", "--no_export", "--profile")
    assert "profile: a step takes" in worlds.run_world(2, source, *flags, folder=tmp_path).output()
