//! Applications, load generator, audits, figures.
