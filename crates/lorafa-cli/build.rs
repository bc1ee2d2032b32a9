//! Lets binaries and tests find libtorch where it was found when they were built.

/// lorafa-exec says where libtorch lies, if it is built with it.
const LIB: &str = "DEP_LORAFA_SHIM_LIBTORCH";

fn main() {
    println!("cargo:rerun-if-env-changed={LIB}");
    if let Some(lib) = std::env::var_os(LIB) {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    }
}
