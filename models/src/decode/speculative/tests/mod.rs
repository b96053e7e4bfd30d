//! That speculation changes no text: by walking through all that chance can do, by statistics, and on tiny models.

mod chi_square;
mod enumerate;
mod exact;
mod models;
mod mutants;
mod tables;
