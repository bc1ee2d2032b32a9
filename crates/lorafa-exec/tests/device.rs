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
