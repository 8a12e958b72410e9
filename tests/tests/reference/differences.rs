//! Where Weft does better on purpose than the reference: the listed differences.
