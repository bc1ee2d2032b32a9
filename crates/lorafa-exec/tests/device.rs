//! Devices: names, memory, and CUDA where there is some.
#![cfg(feature = "torch")]

use lorafa_exec::{Device, ExecError, Mode, OpenDevice, Program};
use std::sync::Arc;

#[test]
fn names_are_parsed_and_printed() {
    for (text, device) in [
        ("cpu", Device::Cpu),
        ("cuda", Device::Cuda(0)),
        ("cuda:0", Device::Cuda(0)),
        ("cuda:12", Device::Cuda(12)),
    ] {
        assert_eq!(text.parse::<Device>().unwrap(), device);
    }
    assert_eq!(Device::Cuda(1).to_string(), "cuda:1");
    for text in [
        "",
        "gpu",
        "cpu:0",
        "cuda:",
        "cuda:-1",
        "cuda:+1",
        "CUDA",
        "cuda:99999999999999999999",
    ] {
        let error = text.parse::<Device>().unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("`{text}` is no device")),
            "{error}"
        );
    }
}

/// How far the system's count of resident memory may be off: it is kept per processor and added up now and then.
const INEXACT: u64 = 4 << 20;

/// The peak is of the whole process, so what other tests allocate meanwhile only adds to it.
#[test]
fn the_processor_says_how_much_memory_there_is_and_was_used() {
    let cpu = Device::Cpu.open().unwrap();
    assert_eq!(cpu, OpenDevice::CPU);
    let memory = cpu.memory().unwrap();
    assert!(0 < memory.free && memory.free <= memory.total, "{memory:?}");
    assert_ne!(cpu.name(), "");

    const SIZE: usize = 96 << 20;
    let touched = vec![1u8; SIZE];
    assert!(touched.iter().step_by(4096).all(|byte| *byte == 1));
    let peaks = cpu.peaks().unwrap();
    assert!(peaks.device + INEXACT >= SIZE as u64, "{peaks:?}");
    assert_eq!((peaks.allocated, peaks.reserved), (None, None));
    drop(touched);
    let after = cpu.peaks().unwrap();
    assert!(
        after.device + INEXACT >= peaks.device,
        "{after:?} {peaks:?}"
    );
}

/// Constants, a mask, an empty value, an output that is not row-major.
const STEP: &str = "graph @step {
    param %x : f32[8,16] input
    param %w : f32[16,4] trained
    param %i : i64[0] input
    v0 = constant {dtype=f32, value=0.5} : f32[]
    v1, v2 = dropout %x {ratio=0.25, seed=5} : f32[8,16], bool[8,16]
    v3 = matmul v1, %w : f32[8,4]
    v4 = mul v3, v0 : f32[8,4]
    v5 = gather v4, %i {axis=0} : f32[0,4]
    v6 = concat v4, v5 {axis=0} : f32[8,4]
    v7 = transpose v6 {perm=[1,0]} : f32[4,8]
    out \"y\" = v7
    out \"mask\" = v2
  }";

fn run(device: OpenDevice) -> Vec<Vec<u8>> {
    // libtorch asks once whether there is CUDA, and tests run in any order.
    let _ = Device::Cuda(0).open();
    let graph = Arc::new(lorafa_ir::text::parse(STEP).unwrap());
    let plan = lorafa_plan::plan(&graph).unwrap();
    let mut program = Program::compile(graph, &plan, Mode::Arena, device).unwrap();
    let numbers = |n: usize| (0..n).map(|i| (i % 7) as f64 - 3.0);
    for (name, n) in [("x", 128), ("w", 64)] {
        let bytes = lorafa_onnx::dtype::encode(lorafa_ir::DType::F32, numbers(n));
        program.write(name, &bytes).unwrap();
        assert_eq!(program.param(name).unwrap().1, bytes);
    }
    program.step().unwrap();
    program.step_traced().unwrap().check().unwrap();
    let outputs = ["y", "mask"].map(|name| program.output(name).unwrap().1);
    outputs.into()
}

#[test]
fn a_step_runs_on_the_processor() {
    let outputs = run(OpenDevice::CPU);
    assert_eq!(outputs[0].len(), 4 * 8 * 4);
    let kept: u32 = outputs[1].iter().map(|byte| u32::from(*byte)).sum();
    assert!((64..128).contains(&kept), "{kept}");
}

