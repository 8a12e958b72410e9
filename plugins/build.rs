//! Passes `WEFT_CNI_LINK_ARG`, an argument for the linker, to the link of `weft-cni`. scripts/build sets it.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=hot-functions");
    println!("cargo:rerun-if-env-changed=WEFT_CNI_LINK_ARG");
    if let Some(arg) = std::env::var("WEFT_CNI_LINK_ARG").ok().filter(|arg| !arg.is_empty()) {
        println!("cargo:rustc-link-arg-bin=weft-cni={arg}");
    }
}
