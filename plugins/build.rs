//! Links the static executable to fixed addresses. A position-independent one has ten thousand addresses to fill in at each
//! start, on 50 pages that it mostly does not need: 0.1 ms, which is a tenth of what a plugin call takes.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let is_static = std::env::var("CARGO_CFG_TARGET_FEATURE")
        .is_ok_and(|features| features.split(',').any(|feature| feature == "crt-static"));
    let is_gnu = std::env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|env| env == "gnu");
    if is_static && is_gnu {
        // The last of -static-pie, which rustc says, and -no-pie counts.
        println!("cargo::rustc-link-arg-bins=-no-pie");
        println!("cargo::rustc-link-arg-bins=-static");
    }
}
