//! Compiles the shim and says where libtorch lies, both only with the feature `torch`.

fn main() {
    #[cfg(feature = "torch")]
    torch::build();
}

#[cfg(feature = "torch")]
mod torch {
    use std::env;
    use std::path::{Path, PathBuf};

    /// torch-sys has found libtorch and tells its direct dependents, as `links = "tch"` lets it.
    const LIB: &str = "DEP_TCH_LIBTORCH_LIB";

    pub fn build() {
        println!("cargo:rerun-if-changed=shim");
        println!("cargo:rerun-if-env-changed={LIB}");
        let lib = env::var_os(LIB).map(PathBuf::from).unwrap_or_else(|| {
            panic!("torch-sys gave no {LIB}; run crates/lorafa-exec/setup.sh, which prints the LIBTORCH to set")
        });
        let root = lib.parent().unwrap_or(Path::new("/"));
        cc::Build::new()
            .cpp(true)
            .std("c++17")
            .warnings(false)
            .include(root.join("include"))
            .include(root.join("include/torch/csrc/api/include"))
            .files(["shim/shim.cpp", "shim/placed.cpp"])
            .compile("lorafa_shim");
        // The shim refers to these, and only the linker's order says that they come after it.
        println!("cargo:rustc-link-lib=torch_cpu");
        println!("cargo:rustc-link-lib=c10");
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
        // For the build scripts of dependents, as DEP_LORAFA_SHIM_LIBTORCH.
        println!("cargo:libtorch={}", lib.display());
    }
}