/// A device that is not there is an error that says what is wrong; one that is computes what the processor computes.
#[test]
fn cuda_is_opened_or_the_error_says_why_not() {
    let missing = Device::Cuda(4096).open().unwrap_err();
    assert!(
        matches!(
            missing,
            ExecError::Device {
                device: Device::Cuda(4096),
                ..
            }
        ),
        "{missing}"
    );
    let device = match Device::Cuda(0).open() {
        Ok(device) => device,
        Err(error) => {
            let text = error.to_string();
            let remedies = ["pip install torch==2.11.0", "nvidia-smi", "no CUDA device"];
            assert!(text.starts_with("cuda:0: "), "{text}");
            assert!(
                remedies.iter().any(|remedy| text.contains(remedy)),
                "{text}"
            );
            println!("{text}");
            return;
        }
    };
    // Sums of small integers and halves, which are exact in any order.
    assert_eq!(run(device), run(OpenDevice::CPU));
    let (memory, peaks) = (device.memory().unwrap(), device.peaks().unwrap());
    assert!(0 < memory.free && memory.free < memory.total, "{memory:?}");
    assert!(peaks.allocated.unwrap() > 0, "{peaks:?}");
    assert!(peaks.allocated <= peaks.reserved, "{peaks:?}");
    assert!(peaks.reserved.unwrap() <= peaks.device, "{peaks:?}");
}

/// An attention and its gradient, as long as it takes for flash kernels' sums to find room in their scratch.
const ATTENTION: &str = "graph @attention {
    param %q : bf16[2,1024,32,64] input
    param %k : bf16[2,1024,32,64] input
    param %v : bf16[2,1024,32,64] input
    param %dy : bf16[2,1024,32,64] input
    v0 = transpose %q {perm=[0,2,1,3]} : bf16[2,32,1024,64]
    v1 = transpose %k {perm=[0,2,1,3]} : bf16[2,32,1024,64]
    v2 = transpose %v {perm=[0,2,1,3]} : bf16[2,32,1024,64]
    v3, v4 = attention v0, v1, v2 {causal, scale=0.125} : bf16[2,1024,32,64], f32[2,32,1024]
    v5, v6, v7 = attention_grad %dy, v0, v1, v2, v3, v4 {causal, scale=0.125} : bf16[2,1024,32,64], bf16[2,1024,32,64], bf16[2,1024,32,64]
    out \"y\" = v3
    out \"lse\" = v4
    out \"dq\" = v5
    out \"dk\" = v6
    out \"dv\" = v7
  }";

/// The outputs as numbers, and how many calls they took.
fn attend(device: OpenDevice) -> (Vec<Vec<f64>>, usize) {
    let graph = Arc::new(lorafa_ir::text::parse(ATTENTION).unwrap());
    let plan = lorafa_plan::plan(&graph).unwrap();
    let mut program = Program::compile(graph, &plan, Mode::Arena, device).unwrap();
    for (seed, name) in ["q", "k", "v", "dy"].into_iter().enumerate() {
        let number = |i: usize| ((i * i % 4093 + 3 * i + seed) * 7919 % 1009) as f64 / 504.0 - 1.0;
        let numbers = (0..2 * 1024 * 32 * 64).map(number);
        let bytes = lorafa_onnx::dtype::encode(lorafa_ir::DType::BF16, numbers);
        program.write(name, &bytes).unwrap();
    }
    let read = |program: &Program| {
        ["y", "lse", "dq", "dk", "dv"].map(|name| {
            let (ty, bytes) = program.output(name).unwrap();
            lorafa_onnx::dtype::decode(ty.dtype, &bytes)
        })
    };
    let calls = program.step_timed().unwrap().len();
    let first = read(&program);
    program.step_traced().unwrap().check().unwrap();
    assert!(
        read(&program) == first,
        "other bits each time on {device:?}"
    );
    (first.into(), calls)
}

/// The flash kernels of a GPU give what blocks give on the processor, the same bits each time, in the planned memory.
#[test]
fn flash_kernels_of_a_gpu_give_what_blocks_give() {
    let Ok(device) = Device::Cuda(0).open() else {
        println!("there is no GPU");
        return;
    };
    let (found, calls) = attend(device);
    let (expected, blocks) = attend(OpenDevice::CPU);
    assert!(
        calls < 8 && blocks > 100,
        "{calls} calls on {}, {blocks} on the processor: GPUs before Ampere have no flash kernels",
        device.name()
    );
    for (slot, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let size = expected.iter().fold(0f64, |size, x| size.max(x.abs()));
        for (i, (f, e)) in found.iter().zip(expected).enumerate() {
            let near = (f - e).abs() <= 2e-2 * size;
            assert!(near, "output {slot} [{i}] is {f}, not {e}");
        }
    }
}
