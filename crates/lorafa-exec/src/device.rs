//! Where a step runs.

use std::fmt;
use std::str::FromStr;

use crate::error::ExecError;
use crate::host;
use crate::shim;

/// A device by name: `cpu`, `cuda:0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    Cpu,
    /// A GPU, by CUDA's number.
    Cuda(usize),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl FromStr for Device {
    type Err = ExecError;

    /// `cuda` is `cuda:0`.
    fn from_str(text: &str) -> Result<Self, ExecError> {
        let unknown = || ExecError::NoDevice(text.into());
        match text.split_once(':') {
            None if text == "cpu" => Ok(Device::Cpu),
            None if text == "cuda" => Ok(Device::Cuda(0)),
            Some(("cuda", index)) if index.bytes().all(|byte| byte.is_ascii_digit()) => {
                let index = index.parse().map_err(|_| unknown())?;
                Ok(Device::Cuda(index))
            }
            _ => Err(unknown()),
        }
    }
}

impl Device {
    /// Makes the device ready.
    ///
    /// For CUDA this opens libtorch's CUDA part, which the program is not linked to. libtorch asks once in a process
    /// whether there is one, so a process that will use CUDA opens it before it compiles a program for the CPU.
    ///
    /// # Errors
    /// [`ExecError::Device`] if that part or a driver is missing, or there are fewer GPUs.
    pub fn open(self) -> Result<OpenDevice, ExecError> {
        let Device::Cuda(index) = self else {
            return Ok(OpenDevice::CPU);
        };
        let failed = |why: String| ExecError::Device { device: self, why };
        shim::open_cuda().map_err(|why| {
            failed(format!(
                "libtorch's CUDA part does not load: {why}; install it where libtorch is, with the libraries that it needs: \
                 `pip install torch==2.11.0` takes all"
            ))
        })?;
        let count = shim::cuda_devices().map_err(|why| {
            failed(format!(
                "CUDA does not start: {why}; this takes an NVIDIA GPU and a driver for CUDA 13, which `nvidia-smi` shows"
            ))
        })?;
        if index as u64 >= count {
            let why = match count {
                0 => "there is no CUDA device".into(),
                1 => "there is one CUDA device, cuda:0".into(),
                n => format!("there are {n} CUDA devices, cuda:0 to cuda:{}", n - 1),
            };
            return Err(failed(why));
        }
        let (before, workspace) = shim::prepare_cuda(index as i64).map_err(failed)?;
        Ok(OpenDevice {
            device: self,
            before: Some(before),
            workspace,
        })
    }
}

/// A device that is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenDevice {
    device: Device,
    before: Option<u64>,
    workspace: u64,
}

/// Bytes of memory of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// What could be allocated now. On the CPU: what the system has available, or what the process's control groups
    /// still allow if that is less.
    pub free: u64,
    /// What there is.
    pub total: u64,
}

/// The most bytes in use since the process started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peaks {
    /// Given out by libtorch's allocator; `None` on the CPU, where it keeps no such book.
    pub allocated: Option<u64>,
    /// Held by libtorch's allocator; `None` on the CPU.
    pub reserved: Option<u64>,
    /// On the CPU, of the process. On CUDA, of the whole device now, whoever uses it: libtorch does not give back what
    /// it holds, so it is as much as there ever was.
    pub device: u64,
}

impl OpenDevice {
    /// The processor, which is always ready.
    pub const CPU: OpenDevice = OpenDevice {
        device: Device::Cpu,
        before: None,
        workspace: 0,
    };

    /// Its name for [`Device::from_str`].
    #[must_use]
    pub fn device(self) -> Device {
        self.device
    }

    /// Bytes in use on a GPU before anything of ours but its context: by that, and by other processes.
    #[must_use]
    pub fn before(self) -> Option<u64> {
        self.before
    }

    /// Bytes that libtorch gave cuBLAS as workspace when the device was opened: all that a step takes beside its arena.
    #[must_use]
    pub fn workspace(self) -> u64 {
        self.workspace
    }

    /// What it is called by its maker, for reports.
    #[must_use]
    pub fn name(self) -> String {
        let name = match self.device {
            Device::Cpu => host::processor(),
            Device::Cuda(index) => shim::cuda_name(index as i64),
        };
        name.unwrap_or_else(|| self.device.to_string())
    }

    /// The major number of what a GPU can do: 8 of an A100, 9 of an H100. `None` of the CPU.
    pub(crate) fn capability(self) -> Result<Option<u64>, String> {
        match self.device {
            Device::Cpu => Ok(None),
            Device::Cuda(index) => {
                let (major, _) = shim::cuda_capability(index as i64)?;
                Ok(Some(major))
            }
        }
    }

    /// How much memory it has.
    ///
    /// # Errors
    /// [`ExecError::Device`] if the system does not say.
    pub fn memory(self) -> Result<DeviceMemory, ExecError> {
        let memory = match self.device {
            Device::Cpu => host::memory(),
            Device::Cuda(index) => shim::memory(index as i64),
        };
        let (free, total) = memory.map_err(|why| self.failed(why))?;
        Ok(DeviceMemory { free, total })
    }

    /// How much was used at most.
    ///
    /// # Errors
    /// [`ExecError::Device`] if the system does not say.
    pub fn peaks(self) -> Result<Peaks, ExecError> {
        let Device::Cuda(index) = self.device else {
            let device = host::peak().map_err(|why| self.failed(why))?;
            return Ok(Peaks {
                allocated: None,
                reserved: None,
                device,
            });
        };
        let peaks = shim::peaks(index as i64).map_err(|why| self.failed(why))?;
        let DeviceMemory { free, total } = self.memory()?;
        Ok(Peaks {
            allocated: Some(peaks.0),
            reserved: Some(peaks.1),
            device: total - free.min(total),
        })
    }

    /// Waits until it has nothing left to do. The CPU never has.
    ///
    /// # Errors
    /// [`ExecError::Device`] if what it did failed.
    pub fn synchronize(self) -> Result<(), ExecError> {
        match self.device {
            Device::Cpu => Ok(()),
            Device::Cuda(index) => shim::synchronize(index as i64).map_err(|why| self.failed(why)),
        }
    }

    /// Has random numbers start from here.
    pub(crate) fn seed(self, seed: u64) -> Result<(), ExecError> {
        shim::seed(self.index(), seed).map_err(|why| self.failed(why))
    }

    /// libtorch's name of it.
    pub(crate) fn torch(self) -> tch::Device {
        match self.device {
            Device::Cpu => tch::Device::Cpu,
            Device::Cuda(index) => tch::Device::Cuda(index),
        }
    }

    /// CUDA's number, or -1.
    pub(crate) fn index(self) -> i64 {
        match self.device {
            Device::Cpu => -1,
            Device::Cuda(index) => index as i64,
        }
    }

    fn failed(self, why: String) -> ExecError {
        ExecError::Device {
            device: self.device,
            why,
        }
    }
}
