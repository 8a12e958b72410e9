//! Taking over what the reference host-local plugin has kept: one file an address in `<dir>/<network>/`.
