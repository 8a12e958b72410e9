//! Who owns which network, VNI, block and address of the overlay.
#![forbid(unsafe_code)]
